"""How the gradient of rho takes in that theta answers to rho."""

from __future__ import annotations

import numbers
from typing import Any

import keras

from keras_crossreg.checks import check_integer

SOLVERS = ("cg", "neumann")


class Hypergradient:
    """Base of what `compile(hypergradient=)` takes, saved with the model.

    Args:
        batch_size: See the subclasses.

    Raises:
        ValueError: If `batch_size` is neither `None` nor a positive integer.
    """

    def __init__(self, batch_size: int | None = None) -> None:
        if batch_size is not None:
            batch_size = check_integer("batch_size", batch_size, 1)
        self.batch_size = batch_size

    def get_config(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Hypergradient:
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_crossreg")
class Implicit(Hypergradient):
    """The whole derivative of the regularization loss, theta at its optimum.

    Training takes theta to where `dL_train / dtheta = 0`, and that place moves
    with rho. The derivative along it is

    `dL_reg/drho - d/drho (dL_train/dtheta . q)`, with `H q = dL_reg/dtheta`

    and H the Hessian of the training loss in theta. H is never built: `q` comes
    from products `H p`, each at about twice the price of a gradient, at the
    last training batch and with one sample of the noise for all of them.

    Far from a minimum the curvature may be negative. Such rho steps are as
    with `"direct"`, and `fit` ends with a warning that counts them.
    `compile(reg_warmup=)` lets theta arrive first.

    Weights with a constraint, as the direction in `NormMagnitude`, stay in the
    tangent space of what the constraint allows.

    Args:
        num_terms: Integer, at least 1. The most products `H p` in a rho step.
            It ends earlier where the remainder is `1e-5` of the start.
            Defaults to `20`.
        damping: Float, not negative. Added to the diagonal of H: directions
            of less curvature than this are left out, more or less. Zero is
            exact; networks need some. Defaults to `0.0`.
        solver: `"cg"`, conjugate gradients, or `"neumann"`, the Neumann
            series `q <- q + a (dL_reg/dtheta - H q)`, with the `a` that leaves
            the smallest remainder. Defaults to `"cg"`.
        batch_size: Integer. The training loss here is of the first so many
            examples of the training batch, as the curvature of Hessian-free
            optimization: time and memory are in proportion to it. `None` for
            all. Defaults to `None`.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> implicit = kcr.hypergradients.Implicit(damping=0.1)
    >>> model.compile("adam", "mse", hypergradient=implicit)

    Reference:

    - [Pedregosa, 2016](https://arxiv.org/abs/1602.02355): conjugate gradients.
    - [Lorraine et al., 2020](https://arxiv.org/abs/1911.02590): the Neumann
      series.
    - [Martens, 2010](https://www.cs.toronto.edu/~jmartens/docs/Deep_HessianFree.pdf),
      section 4.5: curvature on a part of the batch.
    """

    def __init__(
        self,
        num_terms: int = 20,
        damping: float = 0.0,
        solver: str = "cg",
        batch_size: int | None = None,
    ) -> None:
        super().__init__(batch_size)
        if solver not in SOLVERS:
            raise ValueError(
                f"`solver` must be one of {SOLVERS}. Received: solver={solver}"
            )
        self.num_terms: int = check_integer("num_terms", num_terms, 1)
        self.damping: float = _check_float("damping", damping)
        self.solver: str = solver

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_terms": self.num_terms,
            "damping": self.damping,
            "solver": self.solver,
        }


@keras.saving.register_keras_serializable(package="keras_crossreg")
class OneStep(Hypergradient):
    """The derivative through one step of gradient descent of theta.

    `dL_reg/drho - d/drho (dL_train/dtheta . a dL_reg/dtheta)`: as `Implicit`
    with the inverse of the Hessian replaced by the step size a. One more pass
    over the training batch, whatever the size of the model.

    Args:
        step_size: Float, not negative. `None` for the learning rate of the
            optimizer of theta. That is right for plain SGD; an adaptive
            optimizer takes other steps, which are not looked at. Defaults to
            `None`.
        batch_size: As for `Implicit`. Defaults to `None`.

    Raises:
        ValueError: If an argument is out of range.

    Reference:

    - [Luketina et al., 2016](https://arxiv.org/abs/1511.06727), T1-T2.
    """

    def __init__(
        self, step_size: float | None = None, batch_size: int | None = None
    ) -> None:
        super().__init__(batch_size)
        if step_size is not None:
            step_size = _check_float("step_size", step_size)
        self.step_size = step_size

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "step_size": self.step_size}


def _check_float(name: str, value: Any) -> float:
    if not isinstance(value, numbers.Real) or not 0 <= float(value) < float(
        "inf"
    ):
        raise ValueError(
            f"`{name}` must be a finite number that is not negative. "
            f"Received: {name}={value}"
        )
    return float(value)
