"""Learned noise against none, fixed noise, and noise that was searched for.

The paper's main experiment: a VGG on CIFAR-10 without augmentation, a small
one at the scale "small", VGG-16 at "paper". The search is KerasTuner's, at
random, for one sigma, by the NLL on the regularization set. Population based
training is Ray Tune's, for a sigma per layer, by the same NLL every second
epoch; its best member is scored as it is at the end. What has no use for a
regularization set is trained on it too. The gap is that of the accuracy
between training and test images, the noise averaged in both predictions.

    pip install 'keras-crossreg[tensorflow,examples,search]'
    python examples/paper/noise.py --scale smoke    # seconds
    python examples/paper/noise.py                  # half an hour
    python examples/paper/noise.py --scale paper    # a GPU: no search there
"""

from __future__ import annotations

import pathlib
import sys
import tempfile
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from common import SCALES
from common import Experiment
from common import Results
from common import Row
from common import clock
from common import dots
from common import kcr
from common import main
from common import noise
from common import quick
from common import some
from common import usual_dropout

try:
    import keras_tuner
except ImportError as error:
    if "paper" not in sys.argv:
        raise SystemExit(
            "The search needs KerasTuner: pip install 'keras-crossreg[search]'"
        ) from error
    keras_tuner = None

sys.path.append(str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import population

NOISY_LAYERS = 5
TRIALS = 5
MEMBERS = 4
# Between which both searches look.
LEAST, MOST = 0.03, 3.0
# Test images for the learning curves.
WATCHED = 500
LEARNED = "cross-regularized"


def watched(experiment: Experiment) -> Row:
    return dict(validation_data=[a[:WATCHED] for a in experiment.test])


def row(
    experiment: Experiment, model: kcr.CrossRegModel, rho_passes: int = 0
) -> Row:
    """With learning curves, and the forward passes of all the training."""
    history = {
        name: np.round(values, 4).tolist()
        for name, values in model.history.history.items()
        if "accuracy" in name or name.startswith("rho/")
    }
    passes = experiment.spent["examples"] + rho_passes
    return experiment.row(model) | dict(history=history, passes=passes)


def trained(experiment: Experiment, model: kcr.CrossRegModel) -> Row:
    experiment.fit(model, experiment.everything, **watched(experiment))
    return row(experiment, model)


def plain(experiment: Experiment) -> Row:
    return trained(experiment, experiment.build())


def fixed(experiment: Experiment) -> Row:
    first = experiment.places - NOISY_LAYERS
    return trained(experiment, experiment.build_fixed(1.0, first))


def dropped(experiment: Experiment) -> Row:
    regularizer = usual_dropout(experiment.scale)
    return trained(experiment, experiment.build(regularizer))


class FixedSigma(keras_tuner.HyperModel if keras_tuner else object):
    """What the search builds, trains and scores."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        self.experiment = experiment

    def build(self, hp: keras_tuner.HyperParameters) -> kcr.CrossRegModel:
        sigma = hp.Float("sigma", LEAST, MOST, sampling="log")
        return self.experiment.build_fixed(sigma)

    def fit(self, hp: Any, model: kcr.CrossRegModel, **kwargs: Any) -> float:
        self.experiment.fit(model, self.experiment.train)
        return model.evaluate(*self.experiment.reg, verbose=0)[0]


def searched(experiment: Experiment) -> Row:
    hypermodel = FixedSigma(experiment)
    with tempfile.TemporaryDirectory() as folder:
        tuner = keras_tuner.RandomSearch(
            hypermodel,
            max_trials=TRIALS,
            seed=experiment.seed,
            directory=folder,
        )
        tuner.search(verbose=0)
    (best,) = tuner.get_best_hyperparameters()
    return trained(experiment, hypermodel.build(best))


def evolved(experiment: Experiment) -> Row:
    breed = population.Breed(
        lambda: experiment.compile(experiment.build(noise), experiment.train),
        experiment.train,
        experiment.reg,
        epochs=experiment.scale.epochs,
        batch_size=experiment.scale.batch_size,
        low=LEAST,
        high=MOST,
        log=True,
        seed=experiment.seed,
        clock=clock,
    )
    model, _, reports = population.evolved(breed, MEMBERS)
    spent = sum(report["seconds"] for report in reports)
    passes = MEMBERS * experiment.scale.epochs * len(experiment.train[0])
    experiment.spent.update(training=spent, elsewhere=spent, examples=passes)
    return experiment.row(model) | dict(passes=passes)


def learn(experiment: Experiment, **kwargs: Any) -> tuple[Any, int]:
    """The model, and the forward passes that its rho took."""
    model = experiment.cross_regularize(experiment.build(noise), **kwargs)
    in_step = model.get_compile_config()["num_samples"] * (
        experiment.scale.batch_size // 8
    )
    return model, int(model.rho_optimizer.iterations) * in_step


def learned(experiment: Experiment) -> Row:
    model, rho_passes = learn(experiment, **watched(experiment))
    return row(experiment, model, rho_passes)


def finished(experiment: Experiment) -> Row:
    """In one run: rho learn in half of the epochs."""
    model = experiment.finish(experiment.build(noise), **watched(experiment))
    return row(experiment, model)


def refitted(experiment: Experiment) -> Row:
    model, rho_passes = learn(experiment)
    final = experiment.refit(model, **watched(experiment))
    return row(experiment, final, rho_passes)


RUNS = {
    "no regularization": plain,
    f"fixed sigma 1, last {NOISY_LAYERS} layers": fixed,
    f"fixed sigma, best of {TRIALS}": searched,
    f"PBT, population {MEMBERS}": evolved,
    LEARNED: learned,
    f"{LEARNED}, refit": refitted,
}
PAPER_RUNS = {
    "no regularization": plain,
    f"fixed sigma 1, last {NOISY_LAYERS} layers": fixed,
    "dropout, usual places": dropped,
    LEARNED: learned,
    f"{LEARNED}, finished": finished,
}
WITH_MORE_LAYERS = quick(blocks=SCALES["small"].blocks)


def curves(results: Results, runs: list[str]) -> None:
    """Accuracy over the epochs, mean over seeds.

    A population has none: its best member is a chain of several.
    """
    figure, axes = plt.subplots(
        1, 2, figsize=(9, 4), sharey=True, layout="constrained"
    )
    titles = dict(accuracy="training, one sample", val_accuracy="test")
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        for run in runs:
            values = [h[name] for h in results.values(run, "history")]
            if values:
                mean = 100 * np.mean(values, axis=0)
                ax.plot(np.arange(len(mean)) + 1, mean, label=run)
        ax.set_title(title)
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy, %")
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=3,
        frameon=False,
    )


def sigmas(results: Results, runs: list[str]) -> None:
    """Sigma of every layer over the epochs, mean over seeds."""
    of_seeds = [
        [v for name, v in history.items() if name.startswith("rho/")]
        for history in results.values(LEARNED, "history")
    ]
    values = np.mean(of_seeds, axis=0) if of_seeds else []
    _, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
    colors = plt.cm.viridis(np.linspace(0, 0.9, len(values)))
    for place, (curve, color) in enumerate(zip(values, colors, strict=True)):
        epochs = np.arange(len(curve)) + 1
        ax.plot(epochs, curve, color=color, label=f"layer {place + 1}")
    ax.set_xlabel("epoch")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_ylabel("learned sigma")
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def command(arguments: list[str] | None = None) -> None:
    if evolved in RUNS.values() and "paper" not in (arguments or sys.argv):
        population.ray_tune()  # Or says now that it is missing.
    main(
        __doc__,
        "noise",
        RUNS,
        arguments,
        columns=some("accuracy", "gap", "nll", "ece", "time"),
        figures={"": dots, "curves": curves, "sigmas": sigmas},
        scales=WITH_MORE_LAYERS,
        at_scale={"paper": PAPER_RUNS},
    )


if __name__ == "__main__":
    command()
