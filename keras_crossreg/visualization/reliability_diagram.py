"""How often what was predicted happened."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

import numpy as np
from keras import ops

from keras_crossreg.metrics.expected_calibration_error import confidences
from keras_crossreg.metrics.probabilities import standardize
from keras_crossreg.visualization import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_reliability_diagram(
    y_true: Any,
    y_pred: Any,
    num_bins: int = 15,
    equal_mass: bool = False,
    from_logits: bool = False,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws accuracy over confidence, with the expected calibration error.

    A point for each bin, at the mean confidence and the accuracy of its
    examples, with the 95 % interval of Wilson. On the dashed line the two are
    equal; below it the model is too sure of itself. Bars at the bottom are the
    share of the examples in bins of equal width. With two classes, how often
    the second happened, over its predicted probability.

    Call it again with the same `ax` and another `label` to compare models.

    Args:
        y_true: Labels: integers `(n,)` or `(n, 1)`, or one-hot `(n, classes)`.
        y_pred: Predictions `(n, classes)`, or of the second of two classes,
            `(n, 1)` or `(n,)`.
        num_bins: Integer, at least 1. Defaults to `15`.
        equal_mass: Boolean. Bins of equal width if `False`, the default; if
            `True`, of equally many examples.
        from_logits: Boolean, whether `y_pred` are logits. Defaults to `False`,
            probabilities.
        label: String for the legend, before the error. Defaults to none.
        ax: The `matplotlib.axes.Axes` to draw into. Defaults to new ones, of
            the width of a column.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If `num_bins` is below 1; if `y_pred` are not
            probabilities, or `y_true` not labels.

    Example:

    >>> ax = kcr.visualization.plot_reliability_diagram(
    ...     y_test, model.predict(x_test)
    ... )

    Reference:

    - [Guo et al., 2017](https://arxiv.org/abs/1706.04599), section 2.
    - Wilson, 1927, Probable inference, the law of succession, and statistical
      inference.
    """
    if num_bins < 1:
        raise ValueError(
            "`num_bins` must be an integer of 1 or more. "
            f"Received: num_bins={num_bins}"
        )
    y, scores, _, _ = standardize(
        y_true, y_pred, None, from_logits, "plot_reliability_diagram"
    )
    p = ops.softmax(scores) if from_logits else scores
    two = p.shape[-1] == 2
    hit, confidence = (
        ops.convert_to_numpy(a)[:, 0].astype("float64")
        for a in confidences(y, p)
    )
    edges = np.linspace(0, 1, num_bins + 1)
    if equal_mass:
        edges[1:-1] = np.quantile(confidence, edges[1:-1])
    place = np.searchsorted(edges[1:-1], confidence, side="right")
    count = np.bincount(place, minlength=num_bins)
    total = np.maximum(count, 1)
    accuracy = np.bincount(place, hit, num_bins) / total
    expected = np.bincount(place, confidence, num_bins) / total
    error = float(count @ np.abs(accuracy - expected) / count.sum())
    low, high = _wilson(accuracy, total)
    some = count > 0
    is_new = ax is None
    with figure.axes(ax, "plot_reliability_diagram", figure.WIDTH) as ax:
        before = len(ax.get_legend_handles_labels()[0])
        color = figure.COLORS[before % len(figure.COLORS)]
        if not before:
            ax.plot([0, 1], [0, 1], "--", color="0.6", linewidth=1, zorder=1)
        ylabel = "Observed frequency" if two else "Accuracy"
        if not equal_mass:
            ylabel += "; bars: share of examples"
            ax.bar(
                edges[:-1],
                count / count.sum(),
                np.diff(edges),
                align="edge",
                color=color,
                alpha=0.25,
                linewidth=0,
            )
        ax.errorbar(
            expected[some],
            accuracy[some],
            yerr=np.stack([accuracy - low, high - accuracy])[:, some],
            color=color,
            elinewidth=0.7,
            marker="osD^v"[before % 5],
            label=f"{label}: ECE {error:.3f}" if label else f"ECE {error:.3f}",
        )
        ax.set(
            xlim=(0, 1),
            ylim=(0, 1.02),
            xlabel="Predicted probability" if two else "Confidence",
            ylabel=ylabel,
        )
        figure.legend_above(ax, is_new)
    return ax


def _wilson(share: np.ndarray, count: np.ndarray) -> Any:
    """The interval for a share that 95 % of repetitions would cover."""
    z = 1.96
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    half /= 1 + z**2 / count
    # Rounding must not take the part beyond the share.
    return np.minimum(middle - half, share), np.maximum(middle + half, share)
