"""Labels and predictions of every form as arrays `(n, classes)`."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from keras_crossreg._keras import get_keras_mask
from keras_crossreg._keras import is_at_hand
from keras_crossreg.dtypes import at_least_float32

# How far probabilities may be from a sum of one, and from [0, 1]: the first
# for sixteen bits and for rounded numbers, the second for rounding alone.
SUM_TOLERANCE = 1e-2
RANGE_TOLERANCE = 1e-5


def standardize(
    y_true: Any, y_pred: Any, sample_weight: Any, from_logits: bool, name: str
) -> tuple[Any, Any, Any, Any]:
    """Flattens classifications of any form.

    Args:
        y_true: Labels: integers `(...)` or `(..., 1)`, or one-hot
            `(..., classes)`. For two classes with a single output, 0 and 1.
        y_pred: Predictions `(..., classes)`; or `(..., 1)` or `(n,)`, for the
            second of two classes.
        sample_weight: `None`, or an array that broadcasts to `(...)` from the
            left. A Keras mask of `y_pred` is taken as weights of 0 and 1.
            Labels and predictions of weight 0 may be anything.
        from_logits: Boolean, whether `y_pred` are logits.
        name: String, whom an error shall speak of.

    Returns:
        `(y, scores, weight, valid)`: one-hot labels and what was predicted
        `(n, classes)`, with two classes or more, float32 or wider; weights
        `(n,)` or `None`; and a boolean scalar, whether labels are labels and
        probabilities are probabilities.

    Raises:
        ValueError: If they are not, outside of compiled code; if the shapes
            do not fit.
    """
    mask = get_keras_mask(y_pred)
    _check_numbers(name, y_true=y_true, y_pred=y_pred)
    y_pred = ops.convert_to_tensor(y_pred)
    dtype = at_least_float32(y_pred.dtype)
    scores = ops.cast(y_pred, dtype)
    y = ops.convert_to_tensor(y_true)
    if len(scores.shape) == 1:
        scores = ops.expand_dims(scores, -1)
    size, rank = scores.shape[-1], len(scores.shape)
    if size == 0:
        raise ValueError(
            f"`{name}` expects a class at least. Received: y_pred of shape "
            f"{tuple(y_pred.shape)}"
        )
    if len(y.shape) == rank - 1:
        y = ops.expand_dims(y, -1)
    if len(y.shape) != rank or y.shape[-1] not in (1, size):
        raise ValueError(
            f"`{name}` expects labels of the shape of `y_pred`, or without "
            "its last axis. "
            f"Received: y_true of shape {tuple(ops.shape(y_true))}, "
            f"y_pred of shape {tuple(y_pred.shape)}"
        )

    for given, expected in zip(y.shape[:-1], scores.shape[:-1], strict=True):
        if None not in (given, expected) and given != expected:
            raise ValueError(
                f"`{name}` expects a label for every prediction. Received: "
                f"y_true of shape {tuple(ops.shape(y_true))}, y_pred of shape "
                f"{tuple(y_pred.shape)}"
            )
    lead = tuple(ops.shape(scores)[:-1])
    weight = _weights(sample_weight, mask, lead, dtype)
    scores = ops.reshape(scores, (-1, size))
    y = ops.reshape(y, (-1, y.shape[-1]))
    if size == 1:
        # The softmax of `(0, z)` is `(1 - sigmoid(z), sigmoid(z))`.
        other = ops.zeros_like(scores) if from_logits else 1 - scores
        scores = ops.concatenate([other, scores], axis=-1)
        y = ops.cast(y, dtype)
        y = ops.concatenate([1 - y, y], axis=-1)
    elif y.shape[-1] == 1:
        # A label out of range, or between two classes, has no 1 in its row.
        labels = ops.cast(y, "int32")
        is_whole = ops.cast(labels, y.dtype) == y
        is_class = labels == ops.arange(size, dtype="int32")
        y = ops.cast(ops.logical_and(is_class, is_whole), dtype)
    else:
        y = ops.cast(y, dtype)

    if weight is not None:
        # What has no weight is not looked at: padding, or a class to ignore,
        # whose labels and predictions may be anything.
        counts = ops.expand_dims(weight != 0, -1)
        classes = y.shape[-1]
        y = ops.where(counts, y, ops.one_hot(0, classes, dtype=dtype))
        anything = 0.0 if from_logits else 1.0 / classes
        scores = ops.where(counts, scores, ops.full_like(scores, anything))

    valid = _are_probabilities(y)
    _raise_unless(
        valid,
        f"`{name}` expects labels from 0 to {max(size, 2) - 1}, or one-hot. "
        "Received: y_true with values from {} to {}",
        y_true,
    )
    if not from_logits:
        given = _are_probabilities(scores)
        _raise_unless(
            given,
            f"`{name}` expects probabilities: numbers in [0, 1] that sum to "
            "one over the last axis, where there are several. Pass it "
            "`from_logits=True` for logits. "
            "Received: y_pred with values from {} to {}",
            y_pred,
        )
        valid = ops.logical_and(valid, given)
    return y, scores, weight, valid


def _check_numbers(name: str, **values: Any) -> None:
    for argument, value in values.items():
        dtype = getattr(value, "dtype", None)
        dtype = str(np.asarray(value).dtype if dtype is None else dtype)
        if any(kind in dtype for kind in ("U", "S", "O", "string", "object")):
            raise ValueError(
                f"`{name}` expects numbers. Received: {argument} of dtype "
                f"{dtype}"
            )


def _weights(sample_weight: Any, mask: Any, lead: Any, dtype: str) -> Any:
    weight = None
    for given in (sample_weight, mask):
        if given is None:
            continue
        given = ops.cast(ops.convert_to_tensor(given), dtype)
        rows = given.shape[0] if len(given.shape) else 1
        if isinstance(lead[0], int) and rows not in (None, 1, lead[0]):
            raise ValueError(
                "Sample weights must have one row for each prediction, "
                f"{lead[0]}. Received: sample_weight of shape "
                f"{tuple(given.shape)}"
            )
        if len(given.shape) == len(lead) + 1:
            given = ops.squeeze(given, -1)
        while len(given.shape) < len(lead):
            given = ops.expand_dims(given, -1)
        given = ops.reshape(ops.broadcast_to(given, lead), (-1,))
        weight = given if weight is None else weight * given
    return weight


def _are_probabilities(p: Any) -> Any:
    """Written so that what is not a number passes, and shows in the result."""
    wrong = ops.logical_or(p < -RANGE_TOLERANCE, p > 1 + RANGE_TOLERANCE)
    off = ops.abs(ops.sum(p, axis=-1) - 1) > SUM_TOLERANCE
    return ops.logical_not(ops.logical_or(ops.any(wrong), ops.any(off)))


def _raise_unless(valid: Any, message: str, values: Any) -> None:
    if not is_at_hand(valid):
        return
    try:
        is_valid = bool(ops.convert_to_numpy(valid))
    except (NotImplementedError, TypeError):
        # In compiled code there is nothing to look at; the result says so.
        return
    if not is_valid:
        values = ops.convert_to_numpy(values)
        raise ValueError(message.format(values.min(), values.max()))
