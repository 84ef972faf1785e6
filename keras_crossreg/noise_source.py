"""Noise of exported models: drawn ahead, or by the runtime itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from typing import NoReturn

import keras
import numpy as np
from keras import ops

from keras_crossreg.primitives import draw_in_runtime

_WAY_OUT = (
    'Or use `noise="random"`: it is drawn for every row, and a SavedModel '
    "can hold it."
)


class NoiseRefused(ValueError):
    """A layer draws noise that cannot be drawn in this way."""


class NoiseSource:
    """What `kcr.random` draws from, in the place of seeds.

    Args:
        owner: From a generator of random numbers to the name of the layer that
            has it.
    """

    def __init__(self, owner: Callable[[Any], str]) -> None:
        self.owner = owner
        self.draws = 0
        #: Why it cannot be; Keras adds to the messages of errors in layers.
        self.refusal = ""

    def draw(
        self,
        kind: str,
        shape: Any,
        generator: Any,
        dtype: str,
        num_samples: int,
        batch_axis: int = 0,
    ) -> Any:
        """Numbers of K samples of a batch.

        Args:
            kind: `"uniform"` in `[0, 1)`, or `"normal"`.
            shape: As of the tensor that would be drawn, of K batches.
            generator: The `SeedGenerator` that it would be drawn from.
            dtype: Dtype of the result.
            num_samples: Integer K.
            batch_axis: Integer, the axis of the examples.

        Returns:
            A tensor of this shape.

        Raises:
            NoiseRefused: If it cannot.
        """
        raise NotImplementedError

    def refuse_seed(self, generator: Any) -> NoReturn:
        """Refuses noise that is not drawn by `draw`."""
        self._refuse(not_ours(self.owner(generator)))

    def _refuse(self, why: str) -> NoReturn:
        self.refusal = why
        raise NoiseRefused(why)


class RuntimeNoise(NoiseSource):
    """The random operations of whatever runs an exported model."""

    def draw(
        self,
        kind: str,
        shape: Any,
        generator: Any,
        dtype: str,
        num_samples: int,
        batch_axis: int = 0,
    ) -> Any:
        # Draws of one seed would be equal. Generators of runtimes are simple:
        # those of the seeds 1 and 2 are not independent in ONNX Runtime, which
        # takes seeds that a float32 can hold.
        seed = int(np.random.default_rng(self.draws).integers(1, 2**24))
        self.draws += 1
        wide = "float64" if dtype == "float64" else "float32"
        return ops.cast(draw_in_runtime(kind, tuple(shape), wide, seed), dtype)


class FixedNoise(NoiseSource):
    """The constants of one call of a model, one draw after the other.

    Each draw has K numbers, or arrays, and each row of the batch gets all of
    them, in its K samples. They depend on the seed and on the place of the
    draw in the call alone, so that every call, every trace and every backend
    has the same ones.

    Args:
        seed: Integer, not negative.
        rows: Integer, the size of the batch, before it is repeated; anything
            else where that is open.
        owner: From a generator of random numbers to the name of the layer that
            has it.
    """

    def __init__(
        self, seed: int, rows: Any, owner: Callable[[Any], str]
    ) -> None:
        super().__init__(owner)
        self.seed = seed
        self.rows = rows

    def draw(
        self,
        kind: str,
        shape: Any,
        generator: Any,
        dtype: str,
        num_samples: int,
        batch_axis: int = 0,
    ) -> Any:
        shape = tuple(shape)
        self._check(shape, generator, num_samples, batch_axis)
        before, after = shape[:batch_axis], shape[batch_axis + 1 :]
        key = np.array([self.seed, self.draws], "uint64")
        self.draws += 1
        numbers = np.random.Generator(np.random.Philox(key=key))
        size = (*before, num_samples, *after)
        values = (
            numbers.standard_normal(size)
            if kind == "normal"
            else numbers.random(size, "float32")
        )
        wide = "float64" if dtype == "float64" else "float32"
        constant = ops.expand_dims(
            ops.convert_to_tensor(values.astype(wide)), batch_axis + 1
        )
        rows = shape[batch_axis] // num_samples
        repeated = ops.broadcast_to(
            constant, (*before, num_samples, rows, *after)
        )
        return ops.cast(ops.reshape(repeated, shape), dtype)

    def _check(
        self, shape: Any, generator: Any, num_samples: int, batch_axis: int
    ) -> None:
        sizes = [size if isinstance(size, int) else None for size in shape]
        others = sizes[:batch_axis] + sizes[batch_axis + 1 :]
        if None in others:
            self._refuse(
                '`noise="fixed"` draws the noise ahead, which takes a shape '
                "that is known, but for the batch: give the inputs of the "
                f"model a size in each axis. {_WAY_OUT} Received: "
                f"layer={self.owner(generator)} with noise of shape "
                f"{tuple(sizes)}"
            )
        size = sizes[batch_axis] if shape else 0
        rows = self.rows if isinstance(self.rows, int) else None
        known = None if rows is None else rows * num_samples
        # An open size was the batch's when the model was tried.
        if size is not None and size != known:
            self._refuse(
                '`noise="fixed"` repeats the noise for every row of the '
                "batch, whose axis must be the first one of the noise. "
                f"{_WAY_OUT} Received: layer={self.owner(generator)} with "
                f"noise of shape {tuple(sizes)}"
            )


def not_ours(layer: str) -> str:
    """What to say of a layer whose noise cannot be drawn ahead."""
    return (
        "Noise that is drawn ahead, and that of ONNX and LiteRT, is what "
        "layers draw with `kcr.random.uniform` and `kcr.random.normal`, and "
        f"nothing else. {_WAY_OUT} Received: layer={layer}"
    )


def rows_of(inputs: Any) -> Any:
    """The size of a batch; no integer where that is open.

    No operation asks for it: converters take one that nothing uses for an
    output.
    """
    first = next(x for x in keras.tree.flatten(inputs) if x is not None)
    return first.shape[0]
