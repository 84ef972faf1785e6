"""Endless batches of the regularization set."""

from __future__ import annotations

import abc
import contextlib
import types
from collections.abc import Generator
from typing import Any

import keras

from keras_crossreg._keras import array_inputs
from keras_crossreg._keras import can_convert_arrays
from keras_crossreg._keras import get_data_adapter
from keras_crossreg.trainers.reg_data import CONVERSION_ERRORS
from keras_crossreg.trainers.reg_data import batch_rows
from keras_crossreg.trainers.reg_data import describe
from keras_crossreg.trainers.reg_data import examples


class RegularizationStream(abc.ABC):
    """An endless iterator over batches of the regularization set.

    Apart from the training data, so that the two are shuffled independently
    and neither waits for the other's end. Arrays are shuffled anew in every
    pass, and every batch has the same size, so that one trace is enough.

    A backend says how batches are made, in a subclass.

    Args:
        reg_data: Any form of data that `fit` takes as `x`, or a tuple
            `(x, y)` or `(x, y, sample_weight)` of arrays.
        batch_size: Integer or `None`, Keras's 32. For arrays: of other data
            `split` makes smaller batches.
        position: Integer, the number of batches that were used before. A run
            that goes on meets the batch that comes next.

    Attributes:
        batch_size: Examples in a batch, or in the first, of all replicas.
        first_batch: The batch that comes first, as one replica sees it.

    Raises:
        ValueError: If Keras does not take the data, or there are no examples.
    """

    batch_size: int
    first_batch: Any

    def __init__(
        self, reg_data: Any, batch_size: int | None, position: int
    ) -> None:
        self._position = position
        self._description = describe(reg_data)
        self._arrays: RegularizationArrays | None = None
        # Of pieces that larger batches are split up into.
        self._size: int | None = None
        first, error = None, None
        try:
            data = keras.utils.unpack_x_y_sample_weight(reg_data)
            self._is_generator = isinstance(data[0], types.GeneratorType)
            self._is_shuffled = _is_finite(data[0])
            self._adapter = get_data_adapter(*data, shuffle=self._is_shuffled)
            if can_convert_arrays(data):
                self._arrays = self._make_arrays(array_inputs(self._adapter))
                self.batch_size = min(batch_size or 32, self._arrays.size)
            self._batches = self._batches_from(position)
            first = next(self._batches, None)
        except CONVERSION_ERRORS as keras_error:
            error = keras_error
        if error is not None:
            raise ValueError(
                f"{error}\nThis came up with `reg_data`, which takes every "
                "form that `x` takes. "
                f"Received: reg_data={self._description}"
            ) from error
        if first is None:
            raise ValueError(
                "`reg_data` must hold at least one example, in a form that "
                f"`fit` takes. Received: reg_data={self._description}"
            )
        self._first: Any = [first]
        self.batch_size, self.first_batch = self._look_at(first)
        self._whole_batch_size = self.batch_size

    # ---- What a backend says -------------------------------------------------

    @abc.abstractmethod
    def _make_arrays(self, structure: Any) -> RegularizationArrays:
        """Arrays of any kind that `fit` takes, to take rows of."""

    @abc.abstractmethod
    def _shuffled(
        self, arrays: RegularizationArrays, position: int
    ) -> Generator[Any, None, None]:
        """Batches of arrays, shuffled anew in each pass, all of one size.

        The order depends on the number of the pass alone: it is the same in
        every process of a cluster, and in a run that was interrupted.
        """

    @abc.abstractmethod
    def _cycle(self, position: int) -> Generator[Any, None, None]:
        """Passes over other data, one after another, while there are any."""

    @abc.abstractmethod
    def _look_at(self, batch: Any) -> tuple[int, Any]:
        """Examples in the first batch, and its part of the first replica.

        Raises:
            ValueError: If a replica has no example.
        """

    # ---- The iterator --------------------------------------------------------

    def _batches_from(self, position: int) -> Generator[Any, None, None]:
        if self._arrays is not None:
            return self._shuffled(self._arrays, position)
        if self._size is None:
            return self._cycle(position)
        skipped = 0 if self._is_shuffled else position
        return self._pieces(self._cycle(0), skipped)

    def __iter__(self) -> RegularizationStream:
        return self

    @property
    def comes_in_batches(self) -> bool:
        """Whether the data say how many examples come together."""
        return self._arrays is None

    @property
    def num_examples(self) -> int | None:
        """Of the whole set; `None` where that is not known."""
        if self._arrays is not None:
            return self._arrays.size
        batches = None if self._is_generator else self._adapter.num_batches
        return batches and batches * self._whole_batch_size

    def split(self, size: int) -> None:
        """Splits batches up that are larger, before the first one is used.

        What is left over of each is left out.
        """
        if self._arrays is not None or self.batch_size <= size:
            return
        self._size = size
        if self._is_generator:
            whole = _chained(self._first, self._batches)
            self._batches = self._pieces(whole, 0)
        else:
            self.close()
            self._batches = self._batches_from(self._position)
        first = next(self._batches)
        self._first = [first]
        self.batch_size, self.first_batch = self._look_at(first)

    def _pieces(
        self, whole: Generator[Any, None, None], skipped: int
    ) -> Generator[Any, None, None]:
        """Batches split up, but for so many pieces at the start."""
        assert self._size is not None
        number = 0
        with contextlib.closing(whole):
            for batch in whole:
                rows = batch_rows(batch)
                for start in range(0, rows - self._size + 1, self._size):
                    number += 1
                    if number > skipped:
                        yield examples(batch, start, self._size)

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

    def peek(self) -> Any:
        """The batch that comes next, and still does afterwards."""
        batch = next(self)
        self._first.append(batch)
        self._position -= 1
        return batch

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
        return rows, self._arrays.take(rows)


class RegularizationArrays(abc.ABC):
    """A structure of arrays, of any kind that `fit` takes.

    Attributes:
        size: The number of examples.
    """

    size: int

    @abc.abstractmethod
    def take(self, rows: Any) -> Any:
        """The examples with these numbers, in the structure of the arrays."""

    @abc.abstractmethod
    def not_finite(self) -> list[int]:
        """The numbers of the examples that hold a NaN or an infinity."""


def _chained(
    first: list[Any], rest: Generator[Any, None, None]
) -> Generator[Any, None, None]:
    with contextlib.closing(rest):
        yield from first
        yield from rest


def _is_finite(x: Any) -> bool:
    """Whether this is a `PyDataset` that Keras can shuffle."""
    return isinstance(x, keras.utils.PyDataset) and x.num_batches is not None
