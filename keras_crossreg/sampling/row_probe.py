"""What a model does to a batch: samples may have to be drawn apart.

K samples are K times as many rows in one pass. That is right where a layer
looks at one row at a time, and keeps nothing of it, as Keras's layers do in
inference mode. In-batch similarities, a mean over the batch, or a loss that a
layer sums over the batch would see the rows of all samples at once; so would a
state over batches, a counter or a metric; and what draws in inference mode,
unknown to us, might draw once for all of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_crossreg._keras import Functional
from keras_crossreg._keras import all_layers
from keras_crossreg._keras import graph_operations
from keras_crossreg._keras import graph_structure
from keras_crossreg._keras import is_keras_layer
from keras_crossreg.layers.rho_layer import RhoLayer
from keras_crossreg.rho import is_rho
from keras_crossreg.sampling.state import Call
from keras_crossreg.sampling.state import keeps_state
from keras_crossreg.sampling.state import watched

# Two batch sizes may be computed in another order: what differs by more than
# this part of the largest output does not come from rounding. The second is
# that of networks that compute in sixteen bits.
_TOLERANCE, _TOLERANCE_OF_16_BITS = 1e-3, 5e-2
# Sequences, images and the like whose size is open get so many steps or pixels.
_OPEN_SIZE = 8


@dataclasses.dataclass(frozen=True)
class Look:
    """What is known of a model.

    Attributes:
        rows_meet: Whether the rows of a batch meet in it.
        moving: The variables that a pass in inference mode moves, seeds
            aside.
    """

    rows_meet: bool = False
    moving: tuple[keras.Variable, ...] = ()

    @property
    def apart(self) -> bool:
        """Whether each sample takes a pass of its own."""
        return self.rows_meet or bool(self.moving)


def needs_a_look(model: keras.Model) -> bool:
    """Whether anything in a model may look at more than one row, or keep some.

    Keras's own layers do not in inference mode, nor do rho layers. A `call` of
    the user's own, an operation between layers or a state over batches may.
    """
    if not isinstance(model, Functional):
        return True
    layers = all_layers(model)
    models = [model, *(la for la in layers if isinstance(la, keras.Model))]
    known = (Functional.call, keras.Sequential.call)
    if not all(type(m).call in known for m in models):
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
        return is_ours(operation) or not _owns_state(operation)
    return (
        is_keras_layer(operation)
        and not isinstance(operation, keras.layers.Lambda)
        and not getattr(operation, "stateful", False)
    )


def is_ours(layer: Any) -> bool:
    """Whether a layer is of this library, and not of a class of its own."""
    return type(layer).__module__.startswith("keras_crossreg.")


def _owns_state(layer: keras.layers.Layer) -> bool:
    """Whether a rho layer has variables that are neither rho nor seeds."""
    return bool(layer.metrics_variables) or not all(
        v.trainable or is_rho(v) for v in layer.weights
    )


def look_at(model: keras.Model, x: Any) -> Look:
    """Calls a model in inference mode, three times at most, to see.

    Nothing of it moves.

    Args:
        model: The model.
        x: Inputs. The first two rows are used where that tells enough.
    """
    has_state = any(map(keeps_state, all_layers(model)))
    if has_state or fixed_batch(model) is not None:
        # A state has a row for each of a batch.
        call = _call(model, x)
        return Look(rows_meet=not call.moved, moving=call.moved)
    both, first, second = (
        tree.map_structure(
            lambda a, rows=rows: None if a is None else a[rows], two_rows(x)
        )
        for rows in (slice(None), slice(0, 1), slice(1, 2))
    )
    is_short = any(
        layer.compute_dtype in ("float16", "bfloat16")
        for layer in all_layers(model)
    )
    tolerance = _TOLERANCE_OF_16_BITS if is_short else _TOLERANCE
    call = _call(model, both)
    if call.moved or call.draws:
        return Look(rows_meet=call.draws, moving=call.moved)
    outputs, loss = _numbers(call)
    apart = [_numbers(_call(model, x)) for x in (first, second)]
    losses = [one_loss for _, one_loss in apart]
    # A mean over rows is right, in any number of copies of them; a sum is not.
    if abs(loss - np.mean(losses)) > tolerance * max(map(abs, losses)):
        return Look(rows_meet=True)
    return Look(
        rows_meet=not all(
            _are_rows(two, one, other, tolerance)
            for two, one, other in zip(
                outputs, *(one for one, _ in apart), strict=True
            )
        )
    )


def fixed_batch(model: Any) -> int | None:
    """The size of every batch, where inputs or recurrent states say one."""
    inputs = model.inputs if isinstance(model, Functional) else []
    shapes = [v.shape for v in inputs]
    shapes += [
        v.shape
        for layer in all_layers(model)
        if keeps_state(layer)
        for v in tree.flatten(getattr(layer, "states", None))
        if v is not None
    ]
    return next((shape[0] for shape in shapes if shape[0] is not None), None)


def _call(model: keras.Model, x: Any) -> Call:
    return watched(lambda: model(x, training=False))


def _numbers(call: Call) -> tuple[list[np.ndarray], float]:
    """Outputs, and what layers added to the loss."""
    arrays = [
        np.asarray(ops.convert_to_numpy(y)) for y in tree.flatten(call.result)
    ]
    return arrays, sum(float(ops.convert_to_numpy(v)) for v in call.losses)


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
    """Inputs of a few rows for a functional model; `None` for other models."""
    if not isinstance(model, Functional):
        return None
    rows = fixed_batch(model) or 2
    rng = np.random.default_rng(0)
    return tree.map_structure(
        lambda tensor: random_numbers(tensor, rows, rng),
        graph_structure(model)[0],
    )


def random_numbers(spec: Any, rows: int, rng: Any = None) -> Any:
    """A batch of random numbers, like a symbolic tensor or an `InputSpec`."""
    rng = rng or np.random.default_rng(0)
    shape = [_OPEN_SIZE if n is None else n for n in spec.shape[1:]]
    if keras.backend.is_float_dtype(spec.dtype):
        return ops.cast(rng.normal(size=(rows, *shape)), spec.dtype)
    return ops.cast(rng.integers(0, 2, (rows, *shape)), spec.dtype)
