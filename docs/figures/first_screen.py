"""Makes the picture of the README: what is learned, and what it gives.

The scores are those of `benchmarks/results`, of the survey of docs/defaults.md;
what is learned is of one run, seed 0. Run from the root of the repository:

    python docs/figures/first_screen.py
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
from typing import Any

# Before TensorFlow, which is talkative.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")

HERE = pathlib.Path(__file__).parent
BENCHMARKS = HERE.parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import keras
import matplotlib.pyplot as plt
import numpy as np
from comparison.data import TASKS
from comparison.runs import Training

import keras_crossreg as kcr

TASK, OURS = "affairs", "ours=learn+finish"
RUNS = {
    "plain": "no regularization",
    "dropout=0.1": "dropout .1",
    "dropout=0.25": "dropout .25",
    "dropout=0.5": "dropout .5",
    "tuner": "search, 20 trials",
    OURS: "learned, 1 run",
}
SCORES = {
    "accuracy": ("Test accuracy, %", 100, "{:.1f}"),
    "nll": ("Test NLL", 1, "{:.3f}"),
    "ece": ("Calibration error (ECE)", 1, "{:.3f}"),
}
BLUE, GREY = "#0072B2", "0.45"


class Recorded(Training):
    """What `benchmarks/tasks.py` trains, with a record of rho."""

    record = kcr.callbacks.RhoHistory()

    def fit(self, *args: Any, **options: Any) -> None:
        super().fit(*args, callbacks=[self.record], **options)


def scores_of(run: str, name: str) -> np.ndarray:
    """Of seeds 0, 1 and 2."""
    found = {}
    lines = (BENCHMARKS / "results" / "tasks.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        if (row["task"], row["run"]) == (TASK, run):
            found[row["seed"]] = row[name]
    return np.array([found[seed] for seed in (0, 1, 2)])


def draw_learned(ax: plt.Axes) -> None:
    keras.utils.set_random_seed(0)
    task = TASKS[TASK](0)
    training = Recorded(task, 0)
    training.learned("learn", "finish")
    history = training.record.history
    for i, (values, color) in enumerate(
        zip(history.values(), kcr.visualization.figure.COLORS, strict=False)
    ):
        curve = [training.record.start[list(history)[i]], *values]
        ax.plot(curve, color=color, lw=2, label=f"layer {i + 1}")
    half = task.epochs // 2
    ax.axvspan(half, task.epochs, color="0.93", zorder=0)
    ax.text(
        1.5 * half,
        0.04,
        "finish",
        transform=ax.get_xaxis_transform(),
        ha="center",
        color="0.35",
    )
    ax.set_ylim(bottom=0)
    ax.set_xlabel("Epoch")
    ax.set_title("Rates of dropout, learned")
    ax.legend(frameon=False, loc="lower left")


def draw_scores(ax: plt.Axes, name: str) -> None:
    title, factor, form = SCORES[name]
    for place, run in enumerate(RUNS):
        values = factor * scores_of(run, name)
        mean = values.mean()
        error = values.std(ddof=1) / len(values) ** 0.5
        color = BLUE if run == OURS else GREY
        ax.errorbar(
            mean, place, xerr=error, fmt="o", color=color, ms=8, capsize=4
        )
        ax.annotate(
            form.format(mean),
            (mean, place),
            (0, 8),
            textcoords="offset points",
            ha="center",
            color=color,
            fontsize=9,
        )
    ax.set_yticks(range(len(RUNS)), [])
    ax.set_ylim(len(RUNS) - 0.6, -0.7)
    ax.margins(x=0.14)
    ax.set_title(title)
    ax.grid(axis="x", alpha=0.3)


def main() -> None:
    figure, axes = plt.subplots(
        1,
        4,
        figsize=(12, 3.5),
        layout="constrained",
        width_ratios=[1.3, 1, 1, 1],
    )
    draw_learned(axes[0])
    for ax, name in zip(axes[1:], SCORES, strict=True):
        draw_scores(ax, name)
    axes[1].set_yticklabels(RUNS.values())
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "first_screen.png", dpi=120)


if __name__ == "__main__":
    main()
