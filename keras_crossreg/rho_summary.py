"""The table of what was learned."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_crossreg._keras import all_layers
from keras_crossreg.regularizers.level_sets import level_set_of
from keras_crossreg.rho import human_value
from keras_crossreg.rho import rho_info
from keras_crossreg.rho import rho_variables_of
from keras_crossreg.text_table import print_table


def print_rho_summary(
    model: keras.Model, line_length: int | None = None, print_fn: Any = None
) -> None:
    """Prints layer, meaning, start value and value now of every rho.

    As `model.summary()` does: straight to the console, which in a notebook
    shows a rich table; with `print_fn` as plain text.
    """
    rows = []
    for layer, variable in _rho_by_layer(model):
        info = rho_info(variable)
        rows.append(
            (
                f"{layer.name} ({type(layer).__name__})",
                info.meaning or variable.name,
                "-" if info.start is None else _format(info.start),
                _format(human_value(variable)),
            )
        )
    print_table(
        f'Rho of model: "{model.name}"',
        {
            "Layer (type)": "left",
            "Meaning": "left",
            "Start": "right",
            "Now": "right",
        },
        rows,
        "No rho in this model.",
        line_length,
        print_fn,
    )


def _rho_by_layer(model: keras.Model) -> list[tuple[Any, keras.Variable]]:
    """Each rho with the innermost layer that owns it."""
    owners: dict[int, Any] = {}
    for layer in [model, *all_layers(model)]:
        for variable in layer.weights:
            # Sublayers come after the layers that hold them.
            owners[id(variable)] = layer
            level_set = level_set_of(variable)
            if level_set is not None:
                owners[id(level_set.rho)] = layer
    return [(owners[id(v)], v) for v in rho_variables_of(model)]


def _format(value: Any) -> str:
    """A number, or range and size of several."""
    array = np.asarray(value)
    if array.size == 1:
        return f"{array.item():.4g}"
    return (
        f"{array.mean():.4g} ({array.min():.3g} to {array.max():.3g}, "
        f"{array.size} values)"
    )
