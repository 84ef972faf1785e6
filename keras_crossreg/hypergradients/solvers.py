"""Solutions of `H q = b` from products with H alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops

Tensors = list[Any]
Product = Callable[[Tensors], Tensors]

# A solution is good when this part of the first remainder is left; float32
# gives no better.
_TOLERANCE = 1e-5
# Rounding can make so much of zero: of a curvature, in units of the largest
# one met; of a projection, in units of what is projected.
ROUNDING = 1e-5


def conjugate_gradients(
    product: Product, b: Tensors, num_terms: int
) -> tuple[Tensors, Any]:
    """Solves `H q = b`, for H that is positive on the span of `H^k b`.

    Args:
        product: From p, a list like `b`, to `H p`.
        b: A list of tensors.
        num_terms: Integer, the most products.

    Returns:
        `(q, is_positive)`: the solution, and a boolean tensor, whether no
        direction of negative curvature was met.
    """

    def step(state: Any) -> Any:
        k, q, r, p, top, _, ok = state
        hp = product(p)
        curvature, length = dot(p, hp), dot(p, p)
        go, top, ok = _look(curvature, length, top, ok)
        size = dot(r, r)
        a = ops.where(go, ops.divide_no_nan(size, curvature), 0.0)
        q, r = add(q, a, p), add(r, -a, hp)
        new_size = dot(r, r)
        p = add(r, ops.divide_no_nan(new_size, size), p)
        go = ops.logical_and(go, new_size > _TOLERANCE**2 * goal)
        return k + 1, q, r, p, top, go, ok

    goal = dot(b, b)
    return _iterate(step, b, num_terms)


def neumann_series(
    product: Product, b: Tensors, num_terms: int
) -> tuple[Tensors, Any]:
    """Solves `H q = b` by `q <- q + a r`, with the a of the smallest next r.

    Arguments and results are those of `conjugate_gradients`.
    """

    def step(state: Any) -> Any:
        k, q, r, p, top, _, ok = state
        hr = product(r)
        curvature, length = dot(r, hr), dot(r, r)
        go, top, ok = _look(curvature, length, top, ok)
        a = ops.where(go, ops.divide_no_nan(curvature, dot(hr, hr)), 0.0)
        q, r = add(q, a, r), add(r, -a, hr)
        go = ops.logical_and(go, dot(r, r) > _TOLERANCE**2 * goal)
        return k + 1, q, r, p, top, go, ok

    goal = dot(b, b)
    return _iterate(step, b, num_terms)


def _look(
    curvature: Any, length: Any, top: Any, ok: Any
) -> tuple[Any, Any, Any]:
    """Whether to go on in this direction; the largest curvature; all well."""
    rounding = ROUNDING * top * length
    top = ops.maximum(top, ops.divide_no_nan(curvature, length))
    is_bad = ops.logical_and(curvature < -rounding, length > 0)
    return curvature > 0, top, ops.logical_and(ok, ops.logical_not(is_bad))


def _iterate(
    step: Callable[[Any], Any], b: Tensors, num_terms: int
) -> tuple[Tensors, Any]:
    state = (
        ops.convert_to_tensor(0),
        [ops.zeros_like(v) for v in b],
        b,
        b,
        ops.convert_to_tensor(0.0),
        ops.convert_to_tensor(True),
        ops.convert_to_tensor(True),
    )
    # The loop of a compiled step holds one product, not `num_terms`.
    state = ops.while_loop(
        lambda k, *rest: ops.logical_and(k < num_terms, rest[4]),
        lambda *state: step(state),
        state,
    )
    return state[1], state[6]


def dot(a: Tensors, b: Tensors) -> Any:
    """The sum of all products, in float32, however theta are stored."""
    return sum(
        ops.sum(ops.cast(x, "float32") * ops.cast(y, "float32"))
        for x, y in zip(a, b, strict=True)
    )


def add(a: Tensors, factor: Any, b: Tensors) -> Tensors:
    """`a + factor * b`."""
    return [
        x + ops.cast(factor, x.dtype) * y for x, y in zip(a, b, strict=True)
    ]
