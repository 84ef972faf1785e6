"""What theta's answer to rho adds to the gradient of rho."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_crossreg import primitives
from keras_crossreg.hypergradients.options import OneStep
from keras_crossreg.hypergradients.solvers import ROUNDING
from keras_crossreg.hypergradients.solvers import Tensors
from keras_crossreg.hypergradients.solvers import add
from keras_crossreg.hypergradients.solvers import conjugate_gradients
from keras_crossreg.hypergradients.solvers import dot
from keras_crossreg.hypergradients.solvers import neumann_series
from keras_crossreg.regularizers.level_sets import level_set_of


class SecondOrderError(ValueError):
    """The training loss does not allow for a hypergradient of second order.

    No fault of `reg_data`, as other errors of the regularization pass are.
    """


def correction(
    options: Any,
    training_loss: Callable[[], Any],
    theta: list[keras.Variable],
    rho: list[keras.Variable],
    reg_gradients: Tensors,
    learning_rate: Callable[[], Any],
    received: Any,
) -> tuple[Tensors, Any]:
    """`(dtheta/drho)' dL_reg/dtheta`, by Hessian-vector products.

    Theta follows `dL_train/dtheta = 0`, so that `H dtheta/drho = -M` with
    `H = d2L_train/dtheta2` and `M = d2L_train/dtheta drho`. With
    `H q = dL_reg/dtheta`, what is wanted is `-M' q`.

    Args:
        options: What `compile(hypergradient=)` was given, an object of
            `kcr.hypergradients`.
        training_loss: L_train as a function of theta and of rho.
        theta: The variables of theta.
        rho: The rho to learn.
        reg_gradients: `dL_reg/dtheta`, one for each of `theta`.
        learning_rate: Returns that of the optimizer of theta.
        received: The `hypergradient` that an error names.

    Returns:
        `(corrections, is_positive)`: one for each rho; and whether all are
        finite and no direction of negative curvature was met. If not, the
        corrections are zeros.

    Raises:
        SecondOrderError: If the training loss cannot be differentiated twice.
    """
    start = _project(theta, _dense(reg_gradients, theta))
    try:
        hessian_product, mixed_product = primitives.second_order(
            training_loss, theta, rho
        )
        if isinstance(options, OneStep):
            step = options.step_size
            if step is None:
                step = learning_rate()
            q = [ops.cast(step, g.dtype) * g for g in start]
            is_positive = ops.convert_to_tensor(True)
        else:

            def product(vectors: Tensors) -> Tensors:
                curved = hessian_product(_project(theta, vectors))
                return add(_project(theta, curved), options.damping, vectors)

            solve = {"cg": conjugate_gradients, "neumann": neumann_series}
            q, is_positive = solve[options.solver](
                product, start, options.num_terms
            )
        mixed = mixed_product(q)
    except primitives.NotDifferentiableTwice as error:
        raise SecondOrderError(
            "`hypergradient` needs a training loss that can be differentiated "
            f"twice in theta, and {error}. Use "
            f'`hypergradient="direct"`. Received: hypergradient={received}'
        ) from error
    # A number that is not finite is out of range, of float16 above all.
    is_good = is_positive
    for m in mixed:
        is_good = ops.logical_and(is_good, ops.all(ops.isfinite(m)))
    # Where theta are at no minimum, all terms are left out: those before
    # the first bad one led rho far astray.
    return [ops.where(is_good, -m, ops.zeros_like(m)) for m in mixed], is_good


def _project(theta: list[keras.Variable], vectors: Tensors) -> Tensors:
    """Vectors onto the directions in which constrained weights can move.

    A constraint is a projection, and its derivative is the projection onto
    the tangent space: `I - u u'` on the unit sphere. Where there is none, as
    in a corner of the L1 ball, rounding leaves a remainder, of no curvature:
    solved for, it would be a step without bounds.
    """
    projected = []
    for variable, whole in zip(theta, vectors, strict=True):
        vector = whole
        level_set = level_set_of(variable)
        if level_set is not None:
            vector = level_set.project(vector)
        if variable.constraint is not None:
            vector = _through_constraint(variable, vector)
        if vector is not whole:
            least = ROUNDING**2 * dot([whole], [whole])
            is_left = dot([vector], [vector]) > least
            vector = ops.where(is_left, vector, ops.zeros_like(vector))
        projected.append(vector)
    return projected


def _through_constraint(variable: keras.Variable, vector: Any) -> Any:
    return primitives.vector_jacobian(
        lambda: variable.constraint(ops.convert_to_tensor(variable)),
        variable,
        vector,
    )


def _dense(gradients: Any, like: list[keras.Variable]) -> Tensors:
    """Tensors of the shapes of `like`, zeros where there is no gradient."""
    return [
        ops.zeros(v.shape, v.dtype) if g is None else ops.convert_to_tensor(g)
        for g, v in zip(gradients, like, strict=True)
    ]
