"""What `fit` and `train_on_batch` check and build before a weight moves."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
from keras import ops

from keras_crossreg import _keras
from keras_crossreg.optimizers import AnchoredAdam
from keras_crossreg.sampling.row_probe import fixed_batch
from keras_crossreg.trainers import reg_data as data_lib
from keras_crossreg.trainers.alternation import Alternation
from keras_crossreg.trainers.data_checks import check_not_complex
from keras_crossreg.trainers.data_checks import check_reg_weight
from keras_crossreg.trainers.data_checks import check_sample_weight
from keras_crossreg.trainers.data_checks import extreme_labels
from keras_crossreg.trainers.fit_state import FitState
from keras_crossreg.trainers.fit_warnings import RhoWatch
from keras_crossreg.trainers.fit_warnings import warn_of_held_rho
from keras_crossreg.trainers.fit_warnings import warn_of_no_rho
from keras_crossreg.trainers.prior_loss import prior_loss
from keras_crossreg.trainers.reg_stream import RegularizationStream
from keras_crossreg.trainers.rho_schedule import Epochs
from keras_crossreg.trainers.rho_schedule import RhoSchedule
from keras_crossreg.trainers.rho_schedule import Work
from keras_crossreg.trainers.rho_schedule import default_reg_warmup
from keras_crossreg.trainers.shared_batches import warn_of_shared_batches


class Preparation(Alternation):
    """A regularization set that fits the model, and both as they must be.

    A backend says how batches are made, in a subclass.
    """

    def _make_stream(
        self, reg_data: Any, batch_size: int | None, position: int
    ) -> RegularizationStream:
        """The regularization batches, from this one on."""
        raise NotImplementedError

    def _whole_batch(self, size: int) -> int:
        """The next size of batches that divides over devices; of a backend."""
        return size

    def _prepare(
        self,
        state: FitState,
        data: Any,
        reg_data: Any,
        batch_size: int | None,
        reg_batch_size: int | None,
        epochs: Epochs,
    ) -> Any:
        """Checks everything that can be checked before a weight moves.

        Returns:
            The data to train on, `(x, y, sample_weight)`.
        """
        check_sample_weight("the training data", data[1], data[2])
        like, x = None, data[0]
        if reg_data is not None or not self._is_built or self._num_replicas > 1:
            like, x = data_lib.peek(*data)
        state.train_like = like
        self._build_on(like)
        state.schedule = schedule = self._make_schedule(epochs)
        if reg_data is None:
            self._check_level_sets()
            data_lib.check_reg_data_is_there(self._learning_rho(), reg_data)
        else:
            check_reg_weight(reg_data)
            fixed = fixed_batch(self)
            if reg_batch_size is None and fixed is not None:
                reg_batch_size = fixed * self._num_replicas
            state.stream = self._make_reg_stream(
                reg_data,
                reg_batch_size,
                data_lib.batch_size_of(data, batch_size),
                schedule,
            )
            if self._check_reg_batch(like, state.stream.first_batch):
                self._check_finite(*state.stream.not_finite())
                rows = extreme_labels(reg_data)
                alone = fixed is None and not self._seen.apart
                if rows is not None and alone:
                    self._check_values(data_lib.one_batch(rows))
                state.clear_logs(self._reg_metrics.results())
            if not self.rho_variables:
                state.end_stream()
        self._build_optimizers()
        self._hold_rho(state)
        return x, *data[1:]

    def _hold_rho(self, state: FitState) -> None:
        """Tells the optimizer of rho how much there is to learn from."""
        optimizer, stream = self._anchored_optimizer, state.stream
        if optimizer is not None and stream is not None:
            known = stream.num_examples
            optimizer.hold(
                self._rho_of_noise(self.rho_variables),
                min(1.0, stream.batch_size / known) if known else 0.0,
            )
            state.holder = optimizer

    def _rho_were_set(self, rho: list[keras.Variable]) -> None:
        if self._anchored_optimizer is not None:
            self._anchored_optimizer.start_again(rho)

    @property
    def _anchored_optimizer(self) -> AnchoredAdam | None:
        """That of rho, where it knows of starts; `None` before it is built."""
        optimizer = _keras.inner_optimizer(self.rho_optimizer)
        is_there = isinstance(optimizer, AnchoredAdam) and optimizer.built
        return optimizer if is_there else None

    def _make_schedule(self, epochs: Epochs) -> RhoSchedule:
        """When rho step, in these epochs."""
        reg_warmup = self._options.reg_warmup
        taken = _keras.count_steps(self.optimizer)
        if reg_warmup is None:
            reg_warmup = default_reg_warmup(
                _keras.all_layers(self), epochs.until(taken)
            )
        work = Work(
            self._options.num_samples,
            num_sets=2 if self._rho_with_gap(self._learning_rho()) else 1,
            steps=epochs.learning_until(taken, reg_warmup),
            all_steps=epochs.until(taken),
        )
        return RhoSchedule(self._options.reg_freq, reg_warmup, work)

    def _make_reg_stream(
        self,
        reg_data: Any,
        reg_batch_size: int | None,
        batch_size: int | None,
        schedule: RhoSchedule,
    ) -> RegularizationStream:
        """Regularization batches, of a size that leaves enough rho steps.

        `batch_size`: B, where it is known.
        """
        work = schedule.work
        if self._options.reg_freq is not None:
            # So many steps it shall be.
            work = dataclasses.replace(work, steps=None)
        wanted = reg_batch_size
        if wanted is None and batch_size is not None:
            wanted = max(work.reg_batch_size(batch_size), self._num_replicas)
        if wanted is not None:
            wanted = self._whole_batch(wanted)
        stream = self._make_stream(
            reg_data,
            wanted,
            position=_keras.count_steps(self.rho_optimizer),
        )
        if stream.comes_in_batches:
            if reg_batch_size is None:
                # Where B is not known, it is taken to be that of these batches.
                wanted = work.smaller_batch_size(
                    stream.batch_size, batch_size or stream.batch_size
                )
                wanted = wanted and self._whole_batch(wanted)
            if wanted is not None and self._num_replicas == 1:
                stream.split(wanted)
        schedule.has_enough = reg_batch_size is None and (
            wanted is not None and stream.batch_size <= wanted
        )
        return stream

    def _check_reg_batch(self, like: Any, batch: Any) -> list[keras.Variable]:
        """Whether a regularization batch fits the training data and the model.

        `like`: symbolic tensors like the training batch, or `None`. Returns
        the rho that will learn.
        """
        self._build_on(like)
        self._check_level_sets()
        learning = self._learning_rho()
        key = (
            [id(v) for v in learning],
            data_lib.describe(like),
            data_lib.describe(batch),
        )
        checked = self._checked
        if key != checked.key:
            checked.like = like
            batch = data_lib.with_ranks_of(like, batch)
            check_not_complex(self, like, batch)
            if like is not None:
                data_lib.check_batches_match(like, batch)
            if learning:
                self._check_fixed_batch(batch)
                x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
                self.look(x)
                self._check_rho_step(learning, batch)
                checked.key = key
            elif not self.rho_variables:
                warn_of_no_rho()
            elif not self._rho_frozen:
                warn_of_held_rho(self.rho_variables)
            self._build_optimizers()
        return learning

    def _report_reg_data(
        self, watch: RhoWatch, history: Any, data: Any, reg_data: Any
    ) -> None:
        """Warns of what is seen of a regularization set in the end."""
        if reg_data is None or not self._learning_rho():
            return
        warn_of_shared_batches(data, reg_data)
        if not _keras.call_losses(self):
            watch.report_targets(
                history.history,
                prior_loss(self.loss, reg_data),
                float(ops.convert_to_numpy(self._penalty())),
            )

    def _check_fixed_batch(self, batch: Any) -> None:
        fixed, rows = fixed_batch(self), data_lib.num_rows(batch)
        if fixed is not None and rows != fixed:
            raise ValueError(
                f"The model takes batches of {fixed} examples alone, by the "
                "shape of its inputs or of a recurrent state: give `reg_data` "
                "such batches (`reg_batch_size` for arrays, of which there "
                "must be as many). Received: a regularization batch of "
                f"{rows} examples"
            )

    def _check_level_sets(self) -> None:
        for level_set in self._level_sets:
            if self._num_replicas > 1:
                raise ValueError(
                    "Learned regularizers work on one device. Received: "
                    f"weight={level_set.weight.path} with "
                    f"regularizer={level_set.regularizer} under a strategy of "
                    f"{self._num_replicas} replicas"
                )
            level_set.check()

    def _build_on(self, batch: Any) -> None:
        """Creates the variables of a model that has not seen data yet."""
        if batch is not None and not self._is_built:
            x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
            with self._creation_scope():
                self._build_on_inputs(x)
        self._mark_rho()

    def _build_optimizers(self) -> None:
        """Builds each optimizer on its own variables.

        Keras does it for `optimizer` alone, in `fit` and on loading.
        """
        if not self.built:
            return
        with self._creation_scope():
            for optimizer, variables in (
                (self.optimizer, self.theta_variables),
                (self.rho_optimizer, self.rho_variables),
            ):
                if optimizer is not None and not optimizer.built:
                    optimizer.build(variables)
