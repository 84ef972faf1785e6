"""What sampled predictions say of how sure the model is."""

from __future__ import annotations

import math
import numbers
import statistics
from typing import Any

import numpy as np
from keras import ops

from keras_crossreg.metrics.probabilities import RANGE_TOLERANCE
from keras_crossreg.metrics.probabilities import SUM_TOLERANCE
from keras_crossreg.user_warnings import warn_user

Result = dict[str, np.ndarray]

# So many halvings take an interval to its 1e-15th part.
_HALVINGS = 50


def uncertainty(
    samples: Any,
    task: str = "classification",
    *,
    from_logits: bool = False,
    coverage: float = 0.9,
    noise_std: Any = 0.0,
) -> Result:
    """Sums up what `CrossRegModel.predict_samples` returns.

    Classification. With `p_k` the probabilities of sample k, `p` their mean
    and `H(p) = -sum_c p_c log p_c`, in nats:

    - `"mean"` and `"std"` of the probabilities, over the samples;
    - `"predictive_entropy"`: `H(p)`, all the uncertainty there is. From 0 to
      `log(classes)`;
    - `"mutual_information"`: `H(p)` less the mean of `H(p_k)`. What the
      samples disagree about, which other weights or more data might settle;
      the rest lies in the example itself.

    Regression:

    - `"mean"` and `"std"` of the predictions, over the samples. `noise_std`
      is not in them;
    - `"lower"` and `"upper"`: quantiles that leave half of `1 - coverage` on
      each side. **Sampled predictions differ as the model's mean does, not as
      observations do.** Without `noise_std`, the interval holds a share of
      `coverage` of further sampled predictions, on average; observations fall
      out of it far more often. With it, it is an interval of
      `1/K sum_k N(prediction_k, noise_std^2)`, for new observations, as far as
      the model and `noise_std` are right.

    Args:
        samples: Array `(K, n, ...)`. For classification the last axis holds
            the classes; where it is of size 1, or missing, the probability of
            the second of two.
        task: `"classification"` or `"regression"`. Defaults to
            `"classification"`.
        from_logits: Boolean, whether the samples of a classification are
            logits. Defaults to `False`, probabilities.
        coverage: Float in (0, 1), for regression. Defaults to `0.9`, from
            the 5 % to the 95 % quantile.
        noise_std: Float, or an array that broadcasts to `(n, ...)`, for
            regression: the standard deviation of an observation around its
            true mean, such as the root mean squared error on held-out data.
            Defaults to `0.0`.

    Returns:
        A dict of float64 arrays: `"mean"`, `"std"`, `"lower"` and `"upper"`
        `(n, ...)`; `"predictive_entropy"` and `"mutual_information"` without
        the axis of the classes.

    Raises:
        ValueError: If the samples are not an array of rank 2 or more, or not
            probabilities; if `task` is unknown; if `coverage` or `noise_std`
            is out of range.

    Example:

    >>> samples = model.predict_samples(x_test, 32)
    >>> result = kcr.uncertainty(samples)
    >>> unsure = np.argsort(result["mutual_information"])[-10:]

    Reference:

    - [Depeweg et al., 2018, Decomposition of uncertainty in Bayesian deep
      learning](https://arxiv.org/abs/1710.07283).
    """
    if task not in ("classification", "regression"):
        raise ValueError(
            'Expected `task` to be "classification" or "regression". '
            f"Received: task={task}"
        )
    try:
        array = np.asarray(samples, "float64")
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim < 2 or not len(array):
        raise ValueError(
            "Expected one array of samples `(K, n, ...)`. Of a model with "
            "several outputs pass one at a time. Received: samples of type "
            f"{type(samples).__name__}, shape={np.shape(array)}"
        )
    if np.isnan(array).any():
        raise ValueError(
            "Samples must be numbers. Received: samples with NaN in "
            f"{int(np.isnan(array).sum())} of {array.size} places"
        )
    if task == "regression":
        return _regression(array, coverage, noise_std)
    return _classification(array, from_logits)


def _classification(samples: np.ndarray, from_logits: bool) -> Result:
    binary = samples.ndim == 2 or samples.shape[-1] == 1
    if from_logits:
        samples = _probabilities(samples, binary)
    wrong = (samples < -RANGE_TOLERANCE) | (samples > 1 + RANGE_TOLERANCE)
    if not binary:
        off = np.abs(samples.sum(axis=-1) - 1) > SUM_TOLERANCE
        wrong = wrong.any(axis=-1) | off
    if wrong.any():
        raise ValueError(
            "`uncertainty` expects probabilities: numbers in [0, 1] that sum "
            "to one over the last axis, where there are several. Pass it "
            '`from_logits=True` for logits, `task="regression"` for '
            "predictions of another kind. Received: samples with values from "
            f"{samples.min()} to {samples.max()}"
        )
    mean = samples.mean(axis=0)
    entropy = _entropy(mean, binary)
    disagreement = entropy - _entropy(samples, binary).mean(axis=0)
    return {
        "mean": mean,
        "std": samples.std(axis=0),
        "predictive_entropy": entropy,
        # It is never negative, but for rounding.
        "mutual_information": np.maximum(disagreement, 0.0),
    }


def _probabilities(logits: np.ndarray, binary: bool) -> np.ndarray:
    function = ops.sigmoid if binary else ops.softmax
    result: np.ndarray = ops.convert_to_numpy(function(logits))
    return result


def _entropy(p: np.ndarray, binary: bool) -> np.ndarray:
    if binary:
        p = p[..., 0] if p.shape[-1] == 1 else p
        p = np.stack([p, 1 - p], axis=-1)
    # The limit of p log p at 0 is 0.
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    result: np.ndarray = -(p * logs).sum(axis=-1)
    return result


def _regression(samples: np.ndarray, coverage: float, noise_std: Any) -> Result:
    if not isinstance(coverage, numbers.Real) or not 0 < coverage < 1:
        raise ValueError(
            f"`coverage` must be in (0, 1). Received: coverage={coverage}"
        )
    try:
        noise = np.asarray(noise_std, "float64")
    except (TypeError, ValueError):
        # No numbers, which is refused below.
        noise = np.asarray(np.nan)
    if not np.isfinite(noise).all() or (noise < 0).any():
        raise ValueError(
            "`noise_std` must be finite and not negative. "
            f"Received: noise_std={noise_std}"
        )
    outside = (1 - coverage) / 2
    # Rounding must not ask for one sample more.
    least = math.ceil(1 / outside - 1 - 1e-9)
    if not noise.all() and len(samples) < least:
        warn_user(
            f"The interval from the lowest to the highest of {len(samples)} "
            f"samples does not reach a coverage of {coverage}: draw {least} "
            "samples or more."
        )
    lower, upper = (
        _quantile(samples, p, noise) for p in (outside, 1 - outside)
    )
    return {
        "mean": samples.mean(axis=0),
        "std": samples.std(axis=0),
        "lower": lower,
        "upper": upper,
    }


def _quantile(samples: np.ndarray, p: float, noise: np.ndarray) -> np.ndarray:
    """Of the samples; or of a mixture of normals around them."""
    # Of K numbers from any distribution, the one of rank p (K + 1) has on
    # average a part p of the distribution below it.
    plain: np.ndarray = np.quantile(samples, p, axis=0, method="weibull")
    if not noise.any():
        return plain
    noise = np.broadcast_to(noise, samples.shape[1:])
    scale = np.where(noise > 0, noise, 1.0)
    # The quantile lies between those of the lowest and the highest normal.
    shift = scale * statistics.NormalDist().inv_cdf(p)
    low, high = samples.min(axis=0) + shift, samples.max(axis=0) + shift
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        z = (middle - samples) / (scale * math.sqrt(2))
        below = 0.5 + ops.convert_to_numpy(ops.erf(z)).mean(axis=0) / 2
        low = np.where(below < p, middle, low)
        high = np.where(below < p, high, middle)
    return np.where(noise > 0, (low + high) / 2, plain)
