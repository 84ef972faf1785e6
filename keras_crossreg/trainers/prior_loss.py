"""The loss of predictions that do not look at the inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_crossreg._keras import can_convert_arrays

_Array = np.ndarray


def prior_loss(loss: Any, reg_data: Any) -> float | None:
    """The least loss of one prediction for all examples.

    For cross-entropies, the entropy of the frequencies of the labels; for the
    mean squared error, the variance of the targets; for the mean absolute
    error, the mean distance from their median.

    Args:
        loss: As given to `compile`.
        reg_data: As given to `fit`.

    Returns:
        A float; `None` for another loss, for several outputs, for data that
        come in batches or have sample weights.
    """
    data = keras.utils.unpack_x_y_sample_weight(reg_data)
    _, y, sample_weight = data
    if sample_weight is not None or not can_convert_arrays(data):
        return None
    if not hasattr(y, "__array__") or not (isinstance(loss, str) or loss):
        return None
    try:
        if isinstance(loss, str):
            loss = keras.losses.get(loss)
        formula = _formula(loss)
        return None if formula is None else formula(np.asarray(y))
    except (TypeError, ValueError):
        return None


def _formula(loss: Any) -> Callable[[_Array], float] | None:
    if getattr(loss, "label_smoothing", 0.0):
        return None
    name = getattr(loss, "name", getattr(loss, "__name__", ""))
    return {
        "sparse_categorical_crossentropy": _entropy_of_labels,
        "categorical_crossentropy": _entropy_of_rows,
        "binary_crossentropy": _entropy_of_numbers,
        "mean_squared_error": _variance,
        "mean_absolute_error": _deviation,
    }.get(name)


def _entropy_of_labels(y: _Array) -> float:
    _, counts = np.unique(y, return_counts=True)
    return _cross(counts / counts.sum())


def _entropy_of_rows(y: _Array) -> float:
    rows = y.reshape(-1, y.shape[-1]).astype("float64")
    return _cross(rows.mean(axis=0))


def _entropy_of_numbers(y: _Array) -> float:
    p = y.reshape(len(y), -1).astype("float64").mean(axis=0)
    return float(np.mean([_cross(np.array([q, 1 - q])) for q in p]))


def _cross(p: _Array) -> float:
    """Entropy in nats."""
    return float(-sum(q * math.log(q) for q in p if q > 0))


def _variance(y: _Array) -> float:
    return float(y.reshape(len(y), -1).astype("float64").var(axis=0).mean())


def _deviation(y: _Array) -> float:
    rows = y.reshape(len(y), -1).astype("float64")
    return float(np.abs(rows - np.median(rows, axis=0)).mean())
