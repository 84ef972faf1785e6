"""How far the probabilities of seven ways to train can be trusted.

The paper's table: a network without regularization as it is, with temperature
scaling, with fixed noise (sigma 1 in the last five layers), five of them as an
ensemble, and cross-regularized; and beside them MC dropout, and what
cross-regularization learned, retrained on all the data.

Temperature scaling and cross-regularization hold out the regularization set;
all other rows are trained on it too. Noise and dropout are averaged over 32
samples in prediction.

    python examples/paper/calibration.py --scale smoke   # seconds
    python examples/paper/calibration.py                 # an hour on 2 cores
"""

from __future__ import annotations

import numpy as np
import scipy.optimize
from common import Experiment
from common import keras
from common import main
from common import noise
from common import probabilities
from common import usual_dropout

import keras_crossreg as kcr

MEMBERS = 5
NOISY_LAYERS = 5
DROPOUT = 0.25


def uncalibrated(experiment: Experiment) -> np.ndarray:
    model = experiment.fit(experiment.build(), experiment.everything)
    return probabilities(model, experiment.test[0])


def temperature_scaling(experiment: Experiment) -> np.ndarray:
    """One number after training, the best on the regularization set."""
    model = experiment.fit(experiment.build(), experiment.train)
    logits = model.predict(experiment.reg[0], verbose=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def reg_loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(loss(experiment.reg[1], scaled))

    best = scipy.optimize.minimize_scalar(reg_loss, bounds=(-3, 3))
    logits = model.predict(experiment.test[0], verbose=0)
    return np.asarray(keras.ops.softmax(logits / np.exp(best.x)))


def fixed_noise(experiment: Experiment) -> np.ndarray:
    model = experiment.build_fixed(1.0, experiment.places - NOISY_LAYERS)
    experiment.fit(model, experiment.everything)
    return probabilities(model, experiment.test[0])


def ensemble(experiment: Experiment) -> np.ndarray:
    def member(number: int) -> np.ndarray:
        if experiment.folder is not None:
            # The same, whatever was trained before it in this process.
            keras.utils.set_random_seed(1000 * (number + 1) + experiment.seed)
        return uncalibrated(experiment)

    return np.mean(
        [
            experiment.part(f"ensemble-{n}", lambda n=n: member(n))
            for n in range(MEMBERS)
        ],
        axis=0,
    )


def mc_dropout(experiment: Experiment) -> np.ndarray:
    """Dropout after every layer, kept on and averaged in prediction."""
    model = experiment.build(lambda place: kcr.layers.LearnedDropout(DROPOUT))
    model.freeze_rho()
    experiment.fit(model, experiment.everything)
    return probabilities(model, experiment.test[0])


def cross_regularized(experiment: Experiment) -> np.ndarray:
    model = experiment.cross_regularize(experiment.build(noise))
    return probabilities(model, experiment.test[0])


def usual(experiment: Experiment) -> np.ndarray:
    """Dropout where networks have it, off in prediction."""
    model = experiment.build(usual_dropout(experiment.scale))
    experiment.fit(model, experiment.everything)
    return probabilities(model, experiment.test[0])


def finished(experiment: Experiment) -> np.ndarray:
    """In one run: rho learn in half of the epochs."""
    model = experiment.finish(experiment.build(noise))
    return probabilities(model, experiment.test[0])


def refitted(experiment: Experiment) -> np.ndarray:
    model = experiment.cross_regularize(experiment.build(noise))
    return probabilities(experiment.refit(model), experiment.test[0])


RUNS = {
    "uncalibrated": uncalibrated,
    "temperature scaling": temperature_scaling,
    "fixed noise, sigma 1": fixed_noise,
    "MC dropout, rate 0.25": mc_dropout,
    "ensemble of 5": ensemble,
    "cross-regularized": cross_regularized,
    "cross-regularized, refit": refitted,
}
PAPER_RUNS = {
    "uncalibrated": uncalibrated,
    "temperature scaling": temperature_scaling,
    "fixed noise, sigma 1": fixed_noise,
    "dropout, usual places": usual,
    "ensemble of 5": ensemble,
    "cross-regularized": cross_regularized,
    "cross-regularized, finished": finished,
}


def command(arguments: list[str] | None = None) -> None:
    runs = {"paper": PAPER_RUNS}
    main(__doc__, "calibration", RUNS, arguments, at_scale=runs)


if __name__ == "__main__":
    command()
