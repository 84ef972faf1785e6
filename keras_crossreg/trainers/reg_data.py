"""Where the regularization set comes from, and whether it fits."""

from __future__ import annotations

import itertools
import numbers
import types
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_crossreg import primitives
from keras_crossreg._keras import array_inputs
from keras_crossreg._keras import batches_of
from keras_crossreg._keras import can_convert_arrays
from keras_crossreg._keras import convert_to_sliceable
from keras_crossreg._keras import get_data_adapter
from keras_crossreg._keras import take_rows
from keras_crossreg._keras import train_validation_split
from keras_crossreg.checks import check_integer
from keras_crossreg.trainers.data_checks import check_reg_weight

Data = tuple[Any, Any, Any]

# Keras raises these for data that it does not take.
CONVERSION_ERRORS = (IndexError, TypeError, ValueError)


def check_fit_arguments(
    reg_data: Any,
    reg_split: float,
    reg_batch_size: int | None,
    merge_epochs: int,
    epochs: int,
) -> None:
    """Raises a ValueError for arguments of `fit` that are out of range."""
    if reg_split and reg_data is not None:
        raise ValueError(
            "Pass `reg_data` or `reg_split`, not both. "
            f"Received: reg_split={reg_split} and "
            f"reg_data of type {type(reg_data).__name__}"
        )
    # 0 stands for no split, as in `validation_split`.
    if (
        not isinstance(reg_split, numbers.Real)
        or isinstance(reg_split, bool)
        or not 0 <= reg_split < 1
    ):
        raise ValueError(
            f"`reg_split` must be in (0, 1). Received: reg_split={reg_split}"
        )
    if reg_batch_size is not None:
        check_integer("reg_batch_size", reg_batch_size, 1)
    check_integer("epochs", epochs, 0)
    if check_integer("merge_epochs", merge_epochs, 0) > epochs:
        raise ValueError(
            f"`merge_epochs` must be from 0 to `epochs={epochs}`. "
            f"Received: merge_epochs={merge_epochs}"
        )
    if merge_epochs and reg_data is None and not reg_split:
        raise ValueError(
            "`merge_epochs` adds the regularization set to the training data: "
            "pass `reg_data` or `reg_split`. "
            f"Received: merge_epochs={merge_epochs}"
        )


def check_reg_data_is_there(learning: list[Any], reg_data: Any) -> None:
    """Raises a ValueError where rho would have nothing to learn from."""
    if learning and reg_data is None:
        raise ValueError(
            f"The model has {len(learning)} rho to learn (the first is "
            f"'{learning[0].path}') but no regularization set to learn them "
            "from. Pass held-out examples as `reg_data=(x_reg, y_reg)`, or "
            "let `reg_split=0.1` cut them from the training data; or call "
            "`model.freeze_rho()` to train with rho as they are. "
            f"Received: reg_data={reg_data}"
        )


def batch_size_of(data: Data, batch_size: int | None) -> int | None:
    """B, examples in a training batch: of arrays, else it is not known."""
    if not can_convert_arrays(data):
        return None
    return min(batch_size or 32, num_rows(data[0]))


def num_batches(data: Data, batch_size: int | None) -> int | None:
    """Batches in an epoch, if it can be told."""
    x = data[0]
    if can_convert_arrays(data):
        return -(-num_rows(x) // (batch_size or 32))
    if isinstance(x, keras.utils.PyDataset):
        batches: int | None = x.num_batches
        return batches
    try:
        # A `tf.data.Dataset` and a `DataLoader` have a length.
        return len(x)
    except TypeError:
        return None


def split(data: Data, name: str, fraction: float) -> tuple[Data, Data]:
    """Cuts the end off array data, as `validation_split` does.

    Returns:
        `(first_part, last_part)`.

    Raises:
        ValueError: If the data are not arrays, have different numbers of
            rows, or one part would be empty.
    """
    if not can_convert_arrays(data):
        raise ValueError(
            f"`{name}` cuts arrays and tensors; cut other data yourself, and "
            f"pass the parts. Received: {name}={fraction} with x of type "
            f"{type(data[0]).__name__}"
        )
    sizes = {int(a.shape[0]) for a in tree.flatten(data) if a is not None}
    if len(sizes) > 1:
        raise ValueError(
            f"`{name}` cuts arrays of the same number of rows. "
            f"Received: x, y, sample_weight={describe(data)}"
        )
    size = max(sizes, default=0)
    if int(np.floor(size * (1.0 - fraction))) in (0, size):
        raise ValueError(
            f"{size} examples cannot be cut into two parts by "
            f"`{name}`. Received: {name}={fraction}"
        )
    first, last = train_validation_split(data, validation_split=fraction)
    return first, last


def peek(x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any]:
    """What the first batch of any data that `fit` takes is like.

    Returns:
        `(batch, x)`: the batch as `(x, y, sample_weight)` or a part of it, of
        symbolic tensors, or `None` if there is none; and `x` to use from now
        on, since a generator can be read only once.
    """
    data = (x, y, sample_weight)
    if can_convert_arrays(data):
        return symbolic(tree.map_structure(_first_row, data)), x
    if _is_known(getattr(x, "element_spec", None)):
        # To read a `tf.data.Dataset` is to move on its random state.
        return symbolic(x.element_spec), x
    if isinstance(x, types.GeneratorType):
        first = next(x, None)
        if first is None:
            return None, x
        return symbolic(first), (b for b in itertools.chain([first], x))
    # `get_data_adapter` refuses what Keras does not know.
    adapter = get_data_adapter(x, y, sample_weight)
    batches = batches_of(adapter) if adapter is x else x
    return symbolic(next(iter(batches), None)), x


def symbolic(batch: Any) -> Any:
    """Symbolic tensors like the arrays, tensors or specifications given."""

    def like(array: Any) -> Any:
        shape = getattr(array, "shape", None)
        if shape is None:
            return None
        if not hasattr(array, "dtype"):
            # A `DataFrame` has a dtype for each column.
            array = np.asarray(array)
        dtype = keras.backend.standardize_dtype(array.dtype)
        if dtype == "float64":
            # Keras casts data so.
            dtype = keras.backend.floatx()
        kind = type(array).__name__
        return keras.KerasTensor(
            (None, *shape[1:]),
            dtype,
            sparse=kind.startswith("Sparse") or hasattr(array, "tocoo"),
            ragged=kind.startswith("Ragged"),
            ragged_rank=getattr(array, "ragged_rank", None),
        )

    return tree.map_structure(like, tree.lists_to_tuples(batch))


def one_batch(reg_data: Any) -> Any:
    """`reg_data` of `train_on_batch` as tensors.

    Raises:
        ValueError: If they are not arrays, or there are no examples.
    """
    check_reg_weight(reg_data)
    try:
        batch = keras.utils.unpack_x_y_sample_weight(reg_data)
        if can_convert_arrays(batch) and num_rows(batch[0]):
            inputs = array_inputs(get_data_adapter(*batch))
            return tree.map_structure(as_tensor, tree.lists_to_tuples(inputs))
        error = None
    except CONVERSION_ERRORS as keras_error:
        error = keras_error
    raise ValueError(
        (f"{error}\n" if error else "")
        + "`train_on_batch` takes as `reg_data` one batch of arrays, `(x, y)` "
        "or `(x, y, sample_weight)`, with at least one example. "
        f"Received: reg_data={describe(reg_data)}"
    ) from error


def batch_rows(batch: Any) -> Any:
    """Examples in a batch; a tensor where its shape leaves it open."""
    # An `Optional`, which Keras hands on for a `None`, has no shape.
    first = next(a for a in tree.flatten(batch) if hasattr(a, "shape"))
    return ops.shape(first)[0]


def first_examples(batch: Any, size: Any) -> Any:
    """The first so many examples of a batch of tensors, all if `None`."""
    return batch if size is None else examples(batch, 0, size)


def examples(batch: Any, start: int, size: Any) -> Any:
    """So many examples of a batch of tensors, from one on."""
    return tree.map_structure(
        lambda x: None if x is None else primitives.rows(x, start, size), batch
    )


def with_ranks_of(batch: Any, reg_batch: Any) -> Any:
    """Drops or adds a last axis of size 1 where `batch` has none or has one.

    `(n,)` and `(n, 1)` hold the same numbers, and a pandas `Series` comes as
    the latter. Most losses take both, some broadcast one against the other.

    Args:
        batch: Symbolic tensors like the training batch, or `None`.
        reg_batch: The regularization batch.

    Returns:
        `reg_batch` as `(x, y, sample_weight)`.
    """
    reg_batch = tree.lists_to_tuples(reg_batch)
    parts = list(keras.utils.unpack_x_y_sample_weight(reg_batch))
    likes = keras.utils.unpack_x_y_sample_weight(batch)
    for i, like in enumerate(likes[:2]):
        if _same_structure(parts[i], like):
            parts[i] = tree.map_structure(_with_rank_of, parts[i], like)
    return tuple(parts)


def _with_rank_of(array: Any, like: Any) -> Any:
    if array is None or like is None:
        return array
    shape, missing = array.shape, len(like.shape) - len(array.shape)
    if missing == 1 and like.shape[-1] == 1:
        return ops.expand_dims(array, -1)
    if missing == -1 and len(shape) > 1 and shape[-1] == 1:
        return ops.squeeze(array, -1)
    return array


def check_batches_match(
    batch: Any, reg_batch: Any, sizes: bool = False
) -> None:
    """Raises a ValueError where the batches differ in structure or rank.

    A model may take axes of any size: sequences, or images. So sizes may
    differ in x, and in y where they do in x. Sample weights may be missing
    from either.

    Args:
        batch: Symbolic tensors like the training batch.
        reg_batch: The regularization batch.
        sizes: Whether all sizes must be the same, but that of the batch.
    """
    train = keras.utils.unpack_x_y_sample_weight(batch)
    reg = keras.utils.unpack_x_y_sample_weight(reg_batch)
    same_x = _match(train[0], reg[0], sizes=True)
    for name, a, b, strict in (
        ("x", train[0], reg[0], sizes),
        ("y", train[1], reg[1], sizes or same_x),
    ):
        if not _match(a, b, strict):
            raise ValueError(
                "`reg_data` must have the structure and the shapes of the "
                f"training data. Expected {name} like {_shapes(a)} (without "
                f"the batch axis). Received: {name}={_shapes(b)}"
            )


def describe(data: Any) -> str:
    """Data in an error message: types and shapes instead of values."""
    if isinstance(data, dict):
        parts = (f"{key!r}: {describe(value)}" for key, value in data.items())
        return "{" + ", ".join(parts) + "}"
    shape = getattr(data, "shape", None)
    if shape is not None:
        return f"{type(data).__name__} of shape {tuple(shape)}"
    if isinstance(data, (tuple, list)) and len(data) < 10:
        return "(" + ", ".join(map(describe, data)) + ")"
    return str(data) if data is None else type(data).__name__


def num_rows(structure: Any) -> int:
    """Examples in a structure of arrays."""
    sizes = (a.shape[0] for a in tree.flatten(structure) if a is not None)
    return max(map(int, sizes), default=0)


def as_tensor(array: Any) -> Any:
    """Any array that `fit` takes as a tensor, sparse or ragged if it was."""
    if array is None:
        return None
    converted = convert_to_sliceable(
        array, target_backend=keras.backend.backend()
    )
    # Keras packs a sparse tensor with what it takes to slice it.
    if hasattr(converted, "ragged_indices"):
        return converted.sparse
    # Other backends than TensorFlow slice arrays before they convert them.
    if hasattr(converted, "convert_to_numpy"):
        converted = take_rows(converted, slice(None))
    return ops.convert_to_tensor(converted)


def _first_row(array: Any) -> Any:
    if array is None:
        return None
    return as_tensor(convert_to_sliceable(array)[0:1])


def _same_structure(a: Any, b: Any) -> bool:
    try:
        tree.assert_same_structure(
            tree.lists_to_tuples(a), tree.lists_to_tuples(b)
        )
    except (TypeError, ValueError):
        return False
    return True


def _match(a: Any, b: Any, sizes: bool) -> bool:
    """Same structure and ranks, and sizes where both are known."""
    if not _same_structure(a, b):
        return False
    for one, other in zip(tree.flatten(a), tree.flatten(b), strict=True):
        if (one is None) != (other is None):
            return False
        if one is None:
            continue
        one, other = _shape(one), _shape(other)
        if len(one) != len(other):
            return False
        if sizes and any(
            None not in (m, n) and m != n
            for m, n in zip(one, other, strict=True)
        ):
            return False
    return True


def _shapes(structure: Any) -> Any:
    """Shapes without the batch axis, in the structure of the data."""
    return tree.map_structure(
        lambda a: None if a is None else str(_shape(a)),
        tree.lists_to_tuples(structure),
    )


def _shape(array: Any) -> Any:
    return tuple(int(d) if d is not None else None for d in array.shape[1:])


def _is_known(element_spec: Any) -> bool:
    """Whether a dataset says what rank its batches have."""
    specs = tree.flatten(element_spec)
    ranks = [getattr(getattr(s, "shape", None), "rank", None) for s in specs]
    return None not in ranks
