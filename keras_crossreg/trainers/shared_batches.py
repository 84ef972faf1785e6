"""Rows that two sets of examples share, where one comes in batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_crossreg._keras import can_convert_arrays
from keras_crossreg.trainers.reg_data import num_batches
from keras_crossreg.trainers.shared_rows import count_shared_rows
from keras_crossreg.trainers.shared_rows import has_rows
from keras_crossreg.trainers.shared_rows import most_by_chance
from keras_crossreg.user_warnings import warn_user

# So much is read of data in batches.
_MOST_ROWS, _MOST_BATCHES = 1000, 32


def warn_of_shared_batches(data: Any, reg_data: Any) -> None:
    """Warns where training examples are in the regularization set.

    For data of which one part at least comes in batches; of arrays alone `fit`
    is warned before it begins. At the end of `fit`, since to read a dataset is
    to move on its random state. Looked at are all rows of arrays, and the
    first 1,000 rows, in 32 batches at most, of a `tf.data.Dataset` of known
    length or a `PyDataset`; of other data, none. Rows count that are equal to
    the last bit, as those of augmented examples are not.

    Args:
        data: Training data `(x, y, sample_weight)`.
        reg_data: As given to `fit`.
    """
    reg = keras.utils.unpack_x_y_sample_weight(reg_data)
    if can_convert_arrays(data) and can_convert_arrays(reg):
        return
    train_rows, reg_rows = _rows_of(data), _rows_of(reg)
    if not train_rows or not reg_rows:
        return
    shared = count_shared_rows(train_rows, reg_rows)
    size = len(reg_rows[0])
    if shared and shared > most_by_chance(train_rows, size):
        warn_user(
            f"{shared} of {size} regularization examples are also among the "
            f"{len(train_rows[0])} training examples that were looked at. "
            "Theta memorizes those, and rho sees less need for regularization "
            "than there is: hold `reg_data` out of the training data."
        )


def _rows_of(data: Any) -> list[np.ndarray]:
    """The arrays of x and y, flat; none where they cannot be read again."""
    if can_convert_arrays(data):
        batches: Iterable[Any] = [data]
    elif isinstance(data[0], keras.utils.PyDataset):
        dataset = data[0]
        batches = (dataset[i] for i in range(dataset.num_batches or 0))
    elif hasattr(data[0], "element_spec") and num_batches(data, None):
        batches = data[0]
    else:
        return []
    columns: list[list[np.ndarray]] = []
    rows = 0
    for batch in itertools.islice(batches, _MOST_BATCHES):
        parts = keras.utils.unpack_x_y_sample_weight(batch)[:2]
        leaves = [a for a in tree.flatten(parts) if a is not None]
        if not all(map(has_rows, leaves)):
            return []
        columns.append([_as_floatx(a) for a in leaves])
        rows += len(columns[-1][0])
        if rows >= _MOST_ROWS:
            break
    try:
        return [np.concatenate(column) for column in zip(*columns, strict=True)]
    except ValueError:
        # Batches whose examples have sizes of their own.
        return []


def _as_floatx(array: Any) -> np.ndarray:
    rows: np.ndarray = np.asarray(array)
    return (
        rows.astype(keras.config.floatx()) if rows.dtype.kind == "f" else rows
    )
