"""The two steps, of theta and of rho, and when each is due."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import keras

from keras_crossreg import _keras
from keras_crossreg import primitives
from keras_crossreg.regularizers.level_sets import project_theta_steps
from keras_crossreg.trainers.fit_state import FitState
from keras_crossreg.trainers.fit_warnings import warn_of_curvature
from keras_crossreg.trainers.reg_data import batch_rows
from keras_crossreg.trainers.reg_data import examples
from keras_crossreg.trainers.reg_data import with_ranks_of
from keras_crossreg.trainers.regularization_loss import RegularizationLoss

# This key in the logs of a rho step is for `_run_rho_step` alone.
IS_POSITIVE = "is_positive"


class Alternation(RegularizationLoss):
    """Theta at every training step; rho, at the new theta, every r.

    The train function of a backend alternates compiled forms of `train_step`
    and of `rho_step`.
    """

    #: Keras's, compiled.
    train_function: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The `fit` that runs keeps this.
        self._fit_state: FitState | None = None
        # The compiled rho step: from a regularization batch, and a training
        # batch where a `hypergradient` looks at one, to its logs.
        self._rho_function: Any = None
        # From a regularization batch to the logs of a rho step, of which
        # nothing moves; compiled too.
        self._measure_function: Any = None

    def train_step(self, *args: Any) -> Any:
        """`theta <- theta - a dL_train(theta, rho) / dtheta`.

        Keras's own step, with one sample of the noise: rho are not among the
        `trainable_variables` that it moves. Weights whose complexity is rho
        stay in its level set.
        """
        with project_theta_steps(self._level_sets, self.optimizer):
            return super().train_step(*args)

    def rho_step(self, data: Any, train_data: Any = None) -> Any:
        """`rho <- rho - b dL_reg(theta, rho) / drho`, at the new theta."""
        data = with_ranks_of(self._checked.like, data)
        if train_data is None:
            train_data = self._checked.train_batch
        loss, y_pred, gradients, is_positive = self._rho_gradients(
            data, train_data
        )
        learning = self._learning_level_sets()
        for level_set in learning:
            level_set.read()
        primitives.apply_gradients(
            self.rho_optimizer, gradients, self._learning_rho()
        )
        for level_set in learning:
            level_set.write()
        logs = self._reg_metrics.update(data, loss, y_pred)
        if self._options.second_order is not None:
            logs[IS_POSITIVE] = is_positive
        return logs

    def _rho_step_on(self, batch: Any, train_batch: Any = None) -> Any:
        """`rho_step`, of which a user's own may know of one batch alone."""
        self._checked.train_batch = train_batch
        try:
            return self.rho_step(batch)
        finally:
            self._checked.train_batch = None

    def measure_step(self, data: Any) -> Any:
        """What a rho step reports, where nothing moves."""
        data = with_ranks_of(self._checked.like, data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        samples = self._repeatable_samples(x, self._num_samples)
        y_pred = self._average(samples)
        loss = self._loss_without_a_trace(x, y, y_pred, sample_weight)
        return self._reg_metrics.update(data, loss, y_pred)

    @property
    def _num_replicas(self) -> int:
        """Devices that each have a part of every batch; of a backend."""
        return 1

    # ---- Around an execution of theta's step ---------------------------------

    def _begin_execution(self) -> None:
        """What comes before the step of theta, in `fit`."""
        state = self._fit_state
        if state is None:
            return
        state.shows_metrics = False
        if state.stream is not None and state.steps_are_stale:
            assert state.schedule is not None
            state.schedule.steps = _keras.count_steps(self.optimizer)
            state.stream.seek(_keras.count_steps(self.rho_optimizer))
            state.steps_are_stale = False

    def _keep_train_batch(self, iterator: Any) -> Any:
        """The iterator, which a `hypergradient` takes the last batch of."""
        state = self._fit_state
        if state is None or self._options.correction is None:
            return iterator
        batches = list(itertools.islice(iterator, self.steps_per_execution))
        if not batches:
            raise StopIteration
        # The last batch of an epoch may have fewer examples: a step that is
        # compiled for the others keeps to these.
        if not self._is_shorter(batches[-1], state.train_batch):
            state.train_batch = batches[-1]
        return iter(batches)

    def _is_shorter(self, batch: Any, before: Any) -> bool:
        return (
            before is not None
            and self._options.gap is not None
            and batch_rows(batch) < batch_rows(before)
        )

    def _training_examples(self, batch: Any, reg_batch: Any) -> Any:
        """What a `hypergradient` looks at of a training batch."""
        gap = self._options.gap
        if gap is None:
            return batch
        return examples(batch, 0, gap.batch_size or batch_rows(reg_batch))

    def _due_reg_batches(self) -> Iterator[Any]:
        """A batch for each rho step that theta's last steps made due."""
        state = self._fit_state
        if state is None or state.stream is None:
            return
        schedule = state.schedule
        assert schedule is not None
        taken = state.count_execution(self.steps_per_execution)
        if self.steps_per_execution == 1:
            taken = 1
        # Where nothing else says how many they were, the optimizer does, which
        # waits for the device.
        steps = (
            _keras.count_steps(self.optimizer)
            if taken is None
            else schedule.steps + taken
        )
        if schedule.reg_freq is None:
            taken = max(1, steps - schedule.steps)
            schedule.choose_reg_freq(
                state.stream.batch_size, _keras.count_examples(self) / taken
            )
        due = schedule.advance(steps)
        if not self._rho_frozen:
            for _ in range(due):
                yield next(state.stream)

    def _run_rho_step(self, batch: Any) -> None:
        """One rho step, and what is reported of it."""
        state = self._fit_state
        assert state is not None
        if state.metrics_are_stale:
            self._reg_metrics.reset()
            state.metrics_are_stale = False
        batches: tuple[Any, ...] = (self._ranked(batch),)
        if self._options.correction is not None:
            batches += (self._training_examples(state.train_batch, batch),)
        logs = self._rho_function(batches)
        if self._options.second_order is not None:
            steps = (
                state.schedule.steps
                if state.schedule is not None
                else _keras.count_steps(self.optimizer)
            )
            state.note_curvature(steps, logs.pop(IS_POSITIVE))
        state.report(logs)

    def _measure(self, state: FitState) -> None:
        """Measures an epoch without a rho step, on the batch that is next."""
        assert state.stream is not None
        self._reg_metrics.reset()
        batch = self._ranked(state.stream.peek())
        state.report(self._measure_function((batch,)))
        state.is_measured = True

    def _ranked(self, batch: Any) -> Any:
        """A batch with the ranks of the training data.

        Data of another kind may come with one more axis, for which a compiled
        step would be traced with an unknown rank.
        """
        if self._num_replicas > 1:
            return batch
        parts = with_ranks_of(self._checked.like, batch)
        # A `rho_step` of the user's own gets as many parts as there were.
        return parts[: len(batch)] if isinstance(batch, tuple) else parts[0]

    def _with_reg_logs(self, logs: dict[str, Any]) -> dict[str, Any]:
        """The logs of an execution, from now on with those of rho steps."""
        state = self._fit_state
        if state is None:
            return logs
        state.shows_metrics = bool(state.logs)
        return {**logs, **state.logs}

    @contextlib.contextmanager
    def _keeping(self, state: FitState) -> Iterator[FitState]:
        """A call of `fit`, which keeps this state to its end."""
        before, self._fit_state = self._fit_state, state
        try:
            yield state
        finally:
            self._fit_state = before
            state.end()
            state.read_curvatures()
            if state.bad_curvature:
                warn_of_curvature(
                    len(state.bad_curvature),
                    state.rho_steps,
                    state.bad_curvature[-1],
                )

    # ---- What Keras reports of an epoch --------------------------------------

    def reset_metrics(self) -> None:
        super().reset_metrics()
        if self._fit_state is not None:
            self._fit_state.begin_epoch()

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        # What `evaluate` reports is of the data that it was given.
        if self._fit_state is not None:
            self._fit_state.shows_metrics = False
        return super().evaluate(*args, **kwargs)

    def get_metrics_result(self) -> dict[str, Any]:
        results: dict[str, Any] = super().get_metrics_result()
        state = self._fit_state
        if state is None or not state.shows_metrics:
            return results
        if state.stream is None:
            # Merged epochs have no regularization batches.
            results.update(state.logs)
            return results
        if state.metrics_are_stale and not state.is_measured:
            self._measure(state)
        results.update(self._reg_metrics.results())
        return results
