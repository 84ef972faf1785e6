"""What all pictures share: axes, colours and the names of rho."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from collections.abc import Iterator
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colours that colour-blind readers can tell apart (Okabe and Ito, 2008),
#: without the yellow, which is too pale for lines on white.
COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)

# A column of a two-column paper is so many inches wide.
WIDTH = 3.3
LEGEND_LINE = 0.14
# A line of the legend has room for so many letters, at that width.
LEGEND_LETTERS = 40
STYLE: Any = {
    "axes.labelsize": 8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}

# Numbers that differ by more are drawn on a logarithmic scale.
WIDE = 30.0


@contextlib.contextmanager
def axes(ax: Axes | None, name: str, height: float) -> Iterator[Axes]:
    """The axes to draw into: those given, or new ones of column width.

    Other text is smaller than the labels of these axes by an eighth.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f"`{name}` draws with matplotlib. Install it with "
            "`pip install 'keras-crossreg[visualization]'`."
        ) from error
    if ax is None:
        with plt.rc_context(STYLE):
            _, ax = plt.subplots(figsize=(WIDTH, height), layout="constrained")
    size = _text_size(ax)
    style: Any = {
        "font.size": size,
        "legend.fontsize": size,
        "lines.linewidth": 1.2,
        "lines.markersize": 3,
    }
    with plt.rc_context(style):
        yield ax


def whole_epochs(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("Epoch")
    locator = MaxNLocator(nbins=7, steps=[1, 2, 5, 10], integer=True)
    ax.xaxis.set_major_locator(locator)


def _text_size(ax: Any) -> float:
    return 7 / 8 * float(ax.xaxis.label.get_fontsize())


def legend_columns(labels: list[str], ax: Any) -> int:
    """How many labels stand side by side above the axes."""
    # The legend may go from the left axis to the edge of the figure.
    width, size = 0.85 * WIDTH, 7.0
    if ax is not None:
        width = ax.get_window_extent().width / ax.get_figure(root=True).dpi
        size = _text_size(ax)
    # A letter is 0.6 times as wide as high, line and gaps are 3 times.
    widths = [(0.6 * len(label) + 3) * size / 72 for label in labels]
    for columns in range(len(labels), 1, -1):
        if sum(map(max, np.array_split(widths, columns))) <= width:
            return columns
    return 1


def legend_above(ax: Axes, is_new: bool) -> None:
    """Where it covers nothing."""
    handles, labels = ax.get_legend_handles_labels()
    columns = legend_columns(labels, None if is_new else ax)
    ax.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        frameon=False,
        borderaxespad=0.2,
        columnspacing=1.0,
        handlelength=1.5,
        handletextpad=0.5,
    )


def is_wide(values: Iterable[Any]) -> bool:
    """Whether positive numbers differ by more than a linear scale shows."""
    numbers = np.concatenate([np.ravel(value) for value in values])
    numbers = numbers[np.isfinite(numbers)]
    return bool(
        numbers.size
        and numbers.min() > 0
        and numbers.max() > WIDE * numbers.min()
    )


def choose(meanings: dict[str, str], select: Any) -> tuple[dict[str, str], str]:
    """The rho to draw: their names by path, and what the axis measures.

    Raises:
        ValueError: If there are none.
    """
    if select is None:
        paths = list(meanings)
    elif isinstance(select, str):
        paths = [path for path in meanings if select in path]
    else:
        paths = [path for path in meanings if path in set(select)]
    if not paths:
        raise ValueError(
            f"There is no such rho to draw; there are {list(meanings)}. "
            f"Received: select={select}"
        )
    names = {path: path.rpartition("/")[0] or path for path in paths}
    if len(set(names.values())) < len(names):
        names = {path: path for path in paths}
    common = {meanings[path] for path in paths}
    if len(common) == 1:
        meaning = common.pop() or "learned value"
        return names, meaning[0].upper() + meaning[1:]
    # Rho of several kinds each say what they mean.
    layers = [path.rpartition("/")[0] for path in paths]
    names = {
        path: f"{layer}: {meanings[path] or path.rpartition('/')[2]}"
        for path, layer in zip(paths, layers, strict=True)
    }
    return names, "Learned value"
