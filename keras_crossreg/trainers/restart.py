"""Theta half way back to their start, for the epochs that finish a fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from keras_crossreg._keras import averages_of
from keras_crossreg._keras import count_steps
from keras_crossreg._keras import inner_optimizer
from keras_crossreg.regularizers.level_sets import level_set_of

#: The part of the way that theta keep.
KEPT = 0.5


class Start:
    """What theta and their optimizer were when `fit` was called.

    Args:
        model: A built model. What is kept of it is copied.
    """

    def __init__(self, model: Any) -> None:
        self._theta = _values(model.theta_variables)
        self._optimizer = _values(_state(model.optimizer))
        self._steps = count_steps(model.optimizer)

    def steps_since(self, model: Any) -> int:
        """Training steps of the model since then."""
        return count_steps(model.optimizer) - self._steps

    def restart(self, model: Any) -> None:
        """Takes theta half way back, and the optimizer all the way.

        `theta <- theta_start + (theta - theta_start) / 2`. The optimizer
        begins anew, with its learning rate and its schedule.
        """
        go_back(model.theta_variables, self._theta)
        # A callback may have put the averages of theta in the place of theta.
        averages = averages_of(inner_optimizer(model.optimizer))
        if averages:
            go_back(averages, self._theta)
        state = _state(model.optimizer)
        for variable, value in zip(state, self._optimizer, strict=True):
            variable.assign(value)


def go_back(theta: Iterable[keras.Variable], start: Iterable[Any]) -> None:
    """Moves each variable half way to a start value of its own.

    A weight with a learned regularizer stays where it is: its complexity is
    rho.
    """
    for variable, value in zip(theta, start, strict=True):
        if level_set_of(variable) is not None:
            continue
        value = ops.cast(value, variable.dtype)
        variable.assign(value + KEPT * (variable - value))
        if variable.constraint is not None:
            variable.assign(
                variable.constraint(ops.convert_to_tensor(variable))
            )


def _state(optimizer: Any) -> list[keras.Variable]:
    """The variables of an optimizer, but for averages of theta.

    What scales the loss stays as it is, too.
    """
    optimizer = inner_optimizer(optimizer)
    averages = {id(v) for v in averages_of(optimizer)}
    return [v for v in optimizer.variables if id(v) not in averages]


def _values(variables: Iterable[keras.Variable]) -> list[Any]:
    return [ops.copy(variable.value) for variable in variables]
