"""Predictions of noise that is drawn ahead: which models can make them."""

from __future__ import annotations

import contextlib
import zlib
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_crossreg._keras import all_layers
from keras_crossreg._keras import get_input_signature
from keras_crossreg.noise_source import FixedNoise
from keras_crossreg.noise_source import NoiseRefused
from keras_crossreg.noise_source import RuntimeNoise
from keras_crossreg.noise_source import not_ours
from keras_crossreg.noise_source import rows_of
from keras_crossreg.random import noise_from
from keras_crossreg.sampling.row_probe import random_inputs
from keras_crossreg.sampling.row_probe import random_numbers

# How noise is drawn: anew in every call, or once, ahead.
NOISE = ("random", "fixed")


def seed_of(seeds: list[keras.Variable]) -> int:
    """A seed that follows from the states of random generators."""
    states = [np.asarray(ops.convert_to_numpy(v.value)) for v in seeds]
    return zlib.crc32(b"".join(state.tobytes() for state in states))


def fixed_noise_of(
    model: keras.Model, seed: int, inputs: Any
) -> contextlib.AbstractContextManager[None]:
    """Calls of the model within have the noise of this seed."""
    return noise_from(
        FixedNoise(
            seed, rows_of(inputs), lambda drawn: _owner(model, drawn.state)
        )
    )


def runtime_noise_of(
    model: keras.Model,
) -> contextlib.AbstractContextManager[None]:
    """What is traced within draws when it runs, by what runs it."""
    return noise_from(RuntimeNoise(lambda drawn: _owner(model, drawn.state)))


def example_inputs(model: keras.Model) -> Any:
    """Inputs of two rows, of random numbers; `None` where none are known."""
    inputs = random_inputs(model)
    if inputs is not None:
        return inputs
    try:
        signature = get_input_signature(model)
    except ValueError:
        return None
    if not isinstance(signature, (list, tuple)) or len(signature) != 1:
        return None
    return tree.map_structure(
        lambda spec: random_numbers(spec, 2), signature[0]
    )


def check_can_be_fixed(
    model: keras.Model, predict: Any, inputs: Any, seeds: list[keras.Variable]
) -> None:
    """Refuses models with noise that cannot be drawn ahead.

    Args:
        model: The model.
        predict: From inputs to predictions with the noise drawn ahead.
        inputs: Inputs of the model.
        seeds: The states of random generators, which it leaves as they were.

    Raises:
        ValueError: If a layer draws noise by itself.
    """
    before = [ops.convert_to_numpy(v.value) for v in seeds]
    first, second = predict(inputs), predict(inputs)
    moved = [
        v
        for v, old in zip(seeds, before, strict=True)
        if not np.array_equal(ops.convert_to_numpy(v.value), old)
    ]
    for variable, old in zip(seeds, before, strict=True):
        variable.assign(old)
    if moved:
        raise NoiseRefused(not_ours(_owner(model, moved[0])))
    for pair in zip(tree.flatten(first), tree.flatten(second), strict=True):
        a, b = (ops.convert_to_numpy(ops.cast(y, "float32")) for y in pair)
        if not np.allclose(a, b, rtol=1e-3, atol=1e-6, equal_nan=True):
            raise NoiseRefused(
                not_ours(
                    f"one of {model.name}, whose predictions differ from call "
                    "to call"
                )
            )


def _owner(model: keras.Model, state: Any) -> str:
    """The innermost layer that has a generator, by its path."""
    owners = [
        layer
        for layer in all_layers(model)
        if any(v is state for v in layer.variables)
    ]
    if not owners:
        return str(model.name)
    return str(min(owners, key=lambda layer: len(layer.variables)).path)


def has_numbers(x: Any) -> bool:
    """Whether a tensor has numbers: symbolic ones, and traces, have none."""
    if isinstance(x, keras.KerasTensor):
        return False
    try:
        ops.convert_to_numpy(x)
    except (NotImplementedError, TypeError, ValueError):
        return x is None
    return True
