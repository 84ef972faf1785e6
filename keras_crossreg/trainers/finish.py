"""The last epochs of a `fit`, which begin half way back at its start."""

from __future__ import annotations

from typing import Any

from keras_crossreg._keras import count_steps
from keras_crossreg.trainers.restart import Start
from keras_crossreg.trainers.stretched_schedule import StretchedSchedule


class Finish:
    """From the switch of a `fit` to its end.

    Args:
        model: A compiled and built model, before the first epoch.
        switch: Integer, the first epoch of the finish.
        epochs: Integer, where the `fit` ends.
        steps: Integer, training steps of an epoch before the switch.
    """

    def __init__(
        self, model: Any, switch: int, epochs: int, steps: int
    ) -> None:
        self._model = model
        self._switch = switch
        self._epochs = epochs
        self._steps = steps
        self._start = Start(model)
        self._schedule = StretchedSchedule.of(model) if switch else None

    def begin(self, first: int, steps: int) -> bool:
        """Before the first epoch of the finish that this `fit` trains.

        Args:
            first: Integer, the number of that epoch: behind the switch, where
                a run goes on.
            steps: Integer, training steps of an epoch of the finish.

        Returns:
            Whether theta went back.
        """
        # An interrupted run may go on at the switch: before it went back, with
        # the steps of an epoch behind it at least, or in the first epoch after.
        goes_back = (
            0 < self._switch == first
            and self._start.steps_since(self._model) >= self._steps
        )
        if goes_back:
            self._start.restart(self._model)
        if self._schedule is not None:
            taken = (first - self._switch) * steps
            finish = (self._epochs - self._switch) * steps
            self._schedule.stretch(
                origin=count_steps(self._model.optimizer) - taken,
                factor=max(1.0, self._epochs * self._steps / finish),
            )
        return goes_back

    def end(self) -> None:
        """Gives the optimizer its own schedule again."""
        if self._schedule is not None:
            self._schedule.remove()
