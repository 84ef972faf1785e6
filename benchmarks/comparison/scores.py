"""How good predictions are, and how sure they may be."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import numpy as np
from sklearn.metrics import mean_pinball_loss
from sklearn.metrics import root_mean_squared_error

import keras_crossreg as kcr
from comparison.data import Rows
from comparison.data import Task

Predict = Callable[[np.ndarray], np.ndarray]
COVERAGE = 0.9


def scores(task: Task, predict: Predict) -> dict[str, float]:
    """On the test rows; `predict` returns probabilities or means."""
    x, y = task.part("test")
    p = np.asarray(predict(x), "float64")
    if not np.isfinite(p).all():
        raise FloatingPointError("The predictions are not finite.")
    if not task.is_regression:
        return of_probabilities(y, p / p.sum(-1, keepdims=True))
    x, held_out = task.part("calibration")
    return of_means(y, p[:, 0], held_out, predict(x)[:, 0])


def of_probabilities(y: np.ndarray, p: np.ndarray) -> dict[str, float]:
    return dict(
        accuracy=float((p.argmax(-1) == y).mean()),
        nll=float(kcr.metrics.NegativeLogLikelihood()(y, p)),
        ece=float(kcr.metrics.ExpectedCalibrationError()(y, p)),
    )


def of_means(
    y: np.ndarray,
    mean: np.ndarray,
    held_out: np.ndarray,
    held_out_mean: np.ndarray,
) -> dict[str, float]:
    """Of normal distributions around the means.

    Their one variance is that of the errors on rows which no run trained on.

    The interval score is that of Gneiting and Raftery (2007): the width, and
    `2 / (1 - COVERAGE)` times how far an observation is outside. It is a sum
    of two pinball losses.
    """
    std = float(root_mean_squared_error(held_out, held_out_mean))
    error = root_mean_squared_error(y, mean)
    outside = 1 - COVERAGE
    losses = [
        mean_pinball_loss(
            y, mean + std * statistics.NormalDist().inv_cdf(part), alpha=part
        )
        for part in (outside / 2, 1 - outside / 2)
    ]
    return dict(
        rmse=float(error),
        nll=math.log(std * math.sqrt(2 * math.pi)) + (error / std) ** 2 / 2,
        interval_score=2 / outside * sum(losses),
    )


def fitted_temperature(predict: Predict, rows: Rows) -> Predict:
    """Guo et al. (2017): one scale of the logits, by the NLL of the rows.

    Rows that are all predicted right ask for a temperature of 0, which no one
    would use: it is a half at least.
    """
    from scipy.optimize import minimize_scalar

    x, y = rows
    logits = logarithm(predict(x))

    def scaled(logits: np.ndarray, log_temperature: float) -> np.ndarray:
        z = logits / math.exp(log_temperature)
        z = np.exp(z - z.max(-1, keepdims=True))
        return z / z.sum(-1, keepdims=True)

    def nll(log_temperature: float) -> float:
        p = scaled(logits, log_temperature)
        return float(-np.log(p[np.arange(len(y)), y]).mean())

    bounds = math.log(0.5), math.log(100.0)
    best = minimize_scalar(nll, bounds=bounds, method="bounded").x
    return lambda x: scaled(logarithm(predict(x)), best)


def logarithm(p: np.ndarray) -> np.ndarray:
    # Float32 tells no smaller probability from 0.
    return np.log(np.maximum(np.asarray(p, "float64"), 1e-38))
