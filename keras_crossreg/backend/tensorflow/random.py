"""Uniform numbers by one algorithm, compiled or not."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


def uniform(
    shape: Any, seed: keras.random.SeedGenerator, dtype: str = "float32"
) -> Any:
    """Numbers in `[0, 1)`, those of `keras.random.uniform` on a CPU.

    Keras leaves the algorithm to TensorFlow. With `jit_compile=True` on a CPU
    that takes a hundred times as long as Philox, which is the default
    everywhere else.
    """
    # Seeds of 64 bits do not compile; as Keras does it.
    key = tf.cast(tf.math.floormod(seed.next(), tf.int32.max - 1), "int32")
    return tf.random.stateless_uniform(shape, key, dtype=dtype, alg="philox")
