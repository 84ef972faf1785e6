"""The gradient of samples that are made in several passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from keras import tree

from keras_crossreg.backend.tensorflow.order import after


def gradient_in_passes(
    sample: Callable[[Any], Any],
    x: Any,
    upstream: list[Any],
    sources: Any,
    start: Any,
) -> Any:
    """`start + sum_k (d sample_k(x) / d sources)' upstream_k`.

    One pass after the other: no more than one is in memory at a time.

    Args:
        sample: Makes one pass; each call draws noise of its own.
        x: What it is called with.
        upstream: For every pass, the gradient of the loss by what it returns.
        sources: A structure of tensors.
        start: One like `sources`.

    Returns:
        The structure of `sources`. As in the others, `None` stands where
        there is no gradient.
    """
    flat, total = tree.flatten(sources), tree.flatten(start)
    for gradient in upstream:
        with (
            after([total, gradient]),
            tf.GradientTape(watch_accessed_variables=False) as tape,
        ):
            tape.watch(flat)
            outputs = sample(x)
        pairs = [
            (output, g)
            for output, g in zip(
                tree.flatten(outputs), tree.flatten(gradient), strict=True
            )
            if g is not None
        ]
        found = tape.gradient(
            [output for output, _ in pairs],
            flat,
            output_gradients=[g for _, g in pairs],
        )
        total = [_add(a, b) for a, b in zip(total, found, strict=True)]
    return tree.pack_sequence_as(sources, total)


def _add(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return b if a is None else a
    return a + b
