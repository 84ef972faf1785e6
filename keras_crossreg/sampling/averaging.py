"""K sampled predictions as one tiled pass, and their average.

The loss that moves rho, and every prediction, is of the average of K sampled
predictions: a single sample only ever sees noise as harm, and a deterministic
pass does not depend on sigma at all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops
from keras import tree

from keras_crossreg._keras import get_keras_mask
from keras_crossreg._keras import set_keras_mask
from keras_crossreg.dtypes import at_least_float32

CATEGORICAL = (
    keras.losses.CategoricalCrossentropy,
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.categorical_focal_crossentropy,
)
BINARY = (
    keras.losses.BinaryCrossentropy,
    keras.losses.BinaryFocalCrossentropy,
    keras.losses.binary_crossentropy,
    keras.losses.binary_focal_crossentropy,
)

Average = Callable[[Any], Any]


def in_each_pass(num_samples: int, most: int) -> int:
    """K shared out to the fewest passes of at most so many samples."""
    passes = -(-num_samples // most)
    return -(-num_samples // passes)


def in_each_equal_pass(num_samples: int, most: int) -> int:
    """K shared out to passes of at most so many samples, none beyond K."""
    return next(n for n in range(most, 0, -1) if num_samples % n == 0)


def tile(structure: Any, num_samples: int) -> Any:
    """Repeats a batch K times: `(n, ...)` to `(K * n, ...)`, sample first.

    Masks are repeated too.
    """

    def tile_one(x: Any) -> Any:
        if x is None:
            return None
        tiled = ops.concatenate([x] * num_samples)
        mask = get_keras_mask(x)
        if mask is not None:
            set_keras_mask(tiled, tile_one(mask))
        return tiled

    return tree.map_structure(tile_one, structure)


def untile(x: Any, num_samples: int) -> Any:
    """`(K * n, ...)` to `(K, n, ...)`; a mask is kept, as one of `(n, ...)`.

    The mask does not depend on the sample.
    """
    shape = ops.shape(x)
    samples = ops.reshape(x, (num_samples, shape[0] // num_samples, *shape[1:]))
    mask = get_keras_mask(x)
    if mask is not None:
        set_keras_mask(samples, untile(mask, num_samples)[0])
    return samples


def join(parts: list[Any], num_samples: int) -> Any:
    """The first K samples of several passes, each `(k, n, ...)`, as one."""
    if len(parts) == 1:
        return parts[0]

    def join_one(*samples: Any) -> Any:
        joined = ops.concatenate(samples)[:num_samples]
        mask = get_keras_mask(samples[0])
        if mask is not None:
            set_keras_mask(joined, mask)
        return joined

    return tree.map_structure(join_one, *parts)


def mean_of_outputs(samples: Any) -> Any:
    """The mean over the first axis: regression, and probabilities."""
    return ops.mean(samples, axis=0)


def mean_of_categorical_logits(samples: Any, axis: int = -1) -> Any:
    """Logits of the mean over the samples of `softmax(logits)`.

    `log(1/K sum_k softmax(z_k))`, which is again logits.
    """
    return _log_mean_exp(ops.log_softmax(samples, axis=axis))


def mean_of_binary_logits(samples: Any) -> Any:
    """Logits of the mean over the samples of `sigmoid(logits)`.

    `log p - log(1 - p)` with `p = 1/K sum_k sigmoid(z_k)`.
    """
    return _log_mean_exp(ops.log_sigmoid(samples)) - _log_mean_exp(
        ops.log_sigmoid(-samples)
    )


def _log_mean_exp(x: Any) -> Any:
    return ops.logsumexp(x, axis=0) - math.log(x.shape[0])


def average(
    samples: Any,
    averaging: Any,
    loss: Any,
    output_names: list[str] | None,
) -> Any:
    """Averages each output over its first axis, in the space of its loss.

    Args:
        samples: A tensor `(K, n, ...)` or a structure of them.
        averaging: As given to `compile`.
        loss: As given to `compile`.
        output_names: The model's, where it has any.

    Returns:
        The same structure of tensors `(n, ...)`.
    """
    flat = tree.flatten(samples)
    losses = _loss_by_output(samples, loss, output_names)
    averaged = []
    for output, output_loss in zip(flat, losses, strict=True):
        dtype = keras.backend.standardize_dtype(output.dtype)
        # Sixteen bits are too few for a log of small probabilities.
        wide = ops.cast(output, at_least_float32(dtype))
        combine = _choose(averaging, output_loss, output.shape[-1])
        result = ops.cast(combine(wide), dtype)
        mask = get_keras_mask(output)
        if mask is not None:
            set_keras_mask(result, mask)
        averaged.append(result)
    return tree.pack_sequence_as(samples, averaged)


def plain_loss(loss: Any) -> Any:
    """Losses of Keras in the places of these, for `average` all the same.

    They are saved with their settings, whatever the user's own are made of.
    """

    def plain(one: Any) -> Any:
        kind, from_logits, axis = _describe(one)
        if kind is CATEGORICAL:
            return keras.losses.CategoricalCrossentropy(
                from_logits=from_logits, axis=axis
            )
        if kind is BINARY:
            return keras.losses.BinaryCrossentropy(from_logits=from_logits)
        return None

    return tree.map_structure(plain, loss)


def _loss_by_output(
    outputs: Any, loss: Any, output_names: list[str] | None
) -> list[Any]:
    """The compiled loss of each flat output, `None` where it has none."""
    count = len(tree.flatten(outputs))
    if isinstance(loss, dict):
        if isinstance(outputs, dict):
            return [
                loss.get(path[-1])
                for path, _ in tree.flatten_with_path(outputs)
            ]
        if not output_names:
            return [None] * count
        return [loss.get(name) for name in output_names]
    if isinstance(loss, (list, tuple)):
        return list(loss) if len(loss) == count else [None] * count
    return [loss] * count


def _choose(averaging: Any, loss: Any, size: int | None) -> Average:
    if callable(averaging):
        result: Average = averaging
        return result
    if averaging == "outputs":
        return mean_of_outputs
    kind, from_logits, axis = _describe(loss)
    if kind is None and averaging == "probabilities":
        # A loss of the user's own: its outputs are taken for logits.
        kind, from_logits = (BINARY if size == 1 else CATEGORICAL), True
    if not from_logits:
        return mean_of_outputs
    if kind is BINARY:
        return mean_of_binary_logits
    # The sample axis comes first, so a positive axis moves by one.
    axis = axis + 1 if axis >= 0 else axis
    return functools.partial(mean_of_categorical_logits, axis=axis)


def _describe(loss: Any) -> tuple[Any, bool, int]:
    """Kind of a classification loss, whether it takes logits, class axis."""
    options: dict[str, Any] = {}
    if isinstance(loss, functools.partial):
        options, loss = loss.keywords, loss.func
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    for kind in (CATEGORICAL, BINARY):
        if loss in kind or isinstance(
            loss, tuple(k for k in kind if isinstance(k, type))
        ):
            from_logits = options.get(
                "from_logits", getattr(loss, "from_logits", False)
            )
            axis = options.get("axis", getattr(loss, "axis", -1))
            return kind, bool(from_logits), int(axis)
    return None, False, -1
