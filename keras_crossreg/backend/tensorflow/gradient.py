"""A gradient, for checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def gradient(
    function: Callable[[], Any], variables: list[keras.Variable]
) -> list[Any]:
    """`d function() / d variables`, `None` where none reaches a variable."""
    values = [v.value for v in variables]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(values)
        result = function()
    gradients: list[Any] = tape.gradient(result, values)
    return gradients
