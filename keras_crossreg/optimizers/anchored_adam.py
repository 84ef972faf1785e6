"""Adam that leaves rho where they start unless there is evidence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from keras_crossreg import _keras
from keras_crossreg.checks import check_number


@keras.saving.register_keras_serializable(package="keras_crossreg")
class AnchoredAdam(keras.optimizers.Adam):
    """Adam that leaves rho near their start unless there is evidence.

    On n held-out examples the gradient of a strength has a standard error.
    Adam, which divides by the size of the gradient, follows the error of
    twenty examples as fast and as far as a fact. Here, each of its steps is
    followed by a pull back to the start,

    `rho <- rho - learning_rate * anchor * sqrt(B_reg / n) * s * (rho - start)`

    with B_reg examples in a regularization batch and `s = sqrt(1 - m^2 / v)`,
    m and v being Adam's means of gradients and of their squares: `s sqrt(v)` is
    their noise from batch to batch. So rho come to rest where the mean gradient
    is `anchor * (rho - start)` standard errors of the whole set: **with an
    anchor of 1, one stored unit from the start for each standard error.**
    Sigmas are stored through a softplus and rates through a logit: far below 1,
    a unit is a factor of e. The unit of the loss does not matter, and a large
    set leads rho anywhere.

    `fit` says which rho are held, those of noise, dropout and augmentation,
    and what `B_reg / n` is. It is 0, and this is Adam, where n is not known:
    for generators and for endless datasets, and outside of `fit`.

    The pull is that of decoupled weight decay (Loshchilov and Hutter, 2019),
    not towards 0. That its strength is a standard error is ours; what it was
    measured on is in `docs/defaults.md`.

    Args:
        learning_rate: Float, or a schedule. Defaults to `0.1`.
        anchor: Float, at least 0, which is Adam: the standard errors that a
            move of one stored unit takes. Defaults to `1.0`.
        beta_1: Float, see `keras.optimizers.Adam`. Defaults to `0.9`.
        beta_2: Float, see there. Defaults to `0.999`.
        epsilon: Float, see there. Defaults to `1e-7`.
        name: String. Defaults to `"anchored_adam"`.
        **kwargs: Of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> closer = kcr.optimizers.AnchoredAdam(anchor=2.0)
    >>> model.compile("adam", "mse", rho_optimizer=closer)
    """

    def __init__(
        self,
        learning_rate: Any = 0.1,
        anchor: float = 1.0,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        name: str = "anchored_adam",
        **kwargs: Any,
    ) -> None:
        anchor = check_number("anchor", anchor, 0)
        super().__init__(
            learning_rate=learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            name=name,
            **kwargs,
        )
        self.anchor = anchor

    def build(self, variables: Any) -> None:
        """Takes what the variables are now for their start."""
        if self.built:
            return
        super().build(variables)
        self._starts = [
            self.add_variable_from_reference(v, "start", _value_of(v))
            for v in variables
        ]
        # `B_reg / n` of each variable that is held.
        self._parts = self.add_variable(
            (len(variables),), "zeros", "float32", name="parts"
        )

    def hold(self, variables: Iterable[Any], part: float) -> None:
        """Holds these variables from now on, and no others.

        Args:
            variables: Those among what the optimizer was built on.
            part: Float `B_reg / n`, from 0 to 1.
        """
        held = {_keras.variable_index(self, v) for v in variables}
        count = self._parts.shape[0]
        self._parts.assign([part if i in held else 0.0 for i in range(count)])

    def start_again(self, variables: Iterable[Any]) -> None:
        """Takes what these variables are now for their start."""
        for variable in variables:
            start = self._starts[_keras.variable_index(self, variable)]
            start.assign(ops.copy(ops.convert_to_tensor(variable)))

    def has_pushed(self, variable: Any) -> bool:
        """Whether it had gradients: what is held may be back at its start."""
        square = self._velocities[_keras.variable_index(self, variable)]
        largest = float(ops.convert_to_numpy(ops.max(ops.sqrt(square))))
        return bool(largest > 0.01 * self.epsilon)

    def update_step(
        self, gradient: Any, variable: Any, learning_rate: Any
    ) -> None:
        """Adam's step, and the pull."""
        super().update_step(gradient, variable, learning_rate)
        if not self.anchor:
            return
        i = _keras.variable_index(self, variable)
        dtype = variable.dtype
        step = ops.cast(self.iterations + 1, dtype)
        mean = self._momentums[i] / (1 - ops.power(self.beta_1, step))
        square = self._velocities[i] / (1 - ops.power(self.beta_2, step))
        noise = ops.sqrt(
            ops.clip(1 - ops.divide_no_nan(mean * mean, square), 0, 1)
        )
        part = ops.sqrt(ops.cast(self._parts[i], dtype))
        pull = ops.cast(learning_rate, dtype) * self.anchor * part
        self.assign_sub(variable, pull * noise * (variable - self._starts[i]))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "anchor": self.anchor}


def _value_of(variable: Any) -> Any:
    """An initializer that gives what the variable is when it is asked."""

    def initializer(shape: Any, dtype: Any = None) -> Any:
        return ops.cast(ops.copy(ops.convert_to_tensor(variable)), dtype)

    return initializer
