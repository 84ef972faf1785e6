"""The primitives on PyTorch.

Gradients are by `torch.autograd.grad` of what a variable holds: no `.grad`,
which theta's step reads, is ever written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import torch
from keras import tree

from keras_crossreg._keras import NestedScope
from keras_crossreg._keras import get_keras_mask
from keras_crossreg._keras import set_keras_mask
from keras_crossreg._keras import torch_device
from keras_crossreg.primitives.errors import NotDifferentiableTwice
from keras_crossreg.primitives.sums import add_gradients

Tensors = list[Any]
#: Samples of a prediction in one pass, at the most.
SAMPLES_PER_PASS = 8

# What PyTorch says of an operation that it cannot differentiate twice.
_ONCE = ("derivative for", "differentiate twice", "double backward")


# ---- Order and place ---------------------------------------------------------


def evaluated_after(results: Any) -> contextlib.AbstractContextManager[Any]:
    """Nothing, on PyTorch: it runs what is written in its order."""
    return contextlib.nullcontext()


def in_turn(function: Callable[[Any], Any], inputs: list[Any]) -> list[Any]:
    """`function(x)` for each of the inputs, one after the other, as a list."""
    return [function(x) for x in inputs]


def maximum(a: Any, b: Any) -> Any:
    """The larger one of two sizes."""
    return max(a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller one of two sizes."""
    return min(a, b)


def replica_index() -> int | None:
    """The rank of this process; `None` where there is one alone."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    if distributed.get_world_size() == 1:
        return None
    return int(distributed.get_rank())


def on_device_of(tensor: Any) -> contextlib.AbstractContextManager[Any]:
    """Within, Keras leaves this tensor on the device that it is on."""
    if _is_symbolic():
        return contextlib.nullcontext()
    scope: contextlib.AbstractContextManager[Any]
    scope = keras.device(str(tensor.device))
    return scope


def seed_scope() -> contextlib.AbstractContextManager[Any]:
    """Where seeds are: on the host, for a generator takes a Python number.

    A seed on an accelerator would have to be waited for.
    """
    if _is_symbolic():
        return contextlib.nullcontext()
    scope: contextlib.AbstractContextManager[Any] = keras.device("cpu")
    return scope


# ---- Numbers -----------------------------------------------------------------


def shares_numbers() -> bool:
    """Nowhere: PyTorch makes normal numbers as fast as uniform ones."""
    return False


def uniform(
    shape: Any, seed: keras.random.SeedGenerator, dtype: str = "float32"
) -> Any:
    """Numbers in `[0, 1)`, made on the device that is in use."""
    return _draw(torch.rand, shape, seed, dtype)


def normal(
    shape: Any, seed: keras.random.SeedGenerator, dtype: str = "float32"
) -> Any:
    """Standard normal numbers, made on the device that is in use."""
    return _draw(torch.randn, shape, seed, dtype)


#: On a CPU there is no other way to uniform numbers.
cpu_uniform = uniform


@torch.compiler.disable
def _draw(
    draw: Any, shape: Any, seed: keras.random.SeedGenerator, dtype: str
) -> Any:
    device, options = torch_device(), {"dtype": getattr(torch, dtype)}
    # A seed is a variable, and no operation of an exported graph takes one.
    if _is_symbolic() or torch.compiler.is_exporting():
        return draw(tuple(shape), device=device, **options)
    generator = torch.Generator(device)
    generator.manual_seed(_mixed(*(int(n) for n in seed.next())))
    return draw(tuple(shape), generator=generator, device=device, **options)


@contextlib.contextmanager
def kept_generators() -> Iterator[None]:
    """Leaves PyTorch's own generators, those that all share, as they were."""
    if torch.compiler.is_compiling():
        # Of compiled code they are no part.
        yield
        return
    device = torch.device(torch_device())
    if device.type in ("cpu", "meta"):
        scope = torch.random.fork_rng([])
    else:
        index = device.index or 0
        scope = torch.random.fork_rng([index], device_type=device.type)
    with scope:
        yield


def _mixed(*numbers: int) -> int:
    """63 bits made of integers, any of which changes them all.

    Keras adds the two numbers of a seed, and the second draw of seed 1 is the
    first of seed 2.

    Reference:

    - Steele et al., 2014, Fast splittable pseudorandom number generators.
    """
    mask, state = (1 << 64) - 1, 0
    for number in numbers:
        state = (state + number + 1) * 0x9E3779B97F4A7C15 & mask
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
        state = (state ^ state >> 27) * 0x94D049BB133111EB & mask
        state ^= state >> 31
    return state >> 1


def _is_symbolic() -> bool:
    """Whether Keras calls to see shapes, with tensors that hold no numbers."""
    return torch_device() == "meta"


def rows(x: Any, start: int, size: Any) -> Any:
    """`size` rows of a tensor from `start` on, fewer where it ends."""
    return x[start : start + size]


# ---- Optimizers --------------------------------------------------------------


def apply_gradients(
    optimizer: Any, gradients: Tensors, variables: list[keras.Variable]
) -> None:
    """`optimizer.apply`, in a step that is differentiated too."""
    with torch.no_grad():
        optimizer.apply(gradients, variables)


# ---- Gradients ---------------------------------------------------------------


def gradient(
    function: Callable[[], Any], variables: list[keras.Variable]
) -> Tensors:
    """`d function() / d variables`, `None` where none reaches a variable."""
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
        and a structure like `tensors`, `None` where no gradient reaches.
    """
    tensors = tree.map_structure(_leaf, tensors)
    flat = tree.flatten(tensors)
    with _watching(variables) as values:
        scalar, result = _in_a_scope(lambda: function(tensors))
        found = _gradients(
            [scalar], [torch.ones_like(scalar)], [*values, *flat]
        )
    count = len(values)
    return (
        tree.map_structure(_detached, result),
        found[:count],
        tree.pack_sequence_as(tensors, found[count:]),
    )


def vector_jacobian(
    function: Callable[[], Any], variable: keras.Variable, vector: Any
) -> Any:
    """`(d function() / d variable)' vector`."""
    with _watching([variable]) as values:
        result = _in_a_scope(function)
        vector = keras.ops.convert_to_tensor(vector).to(result.dtype)
        return _gradients([result], [vector], values)[0]


def value_and_gradient(function: Callable[[Any], Any], x: Any) -> Any:
    """`function(x)` and its gradient, to be differentiated again.

    That is where PyTorch is asked to note what it does.
    """
    again = torch.is_grad_enabled()
    x = keras.ops.convert_to_tensor(x)
    with torch.enable_grad():
        if not (again and x.requires_grad):
            x = x.detach().requires_grad_(True)
        value = function(x)
        (found,) = torch.autograd.grad(
            value, x, create_graph=again, materialize_grads=True
        )
    return (value, found) if again else (value.detach(), found)


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
        A list like `start`. As in the others, `None` stands where there is
        no gradient.
    """
    total = start
    for gradient_of_pass in upstream:
        with _watching(variables) as values:
            outputs = tree.flatten(_in_a_scope(sample))
            found = _gradients(outputs, tree.flatten(gradient_of_pass), values)
        total = [add_gradients(a, b) for a, b in zip(total, found, strict=True)]
    return total


def second_order(
    function: Callable[[], Any],
    theta: list[keras.Variable],
    rho: list[keras.Variable],
) -> tuple[Callable[[Tensors], Tensors], Callable[[Tensors], Tensors]]:
    """Products of the second derivatives of a scalar with a vector.

    With `g = d function() / d theta`, two functions of a vector q, which is a
    list like `theta`: `(dg/dtheta)' q` and `(dg/drho)' q`.

    Raises:
        NotDifferentiableTwice: If PyTorch has no derivative for an operation
            of the gradient. The two functions raise it too.
    """
    with _second_derivatives(), _watching([*theta, *rho]) as values:
        gradients = torch.autograd.grad(
            _in_a_scope(function),
            values[: len(theta)],
            create_graph=True,
            materialize_grads=True,
        )
    pairs = [(i, g) for i, g in enumerate(gradients) if g.requires_grad]
    _check_twice([g for _, g in pairs])

    def product_with(sources: Tensors) -> Callable[[Tensors], Tensors]:
        def product(vectors: Tensors) -> Tensors:
            if not pairs:
                return [torch.zeros_like(v) for v in sources]
            with _second_derivatives(), _requiring(sources, True):
                return list(
                    torch.autograd.grad(
                        [g for _, g in pairs],
                        sources,
                        [vectors[i].to(g.dtype) for i, g in pairs],
                        retain_graph=True,
                        materialize_grads=True,
                    )
                )

        return product

    return product_with(values[: len(theta)]), product_with(
        values[len(theta) :]
    )


@contextlib.contextmanager
def still(tensors: Tensors) -> Iterator[None]:
    """Within, none of the tensors asks for a gradient."""
    with _requiring(tensors, False), torch.no_grad():
        yield


@contextlib.contextmanager
def _watching(variables: list[keras.Variable]) -> Iterator[Tensors]:
    """Within, PyTorch notes what is done to the values of variables."""
    values = [v.value for v in variables]
    with _requiring(values, True), torch.enable_grad():
        yield values


@contextlib.contextmanager
def _requiring(tensors: Tensors, is_required: bool) -> Iterator[None]:
    # What another tensor was made of asks for what that one does.
    others = {
        id(t): t
        for t in tensors
        if t.is_leaf
        and t.requires_grad != is_required
        and (t.is_floating_point() or t.is_complex())
    }
    for tensor in others.values():
        tensor.requires_grad_(is_required)
    try:
        yield
    finally:
        for tensor in others.values():
            tensor.requires_grad_(not is_required)


def _in_a_scope(function: Callable[[], Any]) -> Any:
    """Calls a function, which may assign variables that it has read.

    To write to them in place would spoil its derivative.
    """
    with NestedScope(collect_losses=True) as scope:
        result = function()
        ends = [(v, scope.get_current_value(v)) for v in scope.updated]
    for variable, value in ends:
        with on_device_of(value):
            variable.assign(value)
    return result


def _gradients(outputs: Tensors, upstream: Tensors, inputs: Any) -> Tensors:
    """Of what can be differentiated, by what can be differentiated by."""
    pairs = [
        (output, g)
        for output, g in zip(outputs, upstream, strict=True)
        if g is not None and output.requires_grad
    ]
    places = [
        i for i, x in enumerate(inputs) if x is not None and x.requires_grad
    ]
    found: Tensors = [None] * len(inputs)
    if pairs and places:
        gradients = torch.autograd.grad(
            [output for output, _ in pairs],
            [inputs[i] for i in places],
            [g for _, g in pairs],
            allow_unused=True,
        )
        for place, g in zip(places, gradients, strict=True):
            found[place] = g
    return found


def _check_twice(gradients: Tensors) -> None:
    """Raises where PyTorch would leave a part of the derivative out.

    `once_differentiable` puts an error in the place of the gradient of an
    operation, which is raised by nothing that leads on to no variable.
    """
    seen: set[Any] = set()
    stack = [g.grad_fn for g in gradients]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if "Error" in node.name():
            raise NotDifferentiableTwice(
                "PyTorch cannot: an operation is marked with "
                "`once_differentiable`"
            )
        stack.extend(following for following, _ in node.next_functions)


@contextlib.contextmanager
def _second_derivatives() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _ONCE):
            raise
        raise NotDifferentiableTwice(f"PyTorch cannot: {error}") from error


def _leaf(tensor: Any) -> Any:
    """The same numbers and mask, to differentiate by."""
    if tensor is None:
        return None
    leaf = tensor.detach()
    if leaf.is_floating_point() or leaf.is_complex():
        leaf.requires_grad_(True)
    mask = get_keras_mask(tensor)
    if mask is not None:
        set_keras_mask(leaf, mask)
    return leaf


def _detached(result: Any) -> Any:
    """What holds on to no graph."""
    if not torch.is_tensor(result):
        return result
    detached = result.detach()
    mask = get_keras_mask(result)
    if mask is not None:
        set_keras_mask(detached, mask)
    return detached
