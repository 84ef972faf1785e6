"""The learning rate schedule of the user, in fewer steps."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


class StretchedSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """`schedule(origin + factor * (step - origin))`.

    Both are variables, so that a compiled step takes new ones: at first, a
    factor of 1.

    Args:
        schedule: A `keras.optimizers.schedules.LearningRateSchedule`.
    """

    def __init__(self, schedule: Any) -> None:
        super().__init__()
        self.schedule = schedule
        self._origin, self._factor = (
            keras.Variable(value, dtype=dtype, trainable=False, name=name)
            for value, dtype, name in (
                (0, "int32", "origin"),
                (1.0, "float32", "factor"),
            )
        )

    def stretch(self, origin: int, factor: float) -> None:
        self._origin.assign(origin)
        self._factor.assign(factor)

    def __call__(self, step: Any) -> Any:
        since = ops.cast(step, "int32") - self._origin
        stretched = self._factor * ops.cast(since, "float32")
        stretched = self._origin + ops.cast(ops.round(stretched), "int32")
        return self.schedule(stretched)

    def get_config(self) -> dict[str, Any]:
        # Files get the schedule that `compile` was given.
        return {"schedule": self.schedule}
