"""Moving averages of batch normalization, where theta have been moved."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_crossreg._keras import all_layers

#: Batches that the averages are measured on.
NUM_BATCHES = 8


def moving_normalizations(layers: Iterable[Any]) -> list[Any]:
    """The batch normalizations whose moving averages follow theta."""
    return [
        layer
        for layer in layers
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable
        and layer.momentum < 1
    ]


def measure(
    model: Any, call: Callable[[Any], None], batches: Iterable[Any]
) -> None:
    """Sets the moving averages to the means over some batches.

    Theta that a `fit` has not moved by itself leave them behind, and they
    forget as slowly as they do. Nothing else of the model moves.

    Args:
        model: Any model.
        call: Calls it in training mode, on a batch.
        batches: What it is called on.
    """
    layers = moving_normalizations(all_layers(model))
    if not layers:
        return
    averages = [v for la in layers for v in la.non_trainable_variables]
    measured = {id(v) for v in averages}
    others = [
        v
        for v in [
            *model.variables,
            *model.metrics_variables,
            *model.moving_variables,
        ]
        if id(v) not in measured
    ]
    before = [ops.copy(v.value) for v in others]
    momenta = [layer.momentum for layer in layers]
    sums, count = [np.zeros(()) for _ in averages], 0
    try:
        for layer in layers:
            layer.momentum = 0.0
        for batch in batches:
            call(batch)
            count += 1
            for i, average in enumerate(averages):
                sums[i] = sums[i] + ops.convert_to_numpy(average.value)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for variable, value in zip(others, before, strict=True):
            variable.assign(value)
    for average, total in zip(averages, sums, strict=True):
        average.assign(total / count)
