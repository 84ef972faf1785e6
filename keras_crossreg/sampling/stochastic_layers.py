"""Which layers differ from one sampling pass to the next."""

from __future__ import annotations

from typing import Any

import keras

from keras_crossreg._keras import all_layers


def draws(operation: Any) -> bool:
    """Whether two calls in a sampling pass may differ."""
    if not isinstance(operation, keras.layers.Layer):
        return False
    return any(
        is_stochastic(layer) or _has_seed(layer)
        for layer in (operation, *all_layers(operation))
    )


def is_stochastic(layer: keras.layers.Layer) -> bool:
    """Whether a sampling pass through this layer differs from a plain one."""
    return (
        "sampling" in layer.call_signature_parameters
        and not isinstance(layer, keras.Model)
        and bool(getattr(layer, "stochastic", True))
    )


def _has_seed(layer: keras.layers.Layer) -> bool:
    """Of layers that are not Keras's, which draw nothing in inference mode."""
    return type(layer).__module__.split(".")[0] != "keras" and any(
        isinstance(value, keras.random.SeedGenerator)
        for value in vars(layer).values()
    )
