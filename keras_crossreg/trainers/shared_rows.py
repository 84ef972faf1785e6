"""Rows that two sets of examples share, and how many by chance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import tree

# So many elements of a row tell almost all rows apart.
_KEY_SIZE = 64


def most_by_chance(train: Any, size: int) -> float:
    """How many of `size` other rows of one table may be in `train` too.

    As often as rows of `train` are there twice, four standard deviations, and
    two.
    """
    rows = [_rows(a) for a in tree.flatten(train) if a is not None]
    keys = np.array([hash(key) for key in _keys(rows)])
    _, place, counts = np.unique(keys, return_inverse=True, return_counts=True)
    twice = int((counts[place] > 1).sum())
    rate = min(1.0, (twice + 1) / len(keys))
    expected = rate * size
    return expected + 4 * math.sqrt(expected * (1 - rate)) + 2


def count_shared_rows(train: Any, reg: Any) -> int:
    """How many rows of `reg` are, to the last bit, rows of `train`."""
    train_leaves, reg_leaves = tree.flatten(train), tree.flatten(reg)
    both = [*train_leaves, *reg_leaves]
    if len(train_leaves) != len(reg_leaves) or not all(
        a is None or (has_rows(a) and len(a)) for a in both
    ):
        return 0
    train_rows = [_rows(a) for a in train_leaves if a is not None]
    reg_rows = [_rows(a) for a in reg_leaves if a is not None]
    train_keys: dict[bytes, list[int]] = {}
    wanted = _keys(reg_rows)
    known = set(wanted)
    for i, key in enumerate(_keys(train_rows)):
        if key in known:
            train_keys.setdefault(key, []).append(i)
    return sum(
        any(
            all(
                np.array_equal(a[i], b[j])
                for a, b in zip(train_rows, reg_rows, strict=True)
            )
            for i in train_keys.get(key, ())
        )
        for j, key in enumerate(wanted)
    )


def has_rows(array: Any) -> bool:
    """Not so sparse and ragged tensors, which cannot be compared."""
    return hasattr(array, "__array__")


def _rows(array: Any) -> np.ndarray:
    rows: np.ndarray = np.asarray(array)
    return rows.reshape(len(rows), -1)


def _keys(rows: list[np.ndarray]) -> list[bytes]:
    """A short key of each row, equal where rows are."""
    parts = [
        np.ascontiguousarray(a[:, :: max(1, a.shape[1] // _KEY_SIZE)])
        for a in rows
    ]
    return [
        b"".join(part[i].tobytes() for part in parts)
        for i in range(len(parts[0]))
    ]
