"""What passes in inference mode move: recurrent states, counters, metrics.

A sampling pass starts from the state that is there, and samples of a
regularization batch leave none behind. Those of predictions run side by side:
each of the K goes on from batch to batch as a model that draws once would.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_crossreg._keras import NestedScope
from keras_crossreg._keras import all_layers
from keras_crossreg.primitives import on_device_of

# The name of the state of every `keras.random.SeedGenerator`.
_SEED = "seed_generator_state"


@dataclasses.dataclass(frozen=True)
class Call:
    """What a call returned and did; variables have kept their values.

    Attributes:
        result: What it returned.
        losses: What `add_loss` got.
        moved: The variables that it would have moved, but seeds.
        draws: Whether seeds would have moved too.
    """

    result: Any
    losses: list[Any]
    moved: tuple[keras.Variable, ...]
    draws: bool


def watched(function: Callable[[], Any]) -> Call:
    """Calls a function, and leaves variables as they were.

    Notes those that it would move: Keras tracks the weights of a layer, but
    not recurrent states.
    """
    with NestedScope(collect_losses=True) as scope:
        result = function()
    assigned = scope.updated
    moved = tuple(v for v in assigned if v.name != _SEED)
    return Call(result, scope.losses, moved, len(moved) < len(assigned))


def keeps_state(layer: Any) -> bool:
    """Whether a layer was asked to keep its state from batch to batch."""
    return bool(getattr(layer, "stateful", False))


def reset_states(model: keras.Model) -> None:
    """Sets recurrent states to those that a sequence starts with."""
    for layer in all_layers(model):
        if keeps_state(layer) and hasattr(layer, "reset_state"):
            layer.reset_state()


@contextlib.contextmanager
def kept(variables: Sequence[keras.Variable]) -> Iterator[None]:
    """Leaves variables as they were."""
    before = [_copy(v) for v in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            with on_device_of(value):
                variable.assign(value)


def _copy(variable: keras.Variable) -> Any:
    value = variable.value
    with on_device_of(value):
        return ops.copy(value)


class SampleRuns:
    """The states of K runs of a model, one for each sample.

    The variables themselves have the state of the last one. Where something
    else has set them, a reset or training, all runs go on from there.

    Args:
        variables: What a pass moves.
        num_samples: Integer K.
    """

    def __init__(
        self, variables: Sequence[keras.Variable], num_samples: int
    ) -> None:
        self.variables = variables
        self.states = [
            keras.Variable(
                ops.copy(
                    ops.repeat(ops.expand_dims(v, 0), num_samples, axis=0)
                ),
                trainable=False,
                dtype=v.dtype,
                name="states_of_samples",
            )
            for v in variables
        ]

    def starts(self) -> list[Any]:
        """The values that each run starts a batch with, `(K, ...)`."""

        def start(variable: keras.Variable, states: keras.Variable) -> Any:
            value = ops.copy(variable.value)
            goes_on = ops.all(ops.equal(value, states.value[-1]))
            anew = ops.broadcast_to(value, states.shape)
            return ops.where(goes_on, states.value, anew)

        return [
            start(v, s)
            for v, s in zip(self.variables, self.states, strict=True)
        ]

    def keep(self, ends: list[list[Any]]) -> None:
        """Keeps what each run ended with: for each run, the values."""
        for states, values in zip(
            self.states, zip(*ends, strict=True), strict=True
        ):
            states.assign(ops.stack(values))
