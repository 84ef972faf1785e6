"""The start of a final model that goes on from a trained one."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_crossreg._keras import count_steps
from keras_crossreg.cross_reg_model import CrossRegModel
from keras_crossreg.trainers.reg_data import describe
from keras_crossreg.trainers.reg_data import num_batches
from keras_crossreg.trainers.restart import drawn_kernels
from keras_crossreg.trainers.restart import go_back
from keras_crossreg.trainers.stretched_schedule import StretchedSchedule


class MeasureAverages(keras.callbacks.Callback):
    """Moving averages of batch normalization, measured before the first step.

    Args:
        data: As a tuple `(x, y, sample_weight)`.
        batch_size: Integer or `None`, as for `fit`.
    """

    def __init__(self, data: Any, batch_size: int | None) -> None:
        super().__init__()
        self._data = data
        self._batch_size = batch_size

    def on_train_begin(self, logs: Any = None) -> None:
        self.model.measure_moving_averages(self._data, self._batch_size)


def check_data(x: Any) -> None:
    """Raises a ValueError for data that cannot be read twice."""
    if isinstance(x, types.GeneratorType):
        raise ValueError(
            "`warm=True` measures moving averages on a few batches first, and "
            "expects data that can be read again: arrays, a "
            "`tf.data.Dataset` or a `PyDataset`. "
            f"Received: x={describe(x)}"
        )


def take_theta(final: CrossRegModel, model: CrossRegModel) -> None:
    """Gives a fresh copy the weights of `model`, a part of the way back."""
    theta = final.theta_variables
    fresh = [ops.copy(v.value) for v in theta]
    drawn = drawn_kernels(final)
    final.set_weights(model.get_weights())
    go_back(theta, fresh, [id(v) in drawn for v in theta])


@contextlib.contextmanager
def whole_schedule(
    final: CrossRegModel, model: CrossRegModel, data: Any, arguments: Any
) -> Iterator[None]:
    """A learning rate schedule that goes as far as it came in `model`.

    Args:
        final: The model to train.
        model: The model that was trained.
        data: As a tuple `(x, y, sample_weight)`.
        arguments: A dict of those of `fit`.

    Raises:
        ValueError: If the length of an epoch cannot be told.
    """
    schedule = StretchedSchedule.of(final)
    if schedule is None:
        yield
        return
    try:
        steps = arguments.get("steps_per_epoch") or num_batches(
            data, arguments.get("batch_size")
        )
        if steps is None:
            raise ValueError(
                "The learning rate schedule goes through all steps of a warm "
                "`refit`, and their number is not known: pass "
                f"`steps_per_epoch`. Received: x={describe(data[0])}"
            )
        epochs = arguments.get("epochs", 1) - arguments.get("initial_epoch", 0)
        steps = max(1, steps * epochs)
        schedule.stretch(0, count_steps(model.optimizer) / steps)
        yield
    finally:
        schedule.remove()
