"""Noise of its own on every replica, Gaussian at the price of uniform."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_crossreg.backend import replica_index

# Odd and large: seeds that a user counts up stay apart on all replicas.
_STRIDE = 1_000_003


class SeedGenerator(keras.random.SeedGenerator):
    """A `keras.random.SeedGenerator` that differs from replica to replica.

    Keras's own gives every replica of a `tf.distribute.Strategy` the same
    seeds, and so the same noise on other examples. On one device the two are
    the same, number for number.

    Args:
        seed: Integer, optional random seed.
        name: String, optional name.

    Example:

    >>> class Jitter(kcr.layers.RhoLayer):
    ...     def __init__(self, **kwargs):
    ...         super().__init__(**kwargs)
    ...         self.seed_generator = kcr.random.SeedGenerator()
    """

    def next(self, ordered: bool = True) -> Any:
        seed = super().next(ordered)
        index = replica_index()
        if index is None:
            return seed
        offset = ops.cast(index, seed.dtype) * _STRIDE
        return seed + ops.stack([offset, ops.zeros_like(offset)])


def normal(shape: Any, seed: keras.random.SeedGenerator, dtype: str) -> Any:
    """Standard normal numbers by the Box-Muller transform.

    On a CPU the generator of `keras.random.normal` makes about half as many
    numbers a second. Two uniform numbers `u, v` give two independent normal
    ones, `sqrt(-2 log u) cos(2 pi v)` and `sqrt(-2 log u) sin(2 pi v)`.

    Args:
        shape: Shape of the result, dynamic or not, of rank 1 or more.
        seed: A `keras.random.SeedGenerator`.
        dtype: Dtype of the result. The numbers are made in float32 or wider.

    Returns:
        A tensor.

    Reference:

    - Box and Muller, 1958, A note on the generation of random normal deviates.
    """
    wide = "float64" if dtype == "float64" else "float32"
    count = math.prod(shape) if _is_static(shape) else ops.prod(shape)
    half = (count + 1) // 2
    uniform = keras.random.uniform((2, half), dtype=wide, seed=seed)
    # `uniform` may be 0 but never 1.
    radius = ops.sqrt(-2.0 * ops.log1p(-uniform[0]))
    angle = (2.0 * math.pi) * uniform[1]
    flat = ops.concatenate([radius * ops.cos(angle), radius * ops.sin(angle)])
    return ops.cast(ops.reshape(flat[:count], shape), dtype)


def _is_static(shape: Any) -> bool:
    return all(isinstance(dim, int) for dim in shape)
