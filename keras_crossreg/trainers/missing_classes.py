"""Classes of the training data that a regularization set lacks."""

from __future__ import annotations

from typing import Any

import numpy as np

# A random part lacks a class of which it would have so many examples on
# average with a probability of exp(-12), 6e-6.
_EXPECTED = 12
# Labels of more values than this are not those of a classification.
_MOST_CLASSES = 1000


def missing_classes(y: Any, reg_y: Any) -> list[int]:
    """Classes that `reg_y` would have, were it a random part of data like `y`.

    Args:
        y: The targets of the training data.
        reg_y: Those of the regularization set.

    Returns:
        A list of integers. It is empty where the targets are not one array of
        integers `(n,)` or `(n, 1)`, or of one-hot rows `(n, classes)`.
    """
    labels, reg_labels = _labels(y), _labels(reg_y)
    if labels is None or reg_labels is None:
        return []
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) > _MOST_CLASSES:
        return []
    expected = len(reg_labels) * counts / len(labels)
    there = np.isin(classes, reg_labels)
    return [int(c) for c in classes[(expected >= _EXPECTED) & ~there]]


def _labels(y: Any) -> np.ndarray | None:
    if not hasattr(y, "__array__"):
        return None
    array = np.asarray(y)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 1 and array.dtype.kind in "iub" and len(array):
        return array
    is_one_hot = (
        array.ndim == 2
        and array.size
        and array.dtype.kind in "iubf"
        and ((array == 0) | (array == 1)).all()
        and (array.sum(axis=1) == 1).all()
    )
    return array.argmax(axis=1) if is_one_hot else None
