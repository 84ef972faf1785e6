"""Batches of the regularization set by NumPy, for backends without datasets."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from typing import Any

import numpy as np
from keras import ops
from keras import tree

from keras_crossreg._keras import batches_of
from keras_crossreg._keras import sliceables
from keras_crossreg._keras import take_rows
from keras_crossreg.trainers.reg_data import batch_rows
from keras_crossreg.trainers.reg_data import num_rows
from keras_crossreg.trainers.reg_stream import RegularizationArrays
from keras_crossreg.trainers.reg_stream import RegularizationStream


class ArrayStream(RegularizationStream):
    """Regularization batches in the order of NumPy's random numbers."""

    def _make_arrays(self, structure: Any) -> RegularizationArrays:
        return Arrays(structure)

    def _shuffled(
        self, arrays: RegularizationArrays, position: int
    ) -> Generator[Any, None, None]:
        # On its way to the device while the one before it is used.
        ahead: Any = None
        for batch in self._taken(arrays, position):
            batch = self._on_device(batch)
            if ahead is not None:
                yield ahead
            ahead = batch

    def _on_device(self, batch: Any) -> Any:
        """A batch on its way to the device; of a backend."""
        return batch

    def _taken(
        self, arrays: RegularizationArrays, position: int
    ) -> Generator[Any, None, None]:
        if not arrays.size:
            return
        number, skipped = divmod(position * self.batch_size, arrays.size)
        rows = _order(number, arrays.size)[skipped:]
        while True:
            while len(rows) < self.batch_size:
                number += 1
                rows = np.concatenate([rows, _order(number, arrays.size)])
            yield arrays.take(rows[: self.batch_size])
            rows = rows[self.batch_size :]

    def _cycle(self, position: int) -> Generator[Any, None, None]:
        adapter = self._adapter
        skipped = 0 if self._is_generator or self._is_shuffled else position
        if skipped and adapter.num_batches:
            skipped %= adapter.num_batches
        seen = True
        while seen:
            # A second pass over a generator would repeat the first batches
            # alone, which Keras remembers.
            seen = False
            adapter.on_epoch_begin()
            try:
                for batch in batches_of(adapter):
                    seen = not self._is_generator
                    if skipped:
                        # A dataset of unknown length is counted through.
                        skipped -= 1
                    else:
                        yield tree.lists_to_tuples(batch)
            finally:
                adapter.on_epoch_end()

    def _look_at(self, batch: Any) -> tuple[int, Any]:
        return int(batch_rows(batch)), batch


class Arrays(RegularizationArrays):
    """Arrays of any kind that `fit` takes, cut by Keras's own means."""

    def __init__(self, structure: Any) -> None:
        self._structure = tree.lists_to_tuples(structure)
        self.size = num_rows(structure)
        self._columns = [sliceables(a) for a in tree.flatten(self._structure)]

    def take(self, rows: Any) -> Any:
        rows = np.asarray(rows, "int64")
        flat = [
            None if column is None else self._take_one(place, rows)
            for place, column in enumerate(self._columns)
        ]
        return tree.pack_sequence_as(self._structure, flat)

    def _take_one(self, place: int, rows: np.ndarray) -> Any:
        return take_rows(self._columns[place], rows)

    def not_finite(self) -> list[int]:
        finite = np.ones(self.size, "bool")
        # A part at a time, so that no second array is as large.
        step = 1024
        for start, column in itertools.product(
            range(0, self.size, step), self._columns
        ):
            if column is None:
                continue
            rows = np.arange(start, min(start + step, self.size))
            part = take_rows(column, rows)
            if not hasattr(part, "__array__"):
                continue
            values: np.ndarray = ops.convert_to_numpy(part)
            if values.dtype.kind == "f":
                sums = values.reshape(len(rows), -1).sum(axis=1)
                finite[rows] &= np.isfinite(sums)
        return [int(row) for row in np.flatnonzero(~finite)]


def _order(number: int, size: int) -> np.ndarray:
    """The rows in the order of a pass, which its number alone decides."""
    order: np.ndarray = np.random.default_rng([number]).permutation(size)
    return order
