"""Gradients of functions."""

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


def vector_jacobian(
    function: Callable[[], Any], variable: keras.Variable, vector: Any
) -> Any:
    """`(d function() / d variable)' vector`."""
    value = variable.value
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(value)
        result = function()
    vector = tf.cast(tf.convert_to_tensor(vector), result.dtype)
    return tape.gradient(result, value, output_gradients=vector)


def value_and_gradient(function: Callable[[Any], Any], x: Any) -> Any:
    """`function(x)` and its gradient, to be differentiated again."""
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = function(x)
    return value, tape.gradient(value, x)
