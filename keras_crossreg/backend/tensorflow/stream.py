"""Endless batches of the regularization set."""

from __future__ import annotations

import itertools
import types
from typing import Any

import keras
import tensorflow as tf

from keras_crossreg._keras import can_convert_arrays
from keras_crossreg._keras import get_data_adapter


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

    Raises:
        ValueError: If there are no examples.
    """

    def __init__(
        self,
        reg_data: Any,
        batch_size: int | None,
        strategy: tf.distribute.Strategy,
        position: int,
    ) -> None:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(reg_data)
        self._strategy = strategy
        self._is_generator = isinstance(x, types.GeneratorType)
        self._arrays = self._adapter = None
        if can_convert_arrays((x, y, sample_weight)):
            self._size = max(int(a.shape[0]) for a in keras.tree.flatten(x))
            self._batch_size = min(batch_size or 32, self._size)
            if self._size:
                # Keras's own conversion of arrays, all of them as one batch.
                whole = get_data_adapter(
                    x, y, sample_weight, batch_size=self._size
                )
                self._arrays = next(iter(whole.get_tf_dataset()))
        else:
            self._adapter = get_data_adapter(x, shuffle=_is_finite(x))
        self._position = position
        batches = self._batches_from(position)
        first = next(batches, None)
        if first is None:
            raise ValueError(
                "`reg_data` must hold at least one example. "
                f"Received: reg_data={reg_data}"
            )
        self._batches = itertools.chain([first], batches)
        #: The batch that comes first, as one replica sees it.
        self.first_batch = keras.tree.map_structure(
            lambda v: strategy.experimental_local_results(v)[0], first
        )

    def seek(self, position: int) -> None:
        """Goes to a batch, where there is a way back: not in a generator."""
        if position != self._position and not self._is_generator:
            self._batches = self._batches_from(position)
            self._position = position

    def __iter__(self) -> RegularizationStream:
        return self

    def __next__(self) -> Any:
        batch = next(self._batches, None)
        self._position += 1
        if batch is None:
            raise ValueError(
                "`reg_data` ran out of batches: a generator must go on as "
                "long as training does. Pass arrays, a `tf.data.Dataset` or a "
                "`PyDataset`, or a generator that never ends."
            )
        return batch

    def _batches_from(self, position: int) -> Any:
        if self._adapter is not None:
            return self._cycle(self._adapter, position)
        if self._arrays is None:
            return iter(())
        dataset = self._shuffled_arrays(position)
        return iter(self._strategy.experimental_distribute_dataset(dataset))

    def _shuffled_arrays(self, position: int) -> tf.data.Dataset:
        """Shuffled anew in each pass, without partial batches.

        The order depends on the number of the pass alone: it is the same in
        every process of a cluster, and in a run that was interrupted.
        """
        size, arrays = self._size, self._arrays
        first_pass, skipped = divmod(position * self._batch_size, size)

        def order(number: tf.Tensor) -> tf.data.Dataset:
            keys = tf.random.stateless_uniform([size], seed=[number, 0])
            return tf.data.Dataset.from_tensor_slices(tf.argsort(keys))

        return (
            tf.data.Dataset.counter(first_pass)
            .flat_map(order)
            .skip(skipped)
            .batch(self._batch_size, drop_remainder=True)
            .map(
                lambda i: tf.nest.map_structure(
                    lambda array: tf.gather(array, i), arrays
                )
            )
            .prefetch(1)
        )

    def _cycle(self, adapter: Any, position: int) -> Any:
        """Passes over the data, one after another, while there are any."""
        dataset = adapter.get_tf_dataset()
        whole = self._strategy.experimental_distribute_dataset(dataset)
        if position and adapter.num_batches:
            rest = dataset.skip(position % adapter.num_batches)
            rest = self._strategy.experimental_distribute_dataset(rest)
        else:
            rest = whole
        seen = True
        while seen:
            # A second pass over a generator would repeat the first batches
            # alone, which Keras remembers.
            seen = False
            adapter.on_epoch_begin()
            for batch in rest:
                seen = not self._is_generator
                yield batch
            adapter.on_epoch_end()
            rest = whole


def _is_finite(x: Any) -> bool:
    """Whether this is a `PyDataset` that Keras can shuffle."""
    return isinstance(x, keras.utils.PyDataset) and x.num_batches is not None
