"""What one call of `fit` keeps."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_crossreg.optimizers import AnchoredAdam
from keras_crossreg.trainers.finish import Finish
from keras_crossreg.trainers.reg_stream import RegularizationStream
from keras_crossreg.trainers.rho_schedule import RhoSchedule


@dataclasses.dataclass
class FitState:
    """Made by `fit` or `train_on_batch`, and dropped at its end.

    Attributes:
        stream: The regularization batches; `None` where rho do not learn.
        schedule: When rho step.
        finish: What the last epochs begin with; `None` without such.
        holder: The optimizer that holds rho until the end of `fit`.
        train_like: Symbolic tensors like the training batches, or `None`.
        train_batch: The last training batch, for a `hypergradient` that looks
            at it.
        logs: What was reported last of the regularization batches. Not
            numbers before, and in merged epochs, so that every epoch has the
            same keys.
        logs_are_known: Whether these are numbers that were measured.
        shows_metrics: Whether the metrics of the model include those of the
            regularization batches: not within a step of theta.
        metrics_are_stale: Whether the next rho step is the first of an epoch.
        is_measured: Whether an epoch without a rho step was measured.
        steps_are_stale: Whether steps were taken, or left out, that the
            schedule does not know of.
        steps_of_epoch: Training steps of an epoch, where they are known.
        steps_in_epoch: Those that the epoch has taken.
        rho_steps: Rho steps that a `hypergradient` looked at.
        bad_curvature: After which training steps it met curvature that was
            not positive.
    """

    stream: RegularizationStream | None = None
    schedule: RhoSchedule | None = None
    finish: Finish | None = None
    holder: AnchoredAdam | None = None
    train_like: Any = None
    train_batch: Any = None
    logs: dict[str, Any] = dataclasses.field(default_factory=dict)
    logs_are_known: bool = False
    shows_metrics: bool = False
    metrics_are_stale: bool = True
    is_measured: bool = False
    steps_are_stale: bool = True
    steps_of_epoch: int | None = None
    steps_in_epoch: int = 0
    rho_steps: int = 0
    bad_curvature: list[int] = dataclasses.field(default_factory=list)
    # Of the steps whose curvature is still on the device.
    _curvatures: list[tuple[int, Any]] = dataclasses.field(default_factory=list)

    def count_execution(self, steps_per_execution: int) -> int | None:
        """The training steps of the execution that has run, where known.

        The last one of an epoch may have fewer.
        """
        if self.steps_of_epoch is None:
            return None
        left = self.steps_of_epoch - self.steps_in_epoch
        taken = min(steps_per_execution, left)
        # An epoch begins where the one before has ended.
        self.steps_in_epoch = (
            self.steps_in_epoch + taken
        ) % self.steps_of_epoch
        return taken

    def note_curvature(self, steps: int, is_positive: Any) -> None:
        """Notes a look of a `hypergradient`, without waiting for its result.

        `steps`: the training steps before it.
        """
        self.rho_steps += 1
        self._curvatures.append((steps, is_positive))

    def read_curvatures(self) -> None:
        """Waits for those that were noted."""
        self.bad_curvature += [s for s, good in self._curvatures if not good]
        self._curvatures.clear()

    def begin_epoch(self) -> None:
        self.read_curvatures()
        self.metrics_are_stale = True
        self.is_measured = False
        # A run that goes on from here counts anew: loss scaling leaves steps
        # out. And at the first step a callback may have restored optimizers.
        self.steps_are_stale = True

    def report(self, logs: dict[str, Any]) -> None:
        """Reports what was measured of the regularization batches."""
        self.logs = logs
        self.logs_are_known = True

    def clear_logs(self, names: Any) -> None:
        """Reports that nothing is known under these names."""
        self.logs = dict.fromkeys(names, float("nan"))
        self.logs_are_known = False

    def end(self) -> None:
        self.end_stream()
        if self.finish is not None:
            self.finish.end()
        if self.holder is not None:
            self.holder.hold([], 0.0)

    def end_stream(self) -> None:
        """Ends the learning of rho."""
        if self.stream is not None:
            self.stream.close()
        self.stream = None
