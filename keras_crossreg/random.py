"""Noise of its own on every replica, at the price of the device that runs."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_crossreg import primitives
from keras_crossreg.noise_source import NoiseRefused
from keras_crossreg.noise_source import NoiseSource
from keras_crossreg.primitives import maximum
from keras_crossreg.primitives import minimum
from keras_crossreg.primitives import replica_index

__all__ = ["SeedGenerator", "normal", "uniform"]

# The stride is odd and large, so that seeds that a user counts up stay apart
# on all replicas.
_STRIDE = 1_000_003
# So many numbers of a batch differ, at the least, and each is used so often:
# eight times takes most of what there is to win, and a batch has dozens of
# examples.
_FEWEST = 8192
REUSE = 8


class _Pass(threading.local):
    """Of a thread: a strategy traces its replicas in several."""

    num_samples: int | None = None
    source: NoiseSource | None = None
    is_accelerated: bool = False


_PASS = _Pass()


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

    def __init__(
        self, seed: int | None = None, name: str | None = None, **kwargs: Any
    ) -> None:
        with primitives.seed_scope():
            super().__init__(seed, name, **kwargs)

    def next(self, ordered: bool = True) -> Any:
        if _PASS.source is not None:
            _PASS.source.refuse_seed(self)
        with primitives.seed_scope():
            seed = super().next(ordered)
            index = replica_index()
            if index is None:
                return seed
            offset = ops.cast(index, seed.dtype) * _STRIDE
            return seed + ops.stack([offset, ops.zeros_like(offset)])


@contextlib.contextmanager
def sampling_pass(num_samples: int) -> Iterator[None]:
    """Within, noise is of batches that hold K samples of every example."""
    before, _PASS.num_samples = _PASS.num_samples, num_samples
    try:
        yield
    finally:
        _PASS.num_samples = before


def samples_in_pass() -> int | None:
    """The K of the sampling pass that runs, if it is one of a model."""
    return _PASS.num_samples


@contextlib.contextmanager
def noise_from(source: NoiseSource) -> Iterator[None]:
    """Within, `uniform` and `normal` of this thread draw from a source."""
    before, _PASS.source = _PASS.source, source
    try:
        yield
    except NoiseRefused as error:
        # Keras adds to the messages of errors in layers.
        raise NoiseRefused(source.refusal) from error
    finally:
        _PASS.source = before


def has_source() -> bool:
    """Whether no random generator moves."""
    return _PASS.source is not None


@contextlib.contextmanager
def as_on_an_accelerator() -> Iterator[None]:
    """Within, numbers are of the backend's own generator on a CPU too."""
    before, _PASS.is_accelerated = _PASS.is_accelerated, True
    try:
        yield
    finally:
        _PASS.is_accelerated = before


def _shares_numbers() -> bool:
    """Whether numbers are made as is best on a CPU."""
    return not _PASS.is_accelerated and primitives.shares_numbers()


def uniform(
    shape: Any,
    seed: keras.random.SeedGenerator,
    dtype: str = "float32",
    batch_axis: int = 0,
) -> Any:
    """Numbers in `[0, 1)`, those of `keras.random.uniform`.

    On PyTorch others: Keras adds the seed and the count of draws there.

    Args:
        shape: Shape of the result, dynamic or not, of rank 1 or more.
        seed: A `keras.random.SeedGenerator`.
        dtype: Dtype of the result.
        batch_axis: Integer, the axis of the examples. Defaults to `0`.

    Returns:
        A tensor.
    """
    if _PASS.source is not None:
        return _PASS.source.draw(
            "uniform", shape, seed, dtype, _PASS.num_samples or 1, batch_axis
        )
    draw = primitives.cpu_uniform if _shares_numbers() else primitives.uniform
    return draw(shape, seed, dtype)


def normal(
    shape: Any,
    seed: keras.random.SeedGenerator,
    dtype: str,
    num_samples: int | None = 1,
    reuse: int = REUSE,
) -> Any:
    """Standard normal numbers, as the device that runs makes them best.

    On an accelerator, and on PyTorch everywhere, they are of the backend's own
    generator, and every number is another: there a generator is compiled into
    what uses its numbers, and costs next to nothing.

    On a CPU they are made by the Box-Muller transform: the generator of
    `keras.random.normal` makes about half as many numbers a second. Two
    uniform numbers `u, v` give two independent normal ones,
    `sqrt(-2 log u) cos(2 pi v)` and `sqrt(-2 log u) sin(2 pi v)`.

    There, about `reuse` examples use each number, which then costs as much
    less: the batch is made of as many blocks, which hold the same numbers,
    each block rotated by an offset that is drawn anew and every other one with
    the opposite sign. Every number is still normal; all numbers of one example
    are still independent, and so are those of two calls. Two numbers of
    different examples are independent but for a chance of one in the size of
    a block that they are equal or opposite. That is for sums over examples:
    the gradients of theta and of rho. The samples of one example, which are
    averaged, have none in common: each sample has blocks of its own.

    Args:
        shape: Shape of the result, dynamic or not, of rank 1 or more; the
            first axis is that of the examples.
        seed: A `keras.random.SeedGenerator`.
        dtype: Dtype of the result. The numbers are made in float32 or wider.
        num_samples: Integer, how many samples of every example the batch
            holds, the first of all examples before the second of any. `None`
            where that is not known: then no number is used twice.
        reuse: Integer, how often to use each number. Small tensors have
            numbers of their own all the same.

    Returns:
        A tensor.

    Reference:

    - Box and Muller, 1958, A note on the generation of random normal deviates.
    """
    if _PASS.source is not None:
        return _PASS.source.draw(
            "normal", shape, seed, dtype, _PASS.num_samples or 1
        )
    wide = "float64" if dtype == "float64" else "float32"
    if not _shares_numbers():
        return ops.cast(primitives.normal(shape, seed, wide), dtype)
    size = math.prod(shape[1:])
    if num_samples is None:
        num_samples = reuse = 1
    examples = _ceil_div(shape[0], num_samples)
    # Each row makes two rows of numbers: one of cosines, one of sines.
    rows = _ceil_div(examples, 2)
    if reuse > 1:
        of_a_row = maximum(2 * size * num_samples, 1)
        least = _ceil_div(_FEWEST, of_a_row)
        of_a_block = maximum(_ceil_div(rows, reuse), least)
        rows = minimum(rows, of_a_block)
    u = uniform((2, num_samples, rows * size), seed, wide)
    # `uniform` may be 0 but never 1.
    radius = ops.sqrt(-2.0 * ops.log1p(-u[0]))
    angle = (2.0 * math.pi) * u[1]
    blocks = [radius * ops.cos(angle), radius * ops.sin(angle)]
    if reuse > 1:
        block = ops.concatenate(blocks, axis=1)
        length = ops.cast(2 * rows * size, wide)
        offsets = uniform((reuse - 1,), seed, wide) * length
        shifts = ops.unstack(ops.cast(offsets, "int32"), reuse - 1)
        if isinstance(rows, int) and isinstance(examples, int):
            # The block itself is a part of what is filled.
            shifts = shifts[: max(_ceil_div(examples, 2 * rows or 1) - 1, 0)]
        signed = [-block, block]
        blocks = [block]
        blocks += [
            ops.roll(signed[i % 2], shift, axis=1)
            for i, shift in enumerate(shifts)
        ]
    numbers = ops.concatenate(blocks, axis=1)[:, : examples * size]
    flat = ops.reshape(numbers, (-1,))[: shape[0] * size]
    return ops.cast(ops.reshape(flat, shape), dtype)


def _ceil_div(a: Any, b: Any) -> Any:
    return -(-a // b)
