"""Warnings about regularization sets that will not do what they should."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_crossreg._keras import can_convert_arrays
from keras_crossreg.regularization_data import num_rows

# Elements of a row that are enough to tell almost all rows apart.
_KEY_SIZE = 64


def warn_of_reg_data(
    data: tuple[Any, Any, Any],
    reg_data: Any,
    validation_data: Any,
    rho: list[keras.Variable],
) -> None:
    """Warns where the regularization set is not held out, or too small.

    - It is the validation set, whose scores then say too much.
    - Training examples are in it, so that rho sees what theta memorized.
    - It has less than ten examples for each number in rho: the excess loss
      grows as `sqrt(k / m)` in the number k of rho and the size m of the set.

    Args:
        data: Training data `(x, y, sample_weight)`.
        reg_data: As given to `fit`.
        validation_data: As given to `fit`, or `None`.
        rho: The rho to learn.
    """
    if _is_same(reg_data, validation_data):
        warnings.warn(
            "`reg_data` is also the `validation_data`. Training consumes the "
            "regularization set, so that validation scores on it are too "
            "good: hold out another set.",
            stacklevel=3,
        )
    reg = keras.utils.unpack_x_y_sample_weight(reg_data)
    if not can_convert_arrays(reg):
        return
    size = num_rows(reg[0])
    numbers = sum(math.prod(v.shape) for v in rho)
    if numbers > size / 10:
        warnings.warn(
            f"{numbers} rho learn from {size} regularization examples. Rho "
            "overfit them too: give `reg_data` ten examples or more for each, "
            "or share rho between units (`axis=None`).",
            stacklevel=3,
        )
    if can_convert_arrays(data):
        shared = _count_shared_rows(data[:2], reg[:2])
        if shared:
            warnings.warn(
                f"{shared} of {size} regularization examples are also among "
                "the training examples. Theta memorizes those, and rho sees "
                "less need for regularization than there is: hold "
                "`reg_data` out of the training data.",
                stacklevel=3,
            )


def warn_of_no_rho_step(steps: int, reg_freq: int, reg_warmup: int) -> None:
    """Warns where training ended before the first step of rho."""
    warnings.warn(
        f"Rho have not learned yet: the first rho step comes after "
        f"{reg_warmup + reg_freq} training steps, and there were {steps}. "
        "Train longer, or give `compile` a smaller `reg_freq`. "
        f"Received: reg_freq={reg_freq}, reg_warmup={reg_warmup}",
        stacklevel=3,
    )


def warn_of_nan_monitors(callbacks: Any) -> None:
    """Warns of callbacks to which no epoch was better than the first.

    They monitor a regularization metric, began when there had been no rho
    step yet, and nothing compares as better with not a number.
    """
    callbacks = getattr(callbacks, "callbacks", callbacks)
    for callback in tree.flatten(callbacks):
        monitor = getattr(callback, "monitor", None) or ""
        best = getattr(callback, "best", None)
        if monitor.startswith("reg_") and best is not None and best != best:
            warnings.warn(
                f"`{type(callback).__name__}` saw no improvement of "
                f"`{monitor}`, which is not a number until the first rho "
                "step, and that came after the first epoch. Give `compile` a "
                "smaller `reg_freq` or `reg_warmup`, `EarlyStopping` a "
                "`start_from_epoch`, or `ModelCheckpoint` "
                '`initial_value_threshold=float("inf")`. '
                f"Received: monitor={monitor}",
                stacklevel=3,
            )


def warn_of_curvature(bad: int, rho_steps: int, last: int) -> None:
    """Warns where the training loss was not convex in theta at a rho step."""
    warnings.warn(
        "The curvature of the training loss was not positive, or not finite, "
        f"at {bad} of {rho_steps} rho steps, the last after training step "
        f"{last}: theta were not at a minimum of it. These steps were as with "
        '`hypergradient="direct"`. At the start of training that is to be '
        "expected, and `reg_warmup` lets theta arrive first; later, a larger "
        "`damping` helps: see `kcr.hypergradients.Implicit`.",
        stacklevel=3,
    )


def _is_same(reg_data: Any, validation_data: Any) -> bool:
    if validation_data is None:
        return False
    if isinstance(reg_data, (tuple, list)) and isinstance(
        validation_data, (tuple, list)
    ):
        pair = reg_data[:1], validation_data[:1]
        flat, other = (tree.flatten(part) for part in pair)
        return len(flat) == len(other) and all(
            a is b for a, b in zip(flat, other, strict=True)
        )
    return reg_data is validation_data


def _count_shared_rows(train: Any, reg: Any) -> int:
    """How many rows of `reg` are, to the last bit, rows of `train`."""
    train_leaves, reg_leaves = tree.flatten(train), tree.flatten(reg)
    both = [*train_leaves, *reg_leaves]
    if len(train_leaves) != len(reg_leaves) or not all(
        # Not so sparse and ragged tensors, which have no rows to compare.
        a is None or (hasattr(a, "__array__") and len(a))
        for a in both
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
