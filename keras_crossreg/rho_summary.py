"""The table of what was learned."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

# Keras prints `model.summary()` with rich, and brings it.
import rich.box
import rich.console
import rich.markup
import rich.table

from keras_crossreg._keras import all_layers
from keras_crossreg.regularizers.level_sets import level_set_of
from keras_crossreg.rho import human_value
from keras_crossreg.rho import rho_info
from keras_crossreg.rho import rho_variables_of


def print_rho_summary(
    model: keras.Model, line_length: int | None = None, print_fn: Any = None
) -> None:
    """Prints layer, meaning, start value and value now of every rho.

    As `model.summary()` does: straight to the console, which in a notebook
    shows a rich table; with `print_fn` as plain text.
    """
    table = rich.table.Table(
        title=f'Rho of model: "{rich.markup.escape(model.name)}"',
        title_justify="left",
        title_style="bold",
        box=rich.box.HEAVY_HEAD,
        show_lines=True,
    )
    for name, justify in (
        ("Layer (type)", "left"),
        ("Meaning", "left"),
        ("Start", "right"),
        ("Now", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for layer, variable in _rho_by_layer(model):
        info = rho_info(variable)
        table.add_row(
            rich.markup.escape(f"{layer.name} ({type(layer).__name__})"),
            rich.markup.escape(info.meaning or variable.name),
            "-" if info.start is None else _format(info.start),
            _format(human_value(variable)),
        )
    console = rich.console.Console(
        highlight=False,
        width=line_length or (80 if print_fn else None),
        # `print_fn` gets plain text.
        force_jupyter=False if print_fn else None,
        color_system=None if print_fn else "auto",
    )
    if print_fn:
        console.begin_capture()
    console.print(table)
    if not table.row_count:
        console.print("No rho in this model.")
    if print_fn:
        print_fn(console.end_capture())


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
