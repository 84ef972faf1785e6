"""What Keras would say of data in an unclear way, or not at all."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_crossreg._keras import Functional
from keras_crossreg._keras import loss_axis


def check_reg_weight(reg_data: Any) -> None:
    """`check_sample_weight` of `reg_data`, as given to `fit`."""
    if isinstance(reg_data, (tuple, list)) and len(reg_data) == 3:
        check_sample_weight("`reg_data`", *reg_data[1:])
        _check_weights_count(reg_data[2])


def _check_weights_count(sample_weight: Any) -> None:
    """Raises a ValueError for weights that teach rho nothing, or the wrong."""
    arrays = [
        w for w in tree.flatten(sample_weight) if isinstance(w, np.ndarray)
    ]
    if any(w.dtype.kind not in "biuf" or not w.size for w in arrays):
        # Keras says what it takes.
        return
    if any(np.isnan(w).any() for w in arrays):
        # The loss that they make says more.
        return
    some = not arrays or any((w != 0).any() for w in arrays)
    if not some or any((w < 0).any() for w in arrays):
        least = min(w.min() for w in arrays)
        most = max(w.max() for w in arrays)
        raise ValueError(
            "Sample weights of `reg_data` must not be negative, and some must "
            "be above 0: rho would learn nothing, or to make the loss worse. "
            f"Received: sample_weight with values from {least} to {most}"
        )


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


def not_finite_rows(batch: Any) -> list[int]:
    """The examples of a batch that hold a NaN or an infinity."""
    found: set[int] = set()
    for array in _dense_arrays(batch):
        if keras.backend.is_float_dtype(str(array.dtype)):
            wrong = ~np.isfinite(array.astype("float64"))
            axes = tuple(range(1, wrong.ndim))
            found |= set(np.flatnonzero(wrong.any(axis=axes)).tolist())
    return sorted(found)


def extreme_labels(reg_data: Any) -> Any:
    """The examples with the least and the most integer target of each output.

    Of NumPy arrays, and of those that have a weight; `None` of others. A label
    that the loss does not take is not in the first batch alone.
    """
    if not isinstance(reg_data, tuple) or len(reg_data) not in (2, 3):
        return None
    if not all(isinstance(a, np.ndarray) for a in tree.flatten(reg_data)):
        return None
    targets = tree.flatten(reg_data[1])
    weights: list[Any] = [None] * len(targets)
    if len(reg_data) == 3:
        weights = tree.flatten(reg_data[2])
        if len(weights) == 1:
            weights *= len(targets)
        if len(weights) != len(targets):
            return None
    rows = []
    for y, weight in zip(targets, weights, strict=True):
        if y.dtype.kind not in "iu" or not y.size:
            continue
        known = np.arange(len(y))
        if weight is not None:
            if len(weight) != len(y):
                return None
            used = (weight.reshape(len(y), -1) != 0).any(axis=1)
            known = np.flatnonzero(used)
        if known.size:
            flat = y.reshape(len(y), -1)[known]
            rows.append(known[flat.min(axis=1).argmin()])
            rows.append(known[flat.max(axis=1).argmax()])
    return tree.map_structure(lambda a: a[rows], reg_data) if rows else None


def label_range(y: Any) -> tuple[int, int] | None:
    """The least and the most of integer targets; `None` where are none."""
    arrays = [a for a in _dense_arrays(y) if a.dtype.kind in "iu" and a.size]
    if not arrays:
        return None
    least, most = min(a.min() for a in arrays), max(a.max() for a in arrays)
    return int(least), int(most)


def are_beyond_classes(
    loss: Any, y: Any, y_pred: Any, names: Any = None
) -> bool:
    """Whether a loss of classes gives a number for labels that are none.

    Keras's on JAX does: such a label is a row of zeros there, of no loss.

    Args:
        loss: What `compile(loss=)` was given.
        y: The targets.
        y_pred: The predictions.
        names: Those of the outputs, where the model has any.
    """
    if isinstance(loss, dict) and isinstance(y_pred, (list, tuple)) and names:
        y_pred = dict(zip(names, y_pred, strict=True))
        if isinstance(y, (list, tuple)):
            y = dict(zip(names, y, strict=True))
    if isinstance(y_pred, (dict, list, tuple)):
        keys = y_pred.keys() if isinstance(y_pred, dict) else range(len(y_pred))
        try:
            return any(
                are_beyond_classes(
                    loss[k] if tree.is_nested(loss) else loss, y[k], y_pred[k]
                )
                for k in keys
            )
        except (KeyError, IndexError, TypeError):
            # Keras has other ways to say which is whose.
            return False
    labels, classes = label_range(y), num_classes(loss, y_pred)
    if labels is None or classes is None:
        return False
    return labels[0] < 0 or labels[1] >= classes


def num_classes(loss: Any, y_pred: Any) -> int | None:
    """The classes of a lone output, if all integers below it are fine labels.

    `None` where the loss is another, where there are several outputs, and where
    the size is open.
    """
    shape = None if tree.is_nested(y_pred) else getattr(y_pred, "shape", None)
    if not shape:
        return None
    known = "sparse_categorical_crossentropy", "SparseCategoricalCrossentropy"
    name = loss if isinstance(loss, str) else type(loss).__name__
    if name not in known and getattr(loss, "__name__", "") not in known:
        return None
    if getattr(loss, "ignore_class", None) is not None:
        return None
    classes = shape[loss_axis(loss)]
    return None if classes is None else int(classes)


def _dense_arrays(structure: Any) -> list[np.ndarray]:
    """The arrays that are neither sparse nor ragged."""
    arrays = []
    for tensor in tree.flatten(structure):
        if tensor is None:
            continue
        try:
            array = np.asarray(ops.convert_to_numpy(tensor))
        except (AttributeError, NotImplementedError, TypeError, ValueError):
            continue
        if array.ndim:
            arrays.append(array)
    return arrays
