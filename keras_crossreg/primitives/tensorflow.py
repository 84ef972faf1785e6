"""The primitives on TensorFlow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from keras_crossreg.primitives.errors import NotDifferentiableTwice
from keras_crossreg.primitives.sums import add_gradients

Tensors = list[Any]
#: Samples of a prediction in one pass, at the most.
SAMPLES_PER_PASS = 8


# ---- Order and place ---------------------------------------------------------


def evaluated_after(results: Any) -> contextlib.AbstractContextManager[Any]:
    """Everything within runs once the results are there.

    Noise too, which depends on no input.
    """
    parts = tf.nest.flatten(results, expand_composites=True)
    scope: contextlib.AbstractContextManager[Any] = tf.control_dependencies(
        [x for x in parts if x is not None]
    )
    return scope


def in_turn(function: Callable[[Any], Any], inputs: list[Any]) -> list[Any]:
    """`function(x)` for each of the inputs, one after the other, as a list."""
    parts: list[Any] = []
    for x in inputs:
        with evaluated_after(parts[-1:]):
            parts.append(function(x))
    return parts


def maximum(a: Any, b: Any) -> Any:
    """The larger one of two sizes, integers or tensors."""
    known = isinstance(a, int) and isinstance(b, int)
    return max(a, b) if known else tf.maximum(a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller one of two sizes, integers or tensors."""
    known = isinstance(a, int) and isinstance(b, int)
    return min(a, b) if known else tf.minimum(a, b)


def replica_index() -> Any:
    """Its number, an integer or a tensor; `None` where there is one alone."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return context.replica_id_in_sync_group


def on_device_of(tensor: Any) -> contextlib.AbstractContextManager[Any]:
    """Nothing: TensorFlow leaves tensors where they are."""
    return contextlib.nullcontext()


def seed_scope() -> contextlib.AbstractContextManager[Any]:
    """Nothing: seeds are where everything is."""
    return contextlib.nullcontext()


# ---- Numbers -----------------------------------------------------------------


def shares_numbers() -> bool:
    """Whether this runs on a CPU, where numbers that are shared cost less.

    A scope of `tf.device` or of a strategy says where; without one TensorFlow
    takes an accelerator where there is any, compiled or not.
    """
    place: str = tf.zeros([]).device
    if place:
        return "CPU" in place.upper()
    devices = tf.config.list_logical_devices()
    return all("CPU" in device.device_type for device in devices)


def uniform(
    shape: Any, seed: keras.random.SeedGenerator, dtype: str = "float32"
) -> Any:
    """Numbers in `[0, 1)`, by the generator that TensorFlow chooses."""
    return keras.random.uniform(shape, dtype=dtype, seed=seed)


def normal(
    shape: Any, seed: keras.random.SeedGenerator, dtype: str = "float32"
) -> Any:
    """Standard normal numbers, by the generator that TensorFlow chooses."""
    return keras.random.normal(shape, dtype=dtype, seed=seed)


def cpu_uniform(
    shape: Any, seed: keras.random.SeedGenerator, dtype: str = "float32"
) -> Any:
    """Numbers in `[0, 1)`, those of `keras.random.uniform` on a CPU.

    Keras leaves the algorithm to TensorFlow. With `jit_compile=True` on a CPU
    that takes a hundred times as long as Philox, which is the default
    everywhere else.
    """
    # Keras, too, makes seeds of 32 bits: those of 64 do not compile.
    key = tf.cast(tf.math.floormod(seed.next(), tf.int32.max - 1), "int32")
    if tf.executing_eagerly():
        # The same numbers by a single operation, which does not say Philox to
        # a compiler, but is Philox where nothing is compiled.
        return tf.raw_ops.StatelessRandomUniform(
            shape=shape, seed=key, dtype=dtype
        )
    return tf.random.stateless_uniform(shape, key, dtype=dtype, alg="philox")


def draw_in_runtime(kind: str, shape: Any, dtype: str, seed: int) -> Any:
    """`"uniform"` or `"normal"` numbers of whatever runs the graph.

    ONNX and LiteRT have such operations, but none that take a state.
    """
    draw = tf.random.normal if kind == "normal" else tf.random.uniform
    return draw(shape, dtype=dtype, seed=seed)


#: By format: what writes it in the place of Keras.
writers: dict[str, Callable[..., None]] = {}


def rows(x: Any, start: int, size: Any) -> Any:
    """`size` rows of a tensor from `start` on, fewer where it ends."""
    if isinstance(x, tf.experimental.Optional):
        # It is what Keras hands on for a `None` in a batch.
        return None
    if not isinstance(x, tf.SparseTensor):
        return x[start : start + size]
    shape = tf.shape(x, "int64")
    taken = tf.minimum(tf.cast(size, "int64"), shape[0] - start)
    corner = tf.concat([[start], tf.zeros_like(shape[1:])], 0)
    return tf.sparse.slice(x, corner, tf.concat([[taken], shape[1:]], 0))


# ---- Optimizers --------------------------------------------------------------


def apply_gradients(
    optimizer: Any, gradients: Tensors, variables: list[keras.Variable]
) -> None:
    """`optimizer.apply`, in a step that is compiled too."""
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
        variables: The variables to differentiate by. No other is watched.
        tensors: A structure of tensors, which may be empty.

    Returns:
        `(result, of_variables, of_tensors)`: a list as long as `variables`
        and a structure like `tensors`, `None` where no gradient reaches.
    """
    values = [v.value for v in variables]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([values, tensors])
        scalar, result = function(tensors)
    of_variables, of_tensors = tape.gradient(scalar, [values, tensors])
    return result, of_variables, of_tensors


def vector_jacobian(
    function: Callable[[], Any], variable: keras.Variable, vector: Any
) -> Any:
    """`(d function() / d variable)' vector`."""
    value = variable.value
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(value)
        result = function()
    vector = tf.cast(tf.convert_to_tensor(vector), result.dtype)
    return tape.gradient(result, value, output_gradients=vector)


def value_and_gradient(function: Callable[[Any], Any], x: Any) -> Any:
    """`function(x)` and its gradient, to be differentiated again."""
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = function(x)
    return value, tape.gradient(value, x)


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
    values = [v.value for v in variables]
    total = start
    for gradient_of_pass in upstream:
        with (
            evaluated_after([total, gradient_of_pass]),
            tf.GradientTape(watch_accessed_variables=False) as tape,
        ):
            tape.watch(values)
            outputs = sample()
        pairs = [
            (output, g)
            for output, g in zip(
                tree.flatten(outputs),
                tree.flatten(gradient_of_pass),
                strict=True,
            )
            if g is not None
        ]
        found = tape.gradient(
            [output for output, _ in pairs],
            values,
            output_gradients=[g for _, g in pairs],
        )
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
        NotDifferentiableTwice: If TensorFlow has no derivative for an
            operation of the gradient. The two functions raise it too.
    """
    values = [v.value for v in theta]
    with (
        _second_derivatives(),
        tf.GradientTape(
            persistent=True, watch_accessed_variables=False
        ) as outer,
    ):
        outer.watch([values, [v.value for v in rho]])
        with tf.GradientTape(watch_accessed_variables=False) as inner:
            inner.watch(values)
            scalar = function()
        gradients = _dense(inner.gradient(scalar, values), values)

    def product_with(
        variables: list[keras.Variable],
    ) -> Callable[[Tensors], Tensors]:
        sources = [v.value for v in variables]

        def product(vectors: Tensors) -> Tensors:
            with _second_derivatives():
                found = outer.gradient(
                    gradients, sources, output_gradients=vectors
                )
            return _dense(found, sources)

        return product

    return product_with(theta), product_with(rho)


@contextlib.contextmanager
def _second_derivatives() -> Iterator[None]:
    try:
        yield
    except LookupError as error:
        raise NotDifferentiableTwice(f"TensorFlow cannot: {error}") from error


def _dense(gradients: Any, like: Any) -> Tensors:
    """Tensors of the shapes of `like`, zeros where there is no gradient."""
    return [
        tf.zeros(v.shape, v.dtype) if g is None else tf.convert_to_tensor(g)
        for g, v in zip(gradients, like, strict=True)
    ]
