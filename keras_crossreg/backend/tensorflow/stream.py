"""Endless batches of the regularization set."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from keras_crossreg._keras import array_inputs
from keras_crossreg._keras import can_convert_arrays
from keras_crossreg._keras import convert_to_sliceable
from keras_crossreg._keras import get_data_adapter
from keras_crossreg._keras import slice_tensorflow_sparse_wrapper
from keras_crossreg.backend.tensorflow.replicas import count_examples
from keras_crossreg.backend.tensorflow.replicas import first_replica
from keras_crossreg.regularization_data import CONVERSION_ERRORS
from keras_crossreg.regularization_data import describe
from keras_crossreg.regularization_data import num_rows


class RegularizationStream:
    """An endless iterator over batches of the regularization set.

    Apart from the training data, so that the two are shuffled independently
    and neither waits for the other's end. Arrays are shuffled anew in every
    pass, and every batch has the same size, so that one trace is enough.

    Args:
        reg_data: Any form of data that `fit` takes as `x`, or a tuple
            `(x, y)` or `(x, y, sample_weight)` of arrays.
        batch_size: Integer or `None`, Keras's 32. For arrays.
        strategy: The `tf.distribute.Strategy` to distribute batches with.
        position: Integer, the number of batches that were used before. A run
            that goes on meets the batch that comes next.

    Attributes:
        batch_size: Examples in a batch, or in the first, of all replicas.
        first_batch: The batch that comes first, as one replica sees it.

    Raises:
        ValueError: If Keras does not take the data, if there are no examples,
            or not one for every replica.
    """

    def __init__(
        self,
        reg_data: Any,
        batch_size: int | None,
        strategy: tf.distribute.Strategy,
        position: int,
    ) -> None:
        self._strategy = strategy
        self._position = position
        self._description = describe(reg_data)
        self._arrays: _Arrays | None = None
        first, error = None, None
        try:
            data = keras.utils.unpack_x_y_sample_weight(reg_data)
            self._is_generator = isinstance(data[0], types.GeneratorType)
            self._is_shuffled = _is_finite(data[0])
            self._adapter = get_data_adapter(*data, shuffle=self._is_shuffled)
            if can_convert_arrays(data):
                self._arrays = _Arrays(array_inputs(self._adapter))
                self.batch_size = min(batch_size or 32, self._arrays.size)
            self._batches = self._batches_from(position)
            first = next(self._batches, None)
        except CONVERSION_ERRORS as keras_error:
            error = keras_error
        if first is None:
            raise ValueError(
                "`reg_data` must hold at least one example, in a form that "
                "`fit` takes. "
                + (f"The error was: {error}\n" if error else "")
                + f"Received: reg_data={self._description}"
            ) from error
        self.batch_size, filled = count_examples(strategy, first)
        _check_every_replica_has_examples(strategy, self.batch_size, filled)
        self._first: Any = [first]
        self.first_batch = first_replica(strategy, first)

    def seek(self, position: int) -> None:
        """Goes to a batch, where there is a way back: not in a generator."""
        if position != self._position and not self._is_generator:
            self.close()
            self._first = []
            self._batches = self._batches_from(position)
            self._position = position

    def close(self) -> None:
        """Ends the pass, and the threads that a `PyDataset` reads with."""
        self._batches.close()

    def not_finite(self) -> tuple[list[int], Any]:
        """Examples of arrays that hold a NaN or an infinity.

        Returns:
            `(rows, batch)`: the numbers of the first ones, and a batch of
            them. None for other data.
        """
        if self._arrays is None:
            return [], None
        rows = self._arrays.not_finite()[: self.batch_size]
        return rows.numpy().tolist(), self._arrays.take(rows)

    def __iter__(self) -> RegularizationStream:
        return self

    def __next__(self) -> Any:
        self._position += 1
        if self._first:
            return self._first.pop()
        batch = next(self._batches, None)
        if batch is None:
            raise ValueError(
                "`reg_data` ran out of batches: a generator must go on as "
                "long as training does. Pass arrays, a `tf.data.Dataset` or a "
                "`PyDataset`, or a generator that never ends. "
                f"Received: reg_data={self._description}"
            )
        return batch

    def _batches_from(self, position: int) -> Any:
        if self._arrays is not None:
            return self._shuffled(self._arrays, position)
        return self._cycle(position)

    def _shuffled(self, arrays: _Arrays, position: int) -> Iterator[Any]:
        """Shuffled anew in each pass, without partial batches.

        The order depends on the number of the pass alone: it is the same in
        every process of a cluster, and in a run that was interrupted.
        """
        if not arrays.size:
            return
        first_pass, skipped = divmod(position * self.batch_size, arrays.size)

        def order(number: tf.Tensor) -> tf.data.Dataset:
            keys = tf.random.stateless_uniform([arrays.size], seed=[number, 0])
            return tf.data.Dataset.from_tensor_slices(tf.argsort(keys))

        # As Keras's arrays: each worker of a cluster has its part of a batch.
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        # Nothing here is tuned, and whoever drops an iterator waits for the
        # tuner, which sleeps for as long as it has already run.
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

    def _cycle(self, position: int) -> Iterator[Any]:
        """Passes over the data, one after another, while there are any."""
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
                # Of unknown length: count through as many passes as it takes.
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


class _Arrays:
    """A structure of arrays, of any kind that `fit` takes, to take rows of."""

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
        """The examples with these numbers, in the structure of the arrays."""

        def take_one(column: Any) -> Any:
            if column is None:
                return None
            if isinstance(column, tuple):
                return slice_tensorflow_sparse_wrapper(column, rows)
            return tf.gather(column, rows)

        flat = [take_one(column) for column in self._columns]
        return tree.pack_sequence_as(self._structure, flat)

    def not_finite(self) -> Any:
        """The numbers of the examples that hold a NaN or an infinity."""
        finite = tf.ones([self.size], "bool")
        for column in self._columns:
            if isinstance(column, tf.Tensor) and column.dtype.is_floating:
                axes = list(range(1, column.shape.rank))
                sums = tf.reduce_sum(column, axes)
                finite &= tf.math.is_finite(sums)
        return tf.where(~finite)[:, 0]


def _check_every_replica_has_examples(
    strategy: tf.distribute.Strategy, examples: int, filled: int
) -> None:
    replicas = strategy.num_replicas_in_sync
    if 1 < replicas and filled < replicas:
        raise ValueError(
            f"Each of the {replicas} replicas of the strategy needs an "
            "example of every regularization batch: give `reg_data` larger "
            "batches (`reg_batch_size` for arrays), best a multiple of the "
            f"number of replicas. Received: a batch of {examples} examples, "
            f"which leaves {replicas - filled} of the replicas without any"
        )


def _is_finite(x: Any) -> bool:
    """Whether this is a `PyDataset` that Keras can shuffle."""
    return isinstance(x, keras.utils.PyDataset) and x.num_batches is not None
