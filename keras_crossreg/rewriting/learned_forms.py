"""What becomes of a layer that regularizes: a layer that learns its strength.

Or a reason why the layer is left as it is.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from keras_crossreg.layers.gaussian_noise_scale import GaussianNoiseScale
from keras_crossreg.layers.learned_dropout import LearnedDropout
from keras_crossreg.layers.learned_gaussian_dropout import (
    LearnedGaussianDropout,
)


@dataclasses.dataclass(frozen=True)
class Learned:
    """What learns, the value that it starts at, and what is to say of it."""

    by: Any
    start: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Left:
    """Why something is left as it is."""

    reason: str


Form = Learned | Left | None

SPATIAL = (
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)
# Layers that draw in training, by the attribute of their strength.
STRENGTHS = {
    keras.layers.Dropout: "rate",
    **dict.fromkeys(SPATIAL, "rate"),
    keras.layers.GaussianDropout: "rate",
    keras.layers.GaussianNoise: "stddev",
}
ZERO = "a strength of 0 draws nothing, which teaches nothing"


def same_place(layer: Any) -> dict[str, Any]:
    """Arguments of a layer that takes the place of another."""
    return {"name": layer.name, "dtype": layer.dtype_policy}


def noise_form(layer: Any, shape: Any) -> Form:
    """The form of a layer that multiplies by noise, or adds it.

    Args:
        layer: Any layer.
        shape: The shape of its inputs; `None` where that is not known.

    Returns:
        `None` where the layer is none of these.
    """
    if isinstance(layer, keras.layers.AlphaDropout):
        return Left(
            "its noise keeps the mean and the variance of a self-normalizing "
            "network, for which there is no learned layer"
        )
    if isinstance(layer, keras.layers.ActivityRegularization):
        return Left("a penalty on outputs is in no forward pass to learn from")
    known: Any = tuple(STRENGTHS)
    if not isinstance(layer, known):
        return None
    kind = type(layer)
    if kind not in STRENGTHS:
        return Left("its class is not Keras's own, and may do something else")
    strength = getattr(layer, STRENGTHS[kind])
    if strength == 0:
        return Left(ZERO)
    arguments = {**same_place(layer), "seed": layer.seed}
    if kind is keras.layers.GaussianNoise:
        noise = GaussianNoiseScale(strength, **arguments)
        return Learned(noise, f"sigma {strength:.4g}")
    if strength == 1:
        return Left("at a rate of 1 nothing passes, and no gradient either")
    start = f"rate {strength:.4g}"
    if kind is keras.layers.GaussianDropout:
        return Learned(LearnedGaussianDropout(strength, **arguments), start)
    noise_shape = _noise_shape(layer)
    reason = _misfit(noise_shape, shape)
    if reason:
        return Left(reason)
    dropout = LearnedDropout(strength, noise_shape=noise_shape, **arguments)
    return Learned(dropout, start)


def _noise_shape(layer: Any) -> tuple[int | None, ...] | None:
    """What shares a mask, as `LearnedDropout` takes it."""
    if isinstance(layer, SPATIAL):
        rank = layer.input_spec.ndim
        inner = (1,) * (rank - 2)
        if getattr(layer, "data_format", None) == "channels_first":
            return (None, None, *inner)
        return (None, *inner, None)
    shape: tuple[int | None, ...] | None = layer.noise_shape
    if shape is None or shape[0] == 1:
        return shape
    # A batch size, which Keras asks for, says no more than `None`.
    return (None, *shape[1:])


def _misfit(noise_shape: Any, shape: Any) -> str:
    if noise_shape is None:
        return ""
    if noise_shape[0] == 1:
        return (
            f"its `noise_shape` {noise_shape} gives all examples one mask; "
            "the samples of an example, which are averaged, need their own"
        )
    if shape is not None and len(shape) != len(noise_shape):
        return (
            f"its `noise_shape` {noise_shape} is not of the rank of its "
            f"inputs, {tuple(shape)}"
        )
    return ""
