"""Batches of the regularization set by `tf.data`."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from keras_crossreg._keras import convert_to_sliceable
from keras_crossreg._keras import slice_tensorflow_sparse_wrapper
from keras_crossreg.backend.tensorflow.replicas import count_examples
from keras_crossreg.backend.tensorflow.replicas import first_replica
from keras_crossreg.trainers.reg_data import num_rows
from keras_crossreg.trainers.reg_stream import RegularizationArrays
from keras_crossreg.trainers.reg_stream import RegularizationStream


class TensorFlowStream(RegularizationStream):
    """The regularization batches, distributed as the training batches are.

    Args:
        reg_data: See `RegularizationStream`.
        batch_size: See `RegularizationStream`.
        position: See `RegularizationStream`.
        strategy: The `tf.distribute.Strategy` to distribute batches with.
    """

    def __init__(
        self,
        reg_data: Any,
        batch_size: int | None,
        position: int,
        strategy: tf.distribute.Strategy,
    ) -> None:
        self._strategy = strategy
        super().__init__(reg_data, batch_size, position)

    def _make_arrays(self, structure: Any) -> RegularizationArrays:
        return _TensorFlowArrays(structure)

    def _shuffled(
        self, arrays: RegularizationArrays, position: int
    ) -> Generator[Any, None, None]:
        if not arrays.size:
            return
        first_pass, skipped = divmod(position * self.batch_size, arrays.size)

        def order(number: tf.Tensor) -> tf.data.Dataset:
            keys = tf.random.stateless_uniform([arrays.size], seed=[number, 0])
            return tf.data.Dataset.from_tensor_slices(tf.argsort(keys))

        # Each worker of a cluster has its part of a batch, as of other arrays.
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        # TensorFlow has nothing to tune here, and whoever drops an iterator
        # waits for its tuner, which sleeps for as long as it has already run.
        options.autotune.enabled = False
        dataset = (
            tf.data.Dataset.range(first_pass, tf.int64.max)
            .flat_map(order)
            .skip(skipped)
            .batch(self.batch_size, drop_remainder=True)
            .map(arrays.take)
            .prefetch(1)
            .with_options(options)
        )
        yield from self._strategy.experimental_distribute_dataset(dataset)

    def _cycle(self, position: int) -> Generator[Any, None, None]:
        adapter, distribute = (
            self._adapter,
            self._strategy.experimental_distribute_dataset,
        )
        dataset = adapter.get_tf_dataset()
        whole = rest = distribute(dataset)
        if position and not (self._is_generator or self._is_shuffled):
            length = adapter.num_batches
            rest = distribute(
                dataset.skip(position % length)
                if length
                # A dataset of unknown length is counted through, pass by pass.
                else dataset.repeat().skip(position)
            )
        seen = True
        while seen:
            # A second pass over a generator would repeat the first batches
            # alone, which Keras remembers.
            seen = False
            adapter.on_epoch_begin()
            try:
                for batch in rest:
                    seen = not self._is_generator
                    yield batch
            finally:
                adapter.on_epoch_end()
            rest = whole

    def _look_at(self, batch: Any) -> tuple[int, Any]:
        replicas = self._strategy.num_replicas_in_sync
        examples, filled = count_examples(self._strategy, batch)
        if 1 < replicas and filled < replicas:
            raise ValueError(
                f"Each of the {replicas} replicas of the strategy needs an "
                "example of every regularization batch: give `reg_data` "
                "larger batches (`reg_batch_size` for arrays), best a "
                "multiple of the number of replicas. Received: a batch of "
                f"{examples} examples, which leaves {replicas - filled} of "
                "the replicas without any"
            )
        return examples, first_replica(self._strategy, batch)


class _TensorFlowArrays(RegularizationArrays):
    def __init__(self, structure: Any) -> None:
        self._structure = tree.lists_to_tuples(structure)
        self.size = num_rows(structure)
        # Batches are made on the CPU.
        with tf.device("CPU"):
            self._columns = [
                self._column(a) for a in tree.flatten(self._structure)
            ]

    @staticmethod
    def _column(array: Any) -> Any:
        if array is None:
            return None
        column = convert_to_sliceable(array, target_backend="tensorflow")
        # A tuple is a sparse tensor, with what it takes to slice it.
        if isinstance(column, tuple):
            return column
        return keras.ops.convert_to_tensor(column)

    def take(self, rows: Any) -> Any:
        if isinstance(rows, list):
            rows = tf.constant(rows, "int64")

        def take_one(column: Any) -> Any:
            if column is None:
                return None
            if isinstance(column, tuple):
                return slice_tensorflow_sparse_wrapper(column, rows)
            return tf.gather(column, rows)

        flat = [take_one(column) for column in self._columns]
        return tree.pack_sequence_as(self._structure, flat)

    def not_finite(self) -> list[int]:
        finite = tf.ones([self.size], "bool")
        for column in self._columns:
            if isinstance(column, tf.Tensor) and column.dtype.is_floating:
                axes = list(range(1, column.shape.rank))
                sums = tf.reduce_sum(column, axes)
                finite &= tf.math.is_finite(sums)
        rows: list[int] = tf.where(~finite)[:, 0].numpy().tolist()
        return rows


def merge_datasets(x: Any, reg_x: Any) -> Any:
    """The batches of two `tf.data.Dataset` of known size, mixed.

    `None` for other data.
    """
    datasets = [x, reg_x]
    if not all(isinstance(d, tf.data.Dataset) for d in datasets):
        return None
    sizes = [int(d.cardinality()) for d in datasets]
    if min(sizes) <= 0:
        return None
    merged = tf.data.Dataset.sample_from_datasets(
        datasets, weights=[float(size) for size in sizes]
    )
    return merged.apply(tf.data.experimental.assert_cardinality(sum(sizes)))
