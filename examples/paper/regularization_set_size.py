"""How much data regularization needs, and how many rho it can carry.

Of one amount of data, 0.5 to 20 % are the regularization set and the rest is
trained on; with a sigma for every layer, channel or unit. The paper's bound on
what rho lose to a small set grows with their number k over the size m of the
set, as sqrt(k / m). Without regularization, all of the data are trained on.

    python examples/paper/regularization_set_size.py --scale smoke  # seconds
    python examples/paper/regularization_set_size.py                # 20 minutes
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from common import COLUMNS
from common import THIN
from common import Columns
from common import Experiment
from common import Results
from common import Row
from common import kcr
from common import main
from common import mean_and_error
from common import quick
from common import some

PARTS = (0.5, 1, 5, 20)
PER = ("layer", "channel", "unit")
BASELINE = "no regularization"


def name_of(part: float, per: str) -> str:
    return f"{part:g} %, a sigma per {per}"


def divided(experiment: Experiment, part: float) -> Experiment:
    """The same data, divided otherwise."""
    scale, total = experiment.scale, len(experiment.everything[0])
    reg = round(total * part / 100)
    scale = dataclasses.replace(scale, train=total - reg, reg=reg)
    return Experiment(scale, experiment.seed, experiment.name)


def noise_per(experiment: Experiment, per: str) -> Callable[[int], Any]:
    def noise(place: int) -> kcr.layers.GaussianNoiseScale:
        is_dense = place == experiment.places - 1
        unit = -1 if is_dense else (1, 2, 3)
        axis = {"layer": None, "channel": -1, "unit": unit}[per]
        return kcr.layers.GaussianNoiseScale(axis=axis)

    return noise


def plain(experiment: Experiment) -> Row:
    model = experiment.fit(experiment.build(), experiment.everything)
    return experiment.row(model)


def learned(experiment: Experiment, part: float, per: str) -> Row:
    experiment = divided(experiment, part)
    model = experiment.build(noise_per(experiment, per))
    row = experiment.row(experiment.cross_regularize(model))
    number = sum(np.size(value) for value in model.get_rho().values())
    return row | dict(number=number, reg=experiment.scale.reg)


RUNS: dict[str, Callable[[Experiment], Row]] = {BASELINE: plain} | {
    name_of(part, per): partial(learned, part=part, per=per)
    for per in PER
    for part in PARTS
}
SIZES: Columns = {
    "number": ("rho", 0, 1),
    "reg": ("regularization images", 0, 1),
}


def by_part(results: Results, runs: list[str]) -> None:
    """Scores over the part of the data, a line for each number of rho."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained")
    for ax, column in zip(axes, ("accuracy", "nll", "ece"), strict=True):
        title, _, factor = COLUMNS[column]
        for per in PER:
            parts = [p for p in PARTS if name_of(p, per) in runs]
            points = [
                mean_and_error(
                    factor * results.values(name_of(part, per), column)
                )
                for part in parts
            ]
            mean, error = np.reshape(points, (-1, 2)).T
            label = f"a sigma per {per}"
            ax.errorbar(parts, mean, yerr=error, fmt="o-", label=label)
        baseline = factor * results.values(BASELINE, column)
        if len(baseline):
            line = baseline.mean()
            ax.axhline(line, color="0.35", ls="--", label=BASELINE)
        ax.set_xscale("log")
        ax.set_xticks(PARTS, [f"{part:g}" for part in PARTS], minor=False)
        ax.minorticks_off()
        ax.set_xlabel("regularization set, % of the data")
        ax.set_ylabel(title)
        ax.grid(alpha=0.3)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=4,
        frameon=False,
    )


def command(arguments: list[str] | None = None) -> None:
    main(
        __doc__,
        "regularization_set_size",
        RUNS,
        arguments,
        columns=SIZES | some("accuracy", "gap", "nll", "ece"),
        figures={"": by_part},
        scales=quick(blocks=THIN),
    )


if __name__ == "__main__":
    command()
