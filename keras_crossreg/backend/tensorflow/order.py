"""One thing after another, where TensorFlow would do both at once."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from keras import tree


def after(results: Any) -> Any:
    """Everything within runs once the results are there.

    Noise too, which depends on no input.
    """
    return tf.control_dependencies(
        [x for x in tree.flatten(results) if x is not None]
    )
