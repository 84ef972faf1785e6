"""The primitives on JAX.

A function that is differentiated may read and assign variables: it runs in a
scope, whose assignments are made outside afterwards. Masks are attributes of
arrays, which no transformation of JAX keeps: they go in and out beside them.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import jax
import keras
from jax.interpreters import partial_eval
from keras import tree

from keras_crossreg._keras import NestedScope
from keras_crossreg._keras import optimized_variables
from keras_crossreg.primitives.masked_leaves import flatten
from keras_crossreg.primitives.masked_leaves import unflatten
from keras_crossreg.primitives.masked_leaves import with_gaps
from keras_crossreg.primitives.sums import add_gradients

Tensors = list[Any]
#: Samples of a prediction in one pass, at the most. XLA computes what passes
#: have in common once, and on a CPU large tensors take it longer: with 8, those
#: of a small CNN took 1.7 times as long.
SAMPLES_PER_PASS = 4


class _Reach(threading.local):
    """Whether gradients say where none reaches a variable."""

    is_asked = False


_REACH = _Reach()


@contextlib.contextmanager
def finding_unreached() -> Iterator[None]:
    """Within, gradients are `None` where none reaches a variable.

    JAX gives zeros, and another trace tells them from zeros that happen to be.
    """
    before, _REACH.is_asked = _REACH.is_asked, True
    try:
        yield
    finally:
        _REACH.is_asked = before


# ---- Order and place ---------------------------------------------------------


def evaluated_after(results: Any) -> contextlib.AbstractContextManager[Any]:
    """Nothing, on JAX: passes in a row are one loop, `in_turn`."""
    return contextlib.nullcontext()


def replica_index() -> None:
    """`None`: several devices run one program, with noise for all of them."""
    return None


def maximum(a: Any, b: Any) -> Any:
    """The larger one of two sizes, known or symbolic."""
    return jax.core.max_dim(a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller one of two sizes, known or symbolic."""
    return jax.core.min_dim(a, b)


def in_turn(function: Callable[[Any], Any], inputs: list[Any]) -> list[Any]:
    """`function(x)` for each of the inputs, one after the other, as a list.

    A loop, for structures alike: XLA compiles what is written out side by side
    as often as it is there, and has all of it in memory.
    """
    is_traced = isinstance(jax.numpy.zeros(()), jax.core.Tracer)
    flat, structures = zip(*map(flatten, inputs), strict=True)
    kinds = [[(x.shape, x.dtype) for x in leaves] for leaves in flat]
    are_alike = all(
        kind == kinds[0] and structure == structures[0]
        for kind, structure in zip(kinds, structures, strict=True)
    )
    # Sparse ones are none.
    are_arrays = all(isinstance(x, jax.Array) for x in tree.flatten(flat))
    if len(inputs) == 1 or not (is_traced and are_alike and are_arrays):
        # Eagerly, each is over before the next one begins.
        return [function(x) for x in inputs]
    variables = _updated_by(lambda: function(inputs[0]))
    structure: Any = None

    def body(values: Tensors, leaves: Tensors) -> Any:
        nonlocal structure
        pairs = list(zip(variables, values, strict=True))
        with NestedScope(pairs, collect_losses=True) as scope:
            result = function(unflatten(leaves, structures[0]))
            found, structure = flatten(result)
        return [scope.get_current_value(v) for v in variables], found

    ends, stacked = jax.lax.scan(
        body,
        [v.value for v in variables],
        [jax.numpy.stack(leaves) for leaves in zip(*flat, strict=True)],
        length=len(inputs),
    )
    _assign(variables, ends)
    return [
        unflatten([x[k] for x in stacked], structure)
        for k in range(len(inputs))
    ]


def on_device_of(tensor: Any) -> contextlib.AbstractContextManager[Any]:
    """Nothing: JAX leaves tensors where they are."""
    return contextlib.nullcontext()


def seed_scope() -> contextlib.AbstractContextManager[Any]:
    """Nothing: seeds are where everything is."""
    return contextlib.nullcontext()


# ---- Numbers -----------------------------------------------------------------


def shares_numbers() -> bool:
    """Whether this runs on a CPU, where numbers that are shared cost less."""
    distribution = keras.distribution.distribution()
    if distribution is not None:
        # Keras names devices as `"cpu:0"`.
        names = distribution.device_mesh.devices.flat
        return all(str(name).lower().startswith("cpu") for name in names)
    # A device, or the name of a platform.
    default = jax.config.jax_default_device
    platform = getattr(default, "platform", default) or jax.default_backend()
    return str(platform) == "cpu"


def uniform(
    shape: Any, seed: keras.random.SeedGenerator, dtype: str = "float32"
) -> Any:
    """Numbers in `[0, 1)`."""
    return keras.random.uniform(shape, seed=seed, dtype=dtype)


def normal(
    shape: Any, seed: keras.random.SeedGenerator, dtype: str = "float32"
) -> Any:
    """Standard normal numbers."""
    return keras.random.normal(shape, seed=seed, dtype=dtype)


#: On a CPU there is no other way to uniform numbers.
cpu_uniform = uniform


def draw_in_runtime(kind: str, shape: Any, dtype: str, seed: int) -> Any:
    """Nothing, on JAX: what it writes has no random operations."""
    raise NotImplementedError


#: By format: what writes it in the place of Keras.
writers: dict[str, Callable[..., None]] = {}


def rows(x: Any, start: int, size: Any) -> Any:
    """`size` rows of a tensor from `start` on, fewer where it ends."""
    return x[start : start + size]


# ---- Optimizers --------------------------------------------------------------


def apply_gradients(
    optimizer: Any, gradients: Tensors, variables: list[keras.Variable]
) -> None:
    """`optimizer.apply`, in a step that is compiled too."""
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer.apply(gradients, variables)
        return
    # Its `apply` assigns variables in the branches of a condition, from where
    # JAX lets no assignment out.
    given = {id(v): g for v, g in zip(variables, gradients, strict=True)}
    known = optimized_variables(optimizer)
    with warnings.catch_warnings():
        # Of those that have no gradient, since they do not learn now.
        warnings.simplefilter("ignore")
        new, own = optimizer.stateless_apply(
            [v.value for v in optimizer.variables],
            [given.get(id(v)) for v in known],
            [v.value for v in known],
        )
    _assign([*known, *optimizer.variables], [*new, *own])


# ---- Gradients ---------------------------------------------------------------


def gradient(
    function: Callable[[], Any], variables: list[keras.Variable]
) -> Tensors:
    """`d function() / d variables`, `None` where none reaches a variable."""
    with finding_unreached():
        return value_and_gradients(
            lambda _: (function(), None), variables, tensors=[]
        )[1]


def value_and_gradients(
    function: Callable[[Any], tuple[Any, Any]],
    variables: list[keras.Variable],
    tensors: Any,
) -> tuple[Any, Tensors, Any]:
    """The gradient of a scalar by variables and by tensors.

    Args:
        function: From `tensors` to `(scalar, result)`.
        variables: The variables to differentiate by.
        tensors: A structure of tensors, which may be empty.

    Returns:
        `(result, of_variables, of_tensors)`: a list as long as `variables`
        and a structure like `tensors`. Where no gradient reaches there are
        zeros, or `None` within `finding_unreached()`, and for integers.
    """
    unique = _unique(variables)
    leaves, masked = flatten(tensors)
    places = [i for i, x in enumerate(leaves) if _is_float(x)]
    updated: list[keras.Variable] = []
    structure: Any = None

    def of_values(values: Tensors, floats: Tensors) -> Any:
        nonlocal updated, structure
        pairs = list(zip(unique, values, strict=True))
        taken = list(leaves)
        for place, value in zip(places, floats, strict=True):
            taken[place] = value
        with NestedScope(pairs, collect_losses=True) as scope:
            scalar, result = function(unflatten(taken, masked))
            flat, structure = flatten(result)
            updated = scope.updated
            news = [scope.get_current_value(v) for v in updated]
        return scalar, (flat, news)

    values = [v.value for v in unique]
    floats = [leaves[i] for i in places]
    if _REACH.is_asked:
        scalar, tangent, (flat, news) = jax.linearize(
            of_values, values, floats, has_aux=True
        )
        transpose = jax.linear_transpose(tangent, values, floats)
        found, of_floats = _where_used(
            tangent, transpose(keras.ops.ones_like(scalar)), values, floats
        )
    else:
        (_, (flat, news)), (found, of_floats) = jax.value_and_grad(
            of_values, argnums=(0, 1), has_aux=True
        )(values, floats)
    _assign(updated, news)
    of_variables = dict(zip(map(id, unique), found, strict=True))
    of_leaves: Tensors = [None] * len(leaves)
    for place, g in zip(places, of_floats, strict=True):
        of_leaves[place] = g
    return (
        unflatten(flat, structure),
        [of_variables[id(v)] for v in variables],
        tree.pack_sequence_as(
            tensors, with_gaps(of_leaves, tree.flatten(tensors))
        ),
    )


def vector_jacobian(
    function: Callable[[], Any], variable: keras.Variable, vector: Any
) -> Any:
    """`(d function() / d variable)' vector`."""

    def of_value(value: Any) -> Any:
        with NestedScope([(variable, value)]):
            return function()

    result, pull = jax.vjp(of_value, variable.value)
    return pull(keras.ops.cast(vector, result.dtype))[0]


def value_and_gradient(function: Callable[[Any], Any], x: Any) -> Any:
    """`function(x)` and its gradient, to be differentiated again."""
    return jax.value_and_grad(function)(keras.ops.convert_to_tensor(x))


def gradient_in_passes(
    sample: Callable[[], Any],
    upstream: list[Any],
    variables: list[keras.Variable],
    start: Tensors,
) -> Tensors:
    """`start + sum_k (d sample_k() / d variables)' upstream_k`.

    One pass after the other: no more than one is in memory at a time.

    Args:
        sample: Makes one pass; each call draws noise of its own.
        upstream: For every pass, the gradient of the loss by what it returns.
        variables: The variables to differentiate by.
        start: A list as long as `variables`.

    Returns:
        A list like `start`.
    """
    if not upstream:
        return start
    passes = [tree.flatten(u) for u in upstream]
    taken = [i for i, g in enumerate(passes[0]) if g is not None]
    stacked = [
        keras.ops.stack([gradients[i] for gradients in passes]) for i in taken
    ]
    unique = _unique(variables)
    states = _updated_by(sample)

    def outputs_of(values: Tensors, state: Tensors) -> Any:
        pairs = list(zip(unique, values, strict=True))
        pairs += list(zip(states, state, strict=True))
        with NestedScope(pairs, collect_losses=True) as scope:
            outputs = tree.flatten(sample())
            ends = [scope.get_current_value(v) for v in states]
        return [outputs[i] for i in taken], ends

    def body(carry: Any, gradients: Tensors) -> Any:
        total, state = carry
        _, pull, ends = jax.vjp(
            lambda values: outputs_of(values, state), values, has_aux=True
        )
        (found,) = pull(gradients)
        total = [a + b for a, b in zip(total, found, strict=True)]
        return (total, ends), None

    values = [v.value for v in unique]
    begun = [v.value for v in states]
    (total, ends), _ = jax.lax.scan(
        body, ([keras.ops.zeros_like(v) for v in values], begun), stacked
    )
    _assign(states, ends)
    if _REACH.is_asked:
        _, tangent = jax.linearize(
            lambda values: outputs_of(values, begun)[0], values
        )
        (total,) = _where_used(tangent, (total,), values)
    found = dict(zip(map(id, unique), total, strict=True))
    return [
        add_gradients(a, found[id(v)])
        for a, v in zip(start, variables, strict=True)
    ]


def second_order(
    function: Callable[[], Any],
    theta: list[keras.Variable],
    rho: list[keras.Variable],
) -> tuple[Callable[[Tensors], Tensors], Callable[[Tensors], Tensors]]:
    """Products of the second derivatives of a scalar with a vector.

    With `g = d function() / d theta`, two functions of a vector q, which is a
    list like `theta`: `(dg/dtheta)' q` and `(dg/drho)' q`.
    """

    def loss(of_theta: Tensors, of_rho: Tensors) -> Any:
        pairs = zip([*theta, *rho], [*of_theta, *of_rho], strict=True)
        with NestedScope(list(pairs)):
            return function()

    _, pull = jax.vjp(
        jax.grad(loss), [v.value for v in theta], [v.value for v in rho]
    )
    return lambda vectors: pull(vectors)[0], lambda vectors: pull(vectors)[1]


# ---- Assignments -------------------------------------------------------------


def _updated_by(function: Callable[[], Any]) -> list[keras.Variable]:
    """The variables that a function assigns: seeds of the noise."""
    updated: list[keras.Variable] = []

    def trace() -> int:
        nonlocal updated
        with NestedScope(collect_losses=True) as scope:
            function()
        updated = scope.updated
        return 0

    jax.eval_shape(trace)
    return updated


def _assign(variables: list[keras.Variable], values: Tensors) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _unique(variables: list[keras.Variable]) -> list[keras.Variable]:
    """Each once: of two places for one value, JAX would take one alone."""
    return list({id(v): v for v in variables}.values())


def _where_used(tangent: Callable[..., Any], found: Any, *like: Tensors) -> Any:
    """Gradients, with `None` where a derivative does not depend on what is in.

    Args:
        tangent: The derivative, a linear function of arrays like those of
            `like`.
        found: A structure of gradients, like `like`.
        like: Lists of arrays.
    """
    jaxpr = jax.make_jaxpr(tangent)(*like).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    is_used = iter(used)
    return [[g if next(is_used) else None for g in part] for part in found]


def _is_float(x: Any) -> bool:
    return bool(keras.backend.is_float_dtype(x.dtype))
