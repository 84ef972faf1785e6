"""Learned values over the epochs."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from keras_crossreg.callbacks.rho_history import RhoHistory
from keras_crossreg.visualization import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_rho_history(
    history: RhoHistory, select: Any = None, ax: Axes | None = None
) -> Axes:
    """Draws learned values over the epochs, from the start value at epoch 0.

    A line for each rho; for one that has a shape the mean, in a band from the
    lowest to the highest value. Up to seven have a colour each; more are
    coloured by their order in the network. The scale is logarithmic where
    values differ by more than a factor of 30.

    Args:
        history: A `kcr.callbacks.RhoHistory` that was passed to `fit`.
        select: Which rho: a string that their paths contain, or a list of
            paths. Defaults to all. Draw those of one unit together.
        ax: The `matplotlib.axes.Axes` to draw into. Defaults to new ones, of
            the width of a column.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If `history` is empty, or nothing is selected.

    Example:

    >>> rho_history = kcr.callbacks.RhoHistory()
    >>> model.fit(
    ...     x_train, y_train, reg_data=(x_reg, y_reg), epochs=20,
    ...     callbacks=[rho_history],
    ... )
    >>> ax = kcr.visualization.plot_rho_history(rho_history, "noise")
    >>> ax.figure.savefig("noise.pdf")
    """
    values = history.history
    if not values:
        raise ValueError(
            "Expected a `RhoHistory` that a call of `fit` has filled, of a "
            f"model with rho. Received: history={history}"
        )
    names, meaning = figure.choose(history.meanings, select)
    epochs = np.concatenate([[history.epochs[0]], history.epochs + 1])
    curves, labels = [], []
    for path, name in names.items():
        curve = values[path]
        if path in history.start:
            curve = np.concatenate([[history.start[path]], curve])
        curve = curve.reshape(len(curve), -1)
        curves.append(curve)
        labels.append(f"{name} (mean, range)" if curve.shape[1] > 1 else name)
    many = len(curves) > len(figure.COLORS)
    columns = figure.legend_columns(labels, ax)
    if columns == 1 and ax is None:
        labels = [
            textwrap.fill(label, figure.LEGEND_LETTERS) for label in labels
        ]
    rows = sum(label.count("\n") + 1 for label in labels)
    lines = 0 if many else rows / columns
    height = 2.1 + figure.LEGEND_LINE * lines
    is_new = ax is None
    with figure.axes(ax, "plot_rho_history", height) as ax:
        colors = _by_order(ax, len(curves)) if many else list(figure.COLORS)
        for curve, label, color in zip(curves, labels, colors, strict=False):
            at = epochs[-len(curve) :]
            ax.plot(at, curve.mean(axis=1), color=color, label=label)
            if curve.shape[1] > 1:
                low, high = curve.min(axis=1), curve.max(axis=1)
                ax.fill_between(
                    at, low, high, color=color, alpha=0.2, linewidth=0
                )
        figure.whole_epochs(ax)
        ax.set_ylabel(meaning)
        if figure.is_wide(curves):
            ax.set_yscale("log")
        elif min(curve.min() for curve in curves) >= 0:
            ax.set_ylim(bottom=0)
        if not many:
            figure.legend_above(ax, is_new)
    return ax


def _by_order(ax: Any, number: int) -> list[Any]:
    """A colour for each rho, and a bar that shows their order."""
    import matplotlib as mpl

    colors = mpl.colormaps["viridis"](np.linspace(0, 0.9, number))
    scale = mpl.cm.ScalarMappable(
        mpl.colors.BoundaryNorm(np.arange(number + 1) + 0.5, number),
        mpl.colors.ListedColormap(colors),
    )
    bar = ax.get_figure().colorbar(scale, ax=ax, pad=0.02)
    bar.set_ticks([1, number], labels=["first", "last"], rotation=90)
    bar.ax.get_yticklabels()[0].set_verticalalignment("bottom")
    bar.ax.get_yticklabels()[1].set_verticalalignment("top")
    bar.ax.tick_params(which="both", length=0)
    bar.set_label("Order in the network", labelpad=-2)
    return list(colors)
