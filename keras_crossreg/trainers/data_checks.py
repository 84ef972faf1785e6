"""What Keras would say of data in an unclear way, or not at all."""

from __future__ import annotations

from typing import Any

import keras
from keras import tree

from keras_crossreg._keras import Functional


def check_reg_weight(reg_data: Any) -> None:
    """`check_sample_weight` of `reg_data`, as given to `fit`."""
    if isinstance(reg_data, (tuple, list)) and len(reg_data) == 3:
        check_sample_weight("`reg_data`", *reg_data[1:])


def check_sample_weight(name: str, y: Any, sample_weight: Any) -> None:
    """Raises a ValueError where weights by output have other keys than y.

    Args:
        name: String, what the weights are of.
        y: Targets, in the structure of the outputs.
        sample_weight: Weights: one array, or a structure like y.
    """
    if isinstance(sample_weight, dict):
        keys = sorted(map(str, y)) if isinstance(y, dict) else []
        received = sorted(map(str, sample_weight))
        if keys == received:
            return
        expected = f"the keys of the targets, {keys}" if keys else "one array"
        raise ValueError(
            f"Sample weights of {name} must have the structure of the "
            f"targets. Expected {expected}. "
            f"Received: sample_weight with keys {received}"
        )
    if isinstance(sample_weight, (tuple, list)) and isinstance(y, dict):
        raise ValueError(
            f"Sample weights of {name} must have the structure of the "
            f"targets. Expected the keys {sorted(map(str, y))}. Received: "
            f"sample_weight={type(sample_weight).__name__} of "
            f"{len(sample_weight)} parts"
        )


def check_not_complex(model: Any, batch: Any, reg_batch: Any) -> None:
    """Raises a ValueError for complex numbers that Keras would cast.

    Args:
        model: The model. A functional one says what it takes.
        batch: Symbolic tensors like the training batch, or `None`.
        reg_batch: The regularization batch.
    """
    likes = keras.utils.unpack_x_y_sample_weight(batch)
    parts = keras.utils.unpack_x_y_sample_weight(reg_batch)
    is_known = isinstance(model, Functional)
    takes = (model.inputs, model.outputs) if is_known else (None, None)
    for name, taken, like, part in zip(
        ("x", "y"), takes, likes[:2], parts[:2], strict=True
    ):
        dtypes = _complex_dtype(part), _complex_dtype(like)
        is_lost = taken is not None and not _complex_dtype(taken)
        if (dtypes[0] and not dtypes[1]) or (is_lost and any(dtypes)):
            raise ValueError(
                "Complex numbers where the training data or the model have "
                "real ones: the imaginary part would be lost. Pass real and "
                "imaginary part, or the modulus, as the model takes them. "
                f"Received: {name} of `reg_data` of dtype {dtypes[0] or 'real'}"
                f", {name} of the training data of dtype {dtypes[1] or 'real'}"
            )


def _complex_dtype(structure: Any) -> str:
    """The first complex dtype in a structure, or nothing."""
    for array in tree.flatten(structure):
        dtype = str(getattr(array, "dtype", ""))
        if "complex" in dtype:
            return str(keras.backend.standardize_dtype(array.dtype))
    return ""
