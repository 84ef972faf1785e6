"""The table of what was learned."""

from __future__ import annotations

import textwrap
from typing import Any

import keras
import numpy as np

from keras_crossreg._keras import all_layers
from keras_crossreg.regularizers.level_sets import level_set_of
from keras_crossreg.rho import course_of
from keras_crossreg.rho import human_value
from keras_crossreg.rho import rho_info
from keras_crossreg.rho import rho_variables_of
from keras_crossreg.text_table import print_table

_BARS = "▁▂▃▄▅▆▇█"
_MOST_BARS, _MOST_LETTERS = 12, 15


def print_rho_summary(
    model: keras.Model, line_length: int | None = None, print_fn: Any = None
) -> None:
    """Prints layer, meaning, start value and value now of every rho.

    Also its course over the epochs, where a `RhoHistory` saw it, and what the
    value means, where the layer says so.

    As `model.summary()` does: straight to the console, which in a notebook
    shows a rich table; with `print_fn` as plain text.
    """
    columns = {
        "Layer (type)": "left",
        "Meaning": "left",
        "Start": "right",
        "Now": "right",
        "Course": "left",
        "In words": "left",
    }
    rows = []
    for layer, variable in _rho_by_layer(model):
        info = rho_info(variable)
        value = human_value(variable)
        explain = getattr(layer, "in_words", None)
        rows.append(
            (
                f"{layer.name} ({type(layer).__name__})",
                info.meaning or variable.name,
                "-" if info.start is None else _format(info.start),
                _format(value),
                _sparkline(course_of(variable)),
                _wrapped(explain(float(np.mean(value))) if explain else ""),
            )
        )
    # The last two are there where they say something.
    shown = [
        i for i in range(len(columns)) if i < 4 or any(row[i] for row in rows)
    ]
    names = list(columns)
    print_table(
        f'Rho of model: "{model.name}"',
        {names[i]: columns[names[i]] for i in shown},
        [tuple(row[i] for i in shown) for row in rows],
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


def _wrapped(words: str) -> str:
    """Lines so short that the other columns keep their width."""
    return textwrap.fill(words, _MOST_LETTERS)


def _sparkline(course: list[float]) -> str:
    """A bar for each value, or for some of them; the lowest bar is at 0."""
    if len(course) < 2 or not np.isfinite(course).all():
        return ""
    count = min(len(course), _MOST_BARS)
    places = np.linspace(0, len(course) - 1, count).round().astype(int)
    values = np.asarray(course)[places]
    low = min(0.0, values.min())
    height = (values - low) / ((values.max() - low) or 1.0)
    return "".join(_BARS[i] for i in (height * 7).round().astype(int))


def _format(value: Any) -> str:
    """A number, or range and size of several."""
    array = np.asarray(value)
    if array.size == 1:
        return f"{array.item():.4g}"
    return (
        f"{array.mean():.4g} ({array.min():.3g} to {array.max():.3g}, "
        f"{array.size} values)"
    )
