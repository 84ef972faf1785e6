"""Noise of its own on every replica, Gaussian at the price of uniform."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_crossreg.backend import replica_index
from keras_crossreg.backend import uniform

__all__ = ["SeedGenerator", "normal", "uniform"]

# Odd and large: seeds that a user counts up stay apart on all replicas.
_STRIDE = 1_000_003
# Numbers that repeat, at the least, and how often in a training step: four
# times takes most of what there is to win, and a batch has dozens of examples.
_SMALLEST_BLOCK = 8192
TRAINING_REUSE = 4


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


def normal(
    shape: Any, seed: keras.random.SeedGenerator, dtype: str, reuse: int = 1
) -> Any:
    """Standard normal numbers by the Box-Muller transform.

    On a CPU the generator of `keras.random.normal` makes about half as many
    numbers a second. Two uniform numbers `u, v` give two independent normal
    ones, `sqrt(-2 log u) cos(2 pi v)` and `sqrt(-2 log u) sin(2 pi v)`.

    With `reuse` above 1, about that many examples share each number, which
    then costs as much less: the batch is made of as many blocks, which hold
    the same numbers, each block rotated by an offset that is drawn anew and
    every other one with the opposite sign. Every number is still normal; all
    numbers of one example are still independent, and so are those of two
    calls. Two numbers of different examples are independent but for a chance
    of one in the size of a block that they are equal or opposite. For a
    training step, that is, whose gradient is a sum over examples; samples of
    one example, which are averaged, shall have `reuse=1`.

    Args:
        shape: Shape of the result, dynamic or not, of rank 1 or more; the
            first axis is that of the examples.
        seed: A `keras.random.SeedGenerator`.
        dtype: Dtype of the result. The numbers are made in float32 or wider.
        reuse: Integer, how often to use each number. Small tensors have
            numbers of their own all the same.

    Returns:
        A tensor.

    Reference:

    - Box and Muller, 1958, A note on the generation of random normal deviates.
    """
    wide = "float64" if dtype == "float64" else "float32"
    size = math.prod(shape[1:])
    rows = _ceil_div(shape[0], 2)
    if reuse > 1:
        least = _ceil_div(_SMALLEST_BLOCK, ops.maximum(2 * size, 1))
        share = ops.maximum(_ceil_div(rows, reuse), least)
        rows = ops.minimum(rows, share)
    u = uniform((2, rows * size), seed, wide)
    # `uniform` may be 0 but never 1.
    radius = ops.sqrt(-2.0 * ops.log1p(-u[0]))
    angle = (2.0 * math.pi) * u[1]
    flat = ops.concatenate([radius * ops.cos(angle), radius * ops.sin(angle)])
    if reuse > 1:
        length = ops.cast(2 * rows * size, wide)
        offsets = ops.cast(uniform((reuse - 1,), seed, wide) * length, "int32")
        signed = [-flat, flat]
        rolled = [
            ops.roll(signed[i % 2], offsets[i], axis=0)
            for i in range(reuse - 1)
        ]
        flat = ops.concatenate([flat, *rolled])
    return ops.cast(ops.reshape(flat[: shape[0] * size], shape), dtype)


def _ceil_div(a: Any, b: Any) -> Any:
    return -(-a // b)
