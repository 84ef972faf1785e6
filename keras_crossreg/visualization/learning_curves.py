"""Training, regularization and validation curves."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from keras_crossreg.visualization import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# These three colours differ in print too.
_CURVES = (
    ("", "training", "-", figure.COLORS[0]),
    ("reg_", "regularization", "--", figure.COLORS[1]),
    ("val_", "validation", ":", figure.COLORS[6]),
)


def plot_learning_curves(
    history: Any, metric: str = "loss", ax: Axes | None = None
) -> Axes:
    """Draws a loss or a metric on the three sets of data, over the epochs.

    The scale is logarithmic where values differ by more than a factor of 30.

    Args:
        history: What `fit` returned, or its `history` dict.
        metric: String, a name in it, without `reg_` or `val_`. Defaults to
            `"loss"`.
        ax: The `matplotlib.axes.Axes` to draw into. Defaults to new ones, of
            the width of a column.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no such metric.

    Example:

    >>> history = model.fit(
    ...     x_train, y_train, reg_data=(x_reg, y_reg), epochs=20
    ... )
    >>> ax = kcr.visualization.plot_learning_curves(history, "accuracy")
    """
    logs: dict[str, Any] = getattr(history, "history", history)
    curves = [
        (np.asarray(logs[prefix + metric], "float64"), label, style, color)
        for prefix, label, style, color in _CURVES
        if prefix + metric in logs
    ]
    if not curves:
        raise ValueError(
            f"There is no such metric in the history; there are {list(logs)}. "
            f"Received: metric={metric}"
        )
    is_new = ax is None
    with figure.axes(ax, "plot_learning_curves", 2.3) as ax:
        for values, label, style, color in curves:
            ax.plot(
                np.arange(len(values)) + 1,
                values,
                style,
                color=color,
                label=label,
                # A line through one point would not be seen.
                marker="o" if len(values) == 1 else None,
            )
        figure.whole_epochs(ax)
        name = metric.replace("_", " ")
        ax.set_ylabel(name[0].upper() + name[1:])
        if figure.is_wide(values for values, *_ in curves):
            ax.set_yscale("log")
        figure.legend_above(ax, is_new)
    return ax
