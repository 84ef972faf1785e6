"""What theta's answer to rho adds to the gradient of rho."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from keras_crossreg import _keras
from keras_crossreg.hypergradients import OneStep

Tensors = list[tf.Tensor]

# Of the first remainder; float32 gives no better.
_TOLERANCE = 1e-5
# What rounding can make of zero: a curvature, in units of the largest met; a
# projection, in units of what is projected.
_ROUNDING = 1e-5


class SecondOrderError(ValueError):
    """Not a fault of `reg_data`."""


def correction(
    model: Any, data: Any, rho: list[keras.Variable], reg_gradients: Tensors
) -> tuple[Tensors, tf.Tensor]:
    """`(dtheta/drho)' dL_reg/dtheta`, by Hessian-vector products.

    Theta follows `dL_train/dtheta = 0`, so that `H dtheta/drho = -M` with
    `H = d2L_train/dtheta2` and `M = d2L_train/dtheta drho`. With
    `H q = dL_reg/dtheta`, what is wanted is `-M' q`.

    Args:
        model: The `CrossRegModel`.
        data: A training batch.
        rho: The rho to learn.
        reg_gradients: `dL_reg/dtheta`, one for each of `theta_variables`.

    Returns:
        `(corrections, is_positive)`: one for each rho; and whether all are
        finite and no direction of negative curvature was met. If not, the
        corrections are zeros.

    Raises:
        ValueError: If the training loss cannot be differentiated twice.
    """
    config = model._hypergradient
    data = first_examples(data, config.batch_size)
    theta = [v.value for v in model.theta_variables]
    rho = [v.value for v in rho]
    project = _tangent_projection(model)
    start = project(_dense(reg_gradients, theta))
    try:
        with tf.GradientTape(
            persistent=True, watch_accessed_variables=False
        ) as outer:
            outer.watch(theta + rho)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(theta)
                loss = training_loss(model, data)
            gradients = _dense(inner.gradient(loss, theta), theta)

        def products(sources: Any, vectors: Tensors) -> Tensors:
            found = outer.gradient(gradients, sources, output_gradients=vectors)
            return _dense(found, sources)

        if isinstance(config, OneStep):
            step = config.step_size
            if step is None:
                step = model.optimizer.learning_rate
            q = [tf.cast(step, g.dtype) * g for g in start]
            is_positive = tf.constant(True)
        else:

            def hessian(vectors: Tensors) -> Tensors:
                curved = project(products(theta, project(vectors)))
                return _add(curved, config.damping, vectors)

            solve = _conjugate_gradients
            if config.solver == "neumann":
                solve = _neumann_series
            q, is_positive = solve(hessian, start, config.num_terms)
        mixed = products(rho, q)
    except LookupError as error:
        raise SecondOrderError(
            "`hypergradient` needs a training loss that can be differentiated "
            f"twice in theta, and TensorFlow cannot: {error}. Use "
            '`hypergradient="direct"`. '
            f"Received: hypergradient={model._reg.settings['hypergradient']}"
        ) from error
    # Not finite: out of range, of float16 above all.
    is_good = is_positive & tf.reduce_all(
        [tf.reduce_all(tf.math.is_finite(m)) for m in mixed]
    )
    # Where theta are at no minimum, all terms are left out: those before
    # the first bad one led rho far astray.
    return [tf.where(is_good, -m, tf.zeros_like(m)) for m in mixed], is_good


def training_loss(model: Any, data: Any) -> tf.Tensor:
    """L_train as a function of theta and of rho, and nothing else.

    The pass of a training step, but that the gradient of rho is let through.
    It leaves no trace: every variable, the state of random generators and of
    BatchNormalization too, keeps its value.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    # All of theta: Keras asks here for every weight with a regularizer.
    values = {id(v): (v, v.value) for v in model.theta_variables}
    for s in model._level_sets.values():
        values[id(s.weight)] = s.weight, s.moved()
    with keras.StatelessScope(list(values.values()), collect_losses=True):
        y_pred = model(x, training=True, sampling=True)
        return _keras.compute_loss(model, x, y, y_pred, sample_weight)


def first_examples(data: Any, size: int | None) -> Any:
    """The first so many examples of a batch, all if `None`."""

    def of_one(x: Any) -> Any:
        if x is None or size is None:
            return x
        if isinstance(x, tf.SparseTensor):
            rows = tf.minimum(size, tf.shape(x, "int64")[0])
            whole = tf.shape(x, "int64")[1:]
            return tf.sparse.slice(
                x, tf.zeros_like(x.dense_shape), tf.concat([[rows], whole], 0)
            )
        return x[:size]

    return tree.map_structure(of_one, data)


def _tangent_projection(model: Any) -> Callable[[Tensors], Tensors]:
    """Onto the directions in which constrained weights can move.

    A constraint is a projection, and its derivative is the projection onto
    the tangent space: `I - u u'` on the unit sphere. Where there is none, as
    in a corner of the L1 ball, rounding leaves a remainder, of no curvature:
    solved for, it would be a step without bounds.
    """

    level_sets = model._level_sets

    def project(vectors: Tensors) -> Tensors:
        projected = []
        for variable, whole in zip(model.theta_variables, vectors, strict=True):
            vector = whole
            if id(variable) in level_sets:
                vector = level_sets[id(variable)].project(vector)
            if variable.constraint is not None:
                value = tf.convert_to_tensor(variable.value)
                with tf.GradientTape() as tape:
                    tape.watch(value)
                    allowed = variable.constraint(value)
                vector = tape.gradient(
                    allowed, value, tf.cast(vector, allowed.dtype)
                )
            if vector is not whole:
                least = _ROUNDING**2 * _dot([whole], [whole])
                is_left = _dot([vector], [vector]) > least
                vector = tf.where(is_left, vector, tf.zeros_like(vector))
            projected.append(vector)
        return projected

    return project


def _conjugate_gradients(
    product: Callable[[Tensors], Tensors], b: Tensors, num_terms: int
) -> tuple[Tensors, tf.Tensor]:
    """Solves `H q = b`, for H that is positive on the span of `H^k b`."""

    def step(state: Any) -> Any:
        k, q, r, p, top, _, ok = state
        hp = product(p)
        curvature, length = _dot(p, hp), _dot(p, p)
        go, top, ok = _look(curvature, length, top, ok)
        size = _dot(r, r)
        a = tf.where(go, tf.math.divide_no_nan(size, curvature), 0.0)
        q, r = _add(q, a, p), _add(r, -a, hp)
        new_size = _dot(r, r)
        p = _add(r, tf.math.divide_no_nan(new_size, size), p)
        go &= new_size > _TOLERANCE**2 * goal
        return k + 1, q, r, p, top, go, ok

    goal = _dot(b, b)
    return _iterate(step, b, num_terms)


def _neumann_series(
    product: Callable[[Tensors], Tensors], b: Tensors, num_terms: int
) -> tuple[Tensors, tf.Tensor]:
    """The same by `q <- q + a r`, with the a of the smallest next r."""

    def step(state: Any) -> Any:
        k, q, r, p, top, _, ok = state
        hr = product(r)
        curvature, length = _dot(r, hr), _dot(r, r)
        go, top, ok = _look(curvature, length, top, ok)
        a = tf.where(go, tf.math.divide_no_nan(curvature, _dot(hr, hr)), 0.0)
        q, r = _add(q, a, r), _add(r, -a, hr)
        go &= _dot(r, r) > _TOLERANCE**2 * goal
        return k + 1, q, r, p, top, go, ok

    goal = _dot(b, b)
    return _iterate(step, b, num_terms)


def _look(
    curvature: tf.Tensor, length: tf.Tensor, top: tf.Tensor, ok: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Whether to go on in this direction; the largest curvature; all well."""
    rounding = _ROUNDING * top * length
    top = tf.maximum(top, tf.math.divide_no_nan(curvature, length))
    is_bad = (curvature < -rounding) & (length > 0)
    return curvature > 0, top, ok & ~is_bad


def _iterate(
    step: Callable[[Any], Any], b: Tensors, num_terms: int
) -> tuple[Tensors, tf.Tensor]:
    state = (
        tf.constant(0),
        [tf.zeros_like(v) for v in b],
        b,
        b,
        tf.constant(0.0),
        tf.constant(True),
        tf.constant(True),
    )
    if tf.executing_eagerly():
        while state[0] < num_terms and state[5]:
            state = step(state)
    else:
        # In a graph: one product in it, not `num_terms`.
        state = tf.while_loop(
            lambda k, *rest: (k < num_terms) & rest[4],
            lambda *state: step(state),
            state,
        )
    return state[1], state[6]


def _dense(gradients: Any, like: Any) -> Tensors:
    """Tensors of the shapes of `like`, zeros where there is no gradient."""
    return [
        tf.zeros(v.shape, v.dtype) if g is None else tf.convert_to_tensor(g)
        for g, v in zip(gradients, like, strict=True)
    ]


def _dot(a: Tensors, b: Tensors) -> tf.Tensor:
    """In float32, however theta are stored."""
    return tf.add_n(
        [
            tf.reduce_sum(tf.cast(x, "float32") * tf.cast(y, "float32"))
            for x, y in zip(a, b, strict=True)
        ]
    )


def _add(a: Tensors, factor: Any, b: Tensors) -> Tensors:
    return [x + tf.cast(factor, x.dtype) * y for x, y in zip(a, b, strict=True)]
