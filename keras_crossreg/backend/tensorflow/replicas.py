"""Replicas of a strategy: what each of them gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_crossreg._keras import is_in_cluster


def first_replica(strategy: tf.distribute.Strategy, batch: Any) -> Any:
    """The part of a distributed batch that this process's first replica has."""

    def local(value: Any) -> Any:
        value = strategy.experimental_local_results(value)[0]
        # An `Optional` is what Keras hands on for a `None` in a batch.
        return None if isinstance(value, tf.experimental.Optional) else value

    return keras.tree.map_structure(local, batch)


def count_examples(
    strategy: tf.distribute.Strategy, batch: Any
) -> tuple[int, int]:
    """Examples in a distributed batch, and replicas that have any.

    The same in every process of a cluster.
    """

    leaves = [v for v in keras.tree.flatten(batch) if v is not None]
    parts = iter(strategy.experimental_local_results(leaves[0]))

    def count(_: Any) -> tf.Tensor:
        rows = tf.cast(tf.shape(next(parts))[0], "float32")
        return tf.stack([rows, tf.sign(rows)])

    counts = strategy.experimental_distribute_values_from_function(count)
    rows, replicas = strategy.reduce("SUM", counts, axis=None).numpy()
    return int(rows), int(replicas)


def for_a_cluster(
    strategy: tf.distribute.Strategy, step: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """A step whose numbers Keras can average over several machines.

    It takes their mean over replicas and over a first axis at once, which
    numbers do not have: keras-team/keras#20585.
    """
    if not (
        isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and is_in_cluster(strategy)
    ):
        return step

    def with_axis(value: Any) -> Any:
        return value[None] if len(value.shape) == 0 else value

    return lambda data: keras.tree.map_structure(with_axis, step(data))
