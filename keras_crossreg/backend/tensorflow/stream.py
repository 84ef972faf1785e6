"""Endless batches of the regularization set, and both sets as one."""

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

    Raises:
        ValueError: If there are no examples.
    """

    def __init__(
        self,
        reg_data: Any,
        batch_size: int | None,
        strategy: tf.distribute.Strategy,
    ) -> None:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(reg_data)
        self._is_generator = isinstance(x, types.GeneratorType)
        if can_convert_arrays((x, y, sample_weight)):
            dataset = self._from_arrays(x, y, sample_weight, batch_size or 32)
            self._adapter = None
        else:
            self._adapter = get_data_adapter(x, shuffle=_is_finite(x))
            dataset = self._adapter.get_tf_dataset()
        self._dataset = strategy.experimental_distribute_dataset(dataset)
        batches = self._cycle()
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

    def __iter__(self) -> RegularizationStream:
        return self

    def __next__(self) -> Any:
        batch = next(self._batches, None)
        if batch is None:
            raise ValueError(
                "`reg_data` ran out of batches: a generator must go on as "
                "long as training does. Pass arrays, a `tf.data.Dataset` or a "
                "`PyDataset`, or a generator that never ends."
            )
        return batch

    def _from_arrays(
        self, x: Any, y: Any, sample_weight: Any, batch_size: int
    ) -> tf.data.Dataset:
        """Shuffled anew in each pass, without partial batches."""
        sizes = {int(a.shape[0]) for a in keras.tree.flatten(x)}
        size = max(sizes)
        if size == 0:
            return tf.data.Dataset.range(0)
        # Keras's own conversion of arrays, all of them as one batch.
        adapter = get_data_adapter(x, y, sample_weight, batch_size=size)
        arrays = next(iter(adapter.get_tf_dataset()))
        indices = tf.data.Dataset.range(size).shuffle(size).repeat()
        return (
            indices.batch(min(batch_size, size), drop_remainder=True)
            .map(
                lambda i: tf.nest.map_structure(
                    lambda array: tf.gather(array, i), arrays
                )
            )
            .prefetch(1)
        )

    def _cycle(self) -> Any:
        """Passes over the data, one after another, while there are any."""
        seen = True
        while seen:
            # A second pass over a generator would repeat the first batches
            # alone, which Keras remembers.
            seen = False
            if self._adapter is not None:
                self._adapter.on_epoch_begin()
            for batch in self._dataset:
                seen = not self._is_generator
                yield batch
            if self._adapter is not None:
                self._adapter.on_epoch_end()


def _is_finite(x: Any) -> bool:
    """Whether this is a `PyDataset` that Keras can shuffle."""
    return isinstance(x, keras.utils.PyDataset) and x.num_batches is not None
