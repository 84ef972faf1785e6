"""Learned values in the order of the network."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

import keras
import numpy as np

from keras_crossreg.rho import human_value
from keras_crossreg.rho import rho_by_key
from keras_crossreg.rho import rho_info
from keras_crossreg.visualization import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_rho_by_layer(
    model: keras.Model, select: Any = None, ax: Axes | None = None
) -> Axes:
    """Draws a bar for each learned value, from the input at the top down.

    The bar of a rho that has a shape is the mean; a line goes from the lowest
    to the highest value. Where values differ by more than a factor of 30,
    points on a logarithmic scale take the place of the bars.

    Args:
        model: A `keras.Model` with rho.
        select: Which rho: a string that their paths contain, or a list of
            paths. Defaults to all. Draw those of one unit together.
        ax: The `matplotlib.axes.Axes` to draw into. Defaults to new ones, of
            the width of a column.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the model has no rho, or nothing is selected.

    Example:

    >>> ax = kcr.visualization.plot_rho_by_layer(model, "noise")
    """
    rho = rho_by_key(model)
    meanings = {path: rho_info(v).meaning for path, v in rho.items()}
    names, meaning = figure.choose(meanings, select)
    values = [np.ravel(human_value(rho[path])) for path in names]
    mean = np.array([value.mean() for value in values])
    low = np.array([value.min() for value in values])
    high = np.array([value.max() for value in values])
    places = np.arange(len(names))
    height = 0.6 + 0.2 * len(names)
    with figure.axes(ax, "plot_rho_by_layer", height) as ax:
        color = figure.COLORS[0]
        if figure.is_wide(values):
            ax.set_xscale("log")
            ax.plot(mean, places, "o", color=color)
            ax.grid(axis="y", color="0.9")
            ax.set_axisbelow(True)
        else:
            ax.barh(places, mean, height=0.7, color=color)
        several = [i for i, value in enumerate(values) if value.size > 1]
        ax.hlines(places[several], low[several], high[several], color="black")
        for place, x, value in zip(places, high, mean, strict=True):
            ax.annotate(
                f"{value:.2g}",
                (x, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
            )
        # The numbers beside the bars need room.
        ax.margins(x=0.15)
        ax.set_yticks(places, list(names.values()))
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.set_xlabel(meaning + (" (mean, range)" if several else ""))
    return ax
