"""Where learned noise settles, in a VGG and in a wide residual network.

Skips of the residual network lead around the noise within its blocks; behind
the first convolution and before the last pooling there is no way around. What
is learned is then taken away in prediction: how much of the function is in the
noise? Batch statistics stay those of training, with noise.

    python examples/paper/architecture.py --scale smoke     # seconds
    python examples/paper/architecture.py                   # 10 minutes
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import matplotlib.pyplot as plt
import numpy as np
from common import CLASSES
from common import SCALES
from common import Columns
from common import Experiment
from common import Results
from common import Row
from common import Scale
from common import convolution
from common import dots
from common import kcr
from common import main
from common import noise
from common import normalizer
from common import probabilities
from common import quick
from common import some

Regularizer = Callable[[int], Any]
LEARNED = "cross-regularized"


@dataclasses.dataclass(frozen=True)
class WideScale(Scale):
    """With a residual network of `6 blocks + 4` layers, `width` times 16."""

    blocks_of_group: int = 1
    width: float = 1


def vgg(experiment: Experiment, regularizer: Regularizer) -> Any:
    return experiment.build(regularizer)


def wide_resnet(experiment: Experiment, regularizer: Regularizer) -> Any:
    """Zagoruyko and Komodakis, 2016, with noise behind the first layer too."""
    scale = experiment.scale
    normalized = normalizer(regularizer)

    def block(x: Any, filters: int, strides: int) -> Any:
        y = convolution(filters, strides=strides)(normalized(x))
        y = convolution(filters)(normalized(y))
        if strides > 1 or x.shape[-1] != filters:
            x = convolution(filters, 1, strides)(x)
        return keras.layers.add([x, y])

    inputs = keras.Input(experiment.train[0].shape[1:])
    x = normalized(convolution(16)(inputs))
    for group in range(3):
        filters = int(scale.width * 16 * 2**group)
        for i in range(scale.blocks_of_group):
            x = block(x, filters, strides=2 if group and not i else 1)
    x = keras.layers.GlobalAveragePooling2D()(normalized(x))
    return kcr.CrossRegModel(inputs, keras.layers.Dense(CLASSES)(x))


def plain(experiment: Experiment, build: Callable[..., Any]) -> Row:
    model = build(experiment, lambda place: None)
    return experiment.row(experiment.fit(model, experiment.everything))


def learned(experiment: Experiment, build: Callable[..., Any]) -> Row:
    model = experiment.cross_regularize(build(experiment, noise))
    row = experiment.row(model)
    # A plain model never samples.
    silent = keras.Model(model.inputs, model.outputs)
    without = experiment.scores(probabilities(silent, experiment.test[0]))
    return row | dict(
        largest=max(row["rho"]),
        silent_accuracy=without["accuracy"],
        silent_nll=without["nll"],
    )


NETWORKS = {"VGG": vgg, "WRN": wide_resnet}
RUNS = {
    f"{name}, {what}": partial(run, build=build)
    for name, build in NETWORKS.items()
    for what, run in (
        ("no regularization", plain),
        (LEARNED, learned),
    )
}
SETTLED: Columns = {
    "largest": ("largest sigma", 2, 1),
    "silent_accuracy": ("noise removed: accuracy, %", 1, 100),
    "silent_nll": ("noise removed: NLL", 3, 1),
}


def is_bypassed(network: str, places: int) -> np.ndarray:
    """Whether a skip leads around a place: of a WRN, all but the ends."""
    inside = np.ones(places, bool)
    inside[[0, -1]] = False
    return inside if network == "WRN" else np.zeros(places, bool)


def by_place(results: Results, runs: list[str]) -> None:
    """Learned sigmas from input to output, mean and range over seeds."""
    networks = [n for n in NETWORKS if f"{n}, {LEARNED}" in runs]
    figure, axes = plt.subplots(
        1, len(networks), figsize=(9, 3.4), squeeze=False, layout="constrained"
    )
    for ax, network in zip(axes[0], networks, strict=True):
        values = results.values(f"{network}, {LEARNED}", "rho")
        places = np.arange(values.shape[-1]) + 1
        bypassed = is_bypassed(network, len(places))
        for inside, color in ((False, "C0"), (True, "C1")):
            chosen = bypassed == inside
            if chosen.any():
                sigma = values[:, chosen]
                ax.bar(places[chosen], sigma.mean(axis=0), color=color)
                ax.vlines(
                    places[chosen],
                    sigma.min(axis=0),
                    sigma.max(axis=0),
                    color="black",
                )
        ax.set_title(network)
        ax.set_xticks(places)
        ax.set_xlabel("place, from the input")
        ax.set_ylabel("learned sigma")
    handles = [plt.Rectangle((0, 0), 1, 1, color=c) for c in ("C0", "C1")]
    figure.legend(
        handles,
        ["no way around", "bypassed by a skip"],
        loc="outside upper center",
        ncols=2,
        frameon=False,
    )


WIDE = {
    "smoke": dict(width=0.25),
    "small": dict(width=1),
    # WRN-16-4: WRN-28-10 would take ten times as long.
    "paper": dict(blocks_of_group=2, width=4),
}


def command(arguments: list[str] | None = None) -> None:
    scales = quick(blocks=SCALES["small"].blocks)
    main(
        __doc__,
        "architecture",
        RUNS,
        arguments,
        columns=some("accuracy", "gap", "nll", "ece") | SETTLED,
        figures={"": dots, "sigmas": by_place},
        scales={
            name: WideScale(**vars(scale), **WIDE[name])
            for name, scale in scales.items()
        },
    )


if __name__ == "__main__":
    command()
