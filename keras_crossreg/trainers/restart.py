"""Theta shrunk and perturbed, for the epochs that finish a fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_crossreg._keras import all_layers
from keras_crossreg._keras import averages_of
from keras_crossreg._keras import count_steps
from keras_crossreg._keras import inner_optimizer
from keras_crossreg.regularizers.level_sets import level_set_of
from keras_crossreg.trainers.batch_statistics import moving_normalizations

#: Of a kernel that batch normalization frees of its scale, and that training
#: began with a draw: what is left of it, and how much of the draw comes back.
SHRUNK, PERTURBED = 0.5, 0.1
#: Of any other weight: the part of its way from the start that it keeps.
KEPT = 0.5


class Start:
    """What theta and their optimizer were when `fit` was called.

    Args:
        model: A built model. What is kept of it is copied.
    """

    def __init__(self, model: Any) -> None:
        self._theta = _values(model.theta_variables)
        drawn = drawn_kernels(model)
        self._is_drawn = [id(v) in drawn for v in model.theta_variables]
        self._optimizer = _values(_state(model.optimizer))
        self._steps = count_steps(model.optimizer)

    def steps_since(self, model: Any) -> int:
        """Training steps of the model since then."""
        return count_steps(model.optimizer) - self._steps

    def restart(self, model: Any) -> None:
        """Takes theta a part of the way back, and the optimizer all of it.

        The optimizer begins anew, with its learning rate and its schedule.
        """
        # A callback may have put the averages of theta in the place of theta.
        averages = averages_of(inner_optimizer(model.optimizer))
        for variables in (model.theta_variables, averages):
            if variables:
                go_back(variables, self._theta, self._is_drawn)
        state = _state(model.optimizer)
        for variable, value in zip(state, self._optimizer, strict=True):
            variable.assign(value)


def go_back(
    theta: Iterable[keras.Variable],
    start: Iterable[Any],
    is_drawn: Iterable[bool],
) -> None:
    """Moves weights back to their start.

    A kernel that was drawn there, in a network with batch normalization, is
    shrunk and perturbed: half of it, and a tenth of the draw. What it computes
    has the same scale, and it learns faster. Every other weight goes half way
    back, which keeps the scale that others expect, that of pretrained weights
    too. A weight with a learned regularizer does not move: its complexity is
    rho.

    Args:
        theta: The variables.
        start: A value for each.
        is_drawn: For each, whether that value is one that an initializer drew.
    """
    for variable, value, drawn in zip(theta, start, is_drawn, strict=True):
        if level_set_of(variable) is not None:
            continue
        value = ops.cast(value, variable.dtype)
        a, b = (SHRUNK, PERTURBED) if drawn else (KEPT, 1 - KEPT)
        variable.assign(a * variable + b * value)
        if variable.constraint is not None:
            variable.assign(
                variable.constraint(ops.convert_to_tensor(variable))
            )


def drawn_kernels(model: Any) -> set[int]:
    """The ids of kernels that are as their initializer draws them.

    Of networks with batch normalization that trains; none of others. Keras does
    not keep what a weight was set by. A kernel that was trained has another
    scale, or longer tails.
    """
    layers = all_layers(model)
    if not moving_normalizations(layers):
        return set()
    return {
        id(variable)
        for layer in layers
        for variable in layer.trainable_variables
        if len(variable.shape) > 1 and _is_drawn(layer, variable)
    }


def _is_drawn(layer: Any, variable: keras.Variable) -> bool:
    # Keras names an initializer after its weight: that of `kernel` is
    # `kernel_initializer`, that of `recurrent_kernel` `recurrent_initializer`.
    for name in (variable.name, variable.name.removesuffix("_kernel")):
        initializer = getattr(layer, f"{name}_initializer", None)
        if isinstance(initializer, keras.initializers.Initializer):
            break
    else:
        return False
    draw = np.asarray(
        ops.convert_to_numpy(initializer(variable.shape)), "float64"
    )
    value = np.asarray(ops.convert_to_numpy(variable.value), "float64")
    # The scale of n numbers is known to a part of about `1 / sqrt(n)`, four
    # times which is rare.
    slack = 0.02 + 4 / np.sqrt(value.size)
    scale, drawn_scale = np.sqrt(np.mean(value**2)), np.sqrt(np.mean(draw**2))
    tail, drawn_tail = np.abs(value).max(), np.abs(draw).max()
    return bool(
        abs(scale - drawn_scale) <= slack * drawn_scale
        and tail <= (1.2 + slack) * drawn_tail
        and drawn_scale > 0
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
