"""Whether the rows of a batch meet in a model: samples are then drawn apart.

K samples are K times as many rows in one pass. That is right where a layer
looks at one row at a time, as Keras's layers do in inference mode. In-batch
similarities, a mean over the batch, or a loss that a layer sums over the batch
would see the rows of all samples at once; and what draws in inference mode,
unknown to us, might draw once for all of them.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_crossreg._keras import Functional
from keras_crossreg._keras import all_layers
from keras_crossreg._keras import call_losses
from keras_crossreg._keras import graph_operations
from keras_crossreg._keras import graph_structure
from keras_crossreg._keras import is_keras_layer
from keras_crossreg.layers.rho_layer import RhoLayer

# Two batch sizes may be computed in another order: what differs by more than
# this part of the largest output does not come from rounding. The second is
# that of networks that compute in sixteen bits.
_TOLERANCE, _TOLERANCE_OF_16_BITS = 1e-3, 5e-2
# Sequences, images and the like whose size is open get so many steps or pixels.
_OPEN_SIZE = 8


def rows_may_meet(model: keras.Model) -> bool:
    """Whether anything in a model may look at more than one row.

    Keras's own layers do not in inference mode, nor do rho layers. A `call` of
    the user's own, an operation between layers or a state over batches may.
    """
    if not isinstance(model, Functional):
        return True
    layers = all_layers(model)
    models = [model, *(la for la in layers if isinstance(la, keras.Model))]
    if not all(isinstance(m, (Functional, keras.Sequential)) for m in models):
        return True
    operations = [
        operation
        for m in models
        if isinstance(m, Functional)
        for operation in graph_operations(m)
    ]
    return not all(map(_is_by_row, [*layers, *operations]))


def _is_by_row(operation: Any) -> bool:
    if isinstance(operation, keras.Model):
        return True
    if isinstance(operation, RhoLayer):
        return True
    return (
        is_keras_layer(operation)
        and not isinstance(operation, keras.layers.Lambda)
        and not getattr(operation, "stateful", False)
    )


def rows_meet(model: keras.Model, x: Any) -> bool:
    """Whether two rows in one batch give something else than one by one.

    Args:
        model: The model, which is called three times in inference mode.
        x: Inputs of two rows.
    """
    both, first, second = (
        tree.map_structure(
            lambda a, rows=rows: None if a is None else a[rows], x
        )
        for rows in (slice(None), slice(0, 1), slice(1, 2))
    )
    is_short = any(
        layer.compute_dtype in ("float16", "bfloat16")
        for layer in all_layers(model)
    )
    tolerance = _TOLERANCE_OF_16_BITS if is_short else _TOLERANCE
    together, loss = _look(model, both)
    apart = [_look(model, one) for one in (first, second)]
    losses = [one_loss for _, one_loss in apart]
    # A mean over rows is right, in any number of copies of them; a sum is not.
    if abs(loss - np.mean(losses)) > tolerance * max(map(abs, losses)):
        return True
    outputs = [one for one, _ in apart]
    return not all(
        _are_rows(two, one, other, tolerance)
        for two, one, other in zip(together, *outputs, strict=True)
    )


def _look(model: keras.Model, x: Any) -> tuple[list[np.ndarray], float]:
    """Outputs of an inference pass, and what its layers add to the loss."""
    outputs = tree.flatten(model(x, training=False))
    arrays = [np.asarray(ops.convert_to_numpy(y)) for y in outputs]
    loss = sum(float(ops.convert_to_numpy(v)) for v in call_losses(model))
    return arrays, loss


def _are_rows(
    both: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    tolerance: float,
) -> bool:
    if both.shape[:1] != (2,) or both.shape[1:] != first.shape[1:]:
        return False
    expected = np.concatenate([first, second])
    if both.dtype.kind != "f" and both.dtype.kind != "V":
        return np.array_equal(both, expected)
    both, expected = both.astype("float64"), expected.astype("float64")
    scale = np.abs(expected).max(initial=0.0)
    return bool(np.abs(both - expected).max(initial=0.0) <= tolerance * scale)


def two_rows(x: Any) -> Any:
    """The first two rows of a batch; twice the first where there is one."""

    def of_one(a: Any) -> Any:
        if a is None or a.shape[0] != 1:
            return a if a is None else a[:2]
        return ops.concatenate([a, a])

    return tree.map_structure(of_one, x)


def random_inputs(model: Any) -> Any:
    """Two rows of inputs for a functional model; `None` for other models."""
    if not isinstance(model, Functional):
        return None
    rng = np.random.default_rng(0)

    def draw(tensor: Any) -> Any:
        shape = [_OPEN_SIZE if n is None else n for n in tensor.shape[1:]]
        if keras.backend.is_float_dtype(tensor.dtype):
            return ops.cast(rng.normal(size=(2, *shape)), tensor.dtype)
        return ops.cast(rng.integers(0, 2, (2, *shape)), tensor.dtype)

    return tree.map_structure(draw, graph_structure(model)[0])
