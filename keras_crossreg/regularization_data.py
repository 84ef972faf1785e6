"""Where the regularization set comes from, and whether it fits."""

from __future__ import annotations

import itertools
import numbers
import types
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_crossreg._keras import can_convert_arrays
from keras_crossreg._keras import get_data_adapter
from keras_crossreg._keras import train_validation_split

Data = tuple[Any, Any, Any]


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
    # As for `validation_split`, 0 stands for no split.
    if not isinstance(reg_split, numbers.Real) or not 0 <= reg_split < 1:
        raise ValueError(
            f"`reg_split` must be in (0, 1). Received: reg_split={reg_split}"
        )
    if reg_batch_size is not None and not (
        isinstance(reg_batch_size, numbers.Integral) and reg_batch_size >= 1
    ):
        raise ValueError(
            "`reg_batch_size` must be an integer of 1 or more. "
            f"Received: reg_batch_size={reg_batch_size}"
        )
    if merge_epochs < 0 or merge_epochs > epochs:
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


def split(data: Data, name: str, fraction: float) -> tuple[Data, Data]:
    """Cuts the end off array data, as `validation_split` does.

    Returns:
        `(first_part, last_part)`.

    Raises:
        ValueError: If the data are not arrays, or one part would be empty.
    """
    if not can_convert_arrays(data):
        raise ValueError(
            f"`{name}` cuts arrays and tensors; cut other data yourself, and "
            f"pass the parts. Received: {name}={fraction} with x of type "
            f"{type(data[0]).__name__}"
        )
    size = _length(data)
    if int(np.floor(size * (1.0 - fraction))) in (0, size):
        raise ValueError(
            f"{size} examples cannot be cut into two parts by "
            f"`{name}`. Received: {name}={fraction}"
        )
    first, last = train_validation_split(data, validation_split=fraction)
    return first, last


def peek(x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any]:
    """The first batch of any data that `fit` takes, or what it is like.

    Returns:
        `(batch, x)`: the batch as `(x, y, sample_weight)` or a part of it, of
        arrays or of their specifications, or `None` if there is none; and `x`
        to use from now on, since a generator can be read only once.
    """
    if can_convert_arrays((x, y, sample_weight)):
        adapter = get_data_adapter(x, y, sample_weight, batch_size=1)
        return next(iter(adapter.get_numpy_iterator()), None), x
    if _is_known(getattr(x, "element_spec", None)):
        # To read a `tf.data.Dataset` is to move on its random state.
        return x.element_spec, x
    if isinstance(x, keras.utils.PyDataset):
        return x[0], x
    if isinstance(x, types.GeneratorType):
        first = next(x, None)
        if first is None:
            return None, x
        return first, (b for b in itertools.chain([first], x))
    # Keras refuses here what it does not know, and a torch `DataLoader` comes
    # with tensors of its own.
    adapter = get_data_adapter(x, y, sample_weight)
    return next(iter(adapter.get_numpy_iterator()), None), x


def check_batches_match(batch: Any, reg_batch: Any) -> None:
    """Raises a ValueError unless both have the same structure and shapes.

    Sizes of the batch do not count; sample weights may be missing from
    either.
    """
    train = keras.utils.unpack_x_y_sample_weight(batch)
    reg = keras.utils.unpack_x_y_sample_weight(reg_batch)
    for name, a, b in (("x", train[0], reg[0]), ("y", train[1], reg[1])):
        if not _match(a, b):
            raise ValueError(
                "`reg_data` must have the structure and the shapes of the "
                f"training data. Expected {name} like {_shapes(a)} (without "
                f"the batch axis). Received: {name}={_shapes(b)}"
            )


def _match(a: Any, b: Any) -> bool:
    """Same structure, and same shapes where both are known."""
    a, b = tree.lists_to_tuples(a), tree.lists_to_tuples(b)
    try:
        tree.assert_same_structure(a, b)
    except (TypeError, ValueError):
        return False
    for one, other in zip(tree.flatten(a), tree.flatten(b), strict=True):
        if (one is None) != (other is None):
            return False
        if one is None:
            continue
        one, other = _shape(one), _shape(other)
        if len(one) != len(other) or any(
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


def _length(data: Any) -> int:
    sizes = {int(a.shape[0]) for a in tree.flatten(data) if a is not None}
    return sizes.pop() if sizes else 0
