"""The learning rate schedule of the user, in fewer steps."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_crossreg._keras import count_steps
from keras_crossreg._keras import inner_optimizer
from keras_crossreg._keras import learning_rate_of
from keras_crossreg._keras import set_steps


class StretchedSchedule(LearningRateSchedule):
    """`schedule(origin + factor * (step - origin))`, in the place of another.

    Both are variables, so that a compiled step takes new ones; or the model
    compiles it anew, where a step has them as constants. At first the factor
    is 1.

    Args:
        model: A compiled model. The schedule is that of its optimizer, whose
            place this one takes until `remove()`.
    """

    @classmethod
    def of(cls, model: Any) -> StretchedSchedule | None:
        """`None` where the learning rate comes from no schedule."""
        rate = learning_rate_of(inner_optimizer(model.optimizer))
        return cls(model) if isinstance(rate, LearningRateSchedule) else None

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model
        self._optimizer = inner_optimizer(model.optimizer)
        self._schedule = learning_rate_of(self._optimizer)
        self._origin, self._factor = (
            keras.Variable(value, dtype=dtype, trainable=False, name=name)
            for value, dtype, name in (
                (0, "int32", "origin"),
                (1.0, "float32", "factor"),
            )
        )
        self._set(self)

    def stretch(self, origin: int, factor: float) -> None:
        """From this step on, by this factor."""
        self._origin.assign(origin)
        self._factor.assign(factor)
        self._model.take_new_schedule()

    def remove(self) -> None:
        """Leaves the optimizer at that step of its own schedule."""
        steps = self._stretched(count_steps(self._optimizer))
        set_steps(self._optimizer, int(ops.convert_to_numpy(steps)))
        self._set(self._schedule)

    def __call__(self, step: Any) -> Any:
        return self._schedule(self._stretched(step))

    def _stretched(self, step: Any) -> Any:
        since = ops.cast(step, "int32") - self._origin
        since = self._factor * ops.cast(since, "float32")
        return self._origin + ops.cast(ops.round(since), "int32")

    def _set(self, schedule: Any) -> None:
        self._optimizer.learning_rate = schedule
        # A compiled step has the schedule that it was compiled with.
        self._model.train_function = None

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError("It is not saved: files get the user's own.")
