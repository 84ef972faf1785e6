"""`fit` and `train_on_batch` of theta and rho."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_crossreg import _keras
from keras_crossreg.checks import check_integer
from keras_crossreg.trainers import batch_statistics
from keras_crossreg.trainers import reg_data as data_lib
from keras_crossreg.trainers.data_checks import check_not_complex
from keras_crossreg.trainers.finish import Finish
from keras_crossreg.trainers.fit_state import FitState
from keras_crossreg.trainers.fit_warnings import RhoWatch
from keras_crossreg.trainers.fit_warnings import warn_of_few_rho_steps
from keras_crossreg.trainers.fit_warnings import warn_of_no_rho_step
from keras_crossreg.trainers.fit_warnings import warn_of_reg_data
from keras_crossreg.trainers.merge import OneRun
from keras_crossreg.trainers.merge import merge
from keras_crossreg.trainers.preparation import Preparation
from keras_crossreg.trainers.progress import announce
from keras_crossreg.trainers.progress import count_of
from keras_crossreg.trainers.progress import with_bar
from keras_crossreg.trainers.rho_schedule import Epochs


class CrossRegTrainer(Preparation):
    """Keras's `fit`, with a regularization set.

    A backend says how steps are compiled and batches are made, in a subclass.
    """

    # ---- What a backend says -------------------------------------------------

    def _merge_datasets(self, x: Any, reg_x: Any) -> Any:
        """Two datasets of the backend as one; `None` for other data."""
        return None

    def _make_training_call(self) -> Callable[[Any], None]:
        """What calls the model on a batch, in training mode, and no more."""
        raise NotImplementedError

    def take_new_schedule(self) -> None:
        """The schedule of the learning rate has new variables to read.

        Compiled steps do, on most backends.
        """

    # ---- Training ------------------------------------------------------------

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Any = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int = 1,
        *,
        reg_data: Any = None,
        reg_split: float = 0.0,
        reg_batch_size: int | None = None,
        merge_epochs: int = 0,
    ) -> Any:
        """Trains theta on `x`, `y` and rho on `reg_data`.

        Args:
            x: Training data. This and every argument up to `validation_freq`
                as in `keras.Model.fit`.
            y: See `keras.Model.fit`.
            batch_size: See `keras.Model.fit`.
            epochs: See `keras.Model.fit`.
            verbose: See `keras.Model.fit`.
            callbacks: See `keras.Model.fit`.
            validation_split: See `keras.Model.fit`.
            validation_data: See `keras.Model.fit`.
            shuffle: See `keras.Model.fit`.
            class_weight: See `keras.Model.fit`. For the training batches; the
                regularization loss is weighted by sample weights alone.
            sample_weight: See `keras.Model.fit`.
            initial_epoch: See `keras.Model.fit`.
            steps_per_epoch: See `keras.Model.fit`.
            validation_steps: See `keras.Model.fit`.
            validation_batch_size: See `keras.Model.fit`.
            validation_freq: See `keras.Model.fit`.
            reg_data: The regularization set: held-out examples whose
                gradient moves rho. Not the validation set and not the test
                set: it is consumed by training. Every form that `x` takes, or
                a tuple `(x, y)` or `(x, y, sample_weight)` of arrays.
            reg_split: Float in (0, 1). The part of the training data, at its
                end and before it is shuffled, to use as regularization set,
                as `validation_split` does. With both, the validation part is
                cut first, and this is a part of what is left. For arrays.
            reg_batch_size: Integer. Examples in a regularization batch, at
                most the regularization set; larger ones of a dataset or a
                generator are split up. Defaults to an eighth of `batch_size`,
                and one for each replica at least; of data in batches, to
                these. Where `fit` knows that there would be fewer than 50 rho
                steps, and `reg_freq` is not given either, batches are smaller
                and rho step more often, at the same added work; in runs of a
                few dozen steps, at more.
            merge_epochs: Integer. The last of the `epochs`, which finish:
                they train theta on training and regularization data together,
                with rho frozen, so that no example is lost to regularization.
                Theta start them half way back to what they were when `fit` was
                called; kernels that batch normalization frees of their scale
                are halved, with a tenth of their first draw. Moving averages
                are measured anew, and the optimizer begins again, its learning
                rate too: a schedule runs through these epochs as it would
                have through all `epochs`. A run that a callback stops before
                has none. Where all epochs are such, nothing goes back.
                Defaults to `0`; half of the epochs are a good choice.

        Returns:
            A `keras.callbacks.History`. Next to `loss` it has `reg_loss`, and
            each compiled metric on the regularization batches under
            `reg_<name>`.

        Raises:
            ValueError: Before the first step, if the model has rho to learn
                and neither `reg_data` nor `reg_split` is given; if the
                regularization set is empty or does not fit the model; if an
                argument is out of range; if no gradient of the regularization
                loss reaches a rho.
        """
        for name, value in (
            ("batch_size", batch_size),
            ("steps_per_epoch", steps_per_epoch),
            ("initial_epoch", initial_epoch),
        ):
            if value is not None:
                check_integer(name, value, 0)
        data_lib.check_fit_arguments(
            reg_data, reg_split, reg_batch_size, merge_epochs, epochs
        )
        data = (x, y, sample_weight)
        if (
            validation_data is None
            and validation_split
            and (reg_split or merge_epochs)
        ):
            data, validation_data = data_lib.split(
                data, "validation_split", validation_split
            )
            validation_split = 0.0
        if reg_split:
            data, reg_data = data_lib.split(data, "reg_split", reg_split)

        def keras_fit(
            data: Any, callbacks: Any, initial_epoch: int, epochs: int
        ) -> Any:
            return super(CrossRegTrainer, self).fit(
                x=data[0],
                y=data[1],
                batch_size=batch_size,
                epochs=epochs,
                verbose=verbose,
                callbacks=callbacks,
                validation_split=validation_split,
                validation_data=validation_data,
                shuffle=shuffle,
                class_weight=class_weight,
                sample_weight=data[2],
                initial_epoch=initial_epoch,
                steps_per_epoch=steps_per_epoch,
                validation_steps=validation_steps,
                validation_batch_size=validation_batch_size,
                validation_freq=validation_freq,
            )

        steps = steps_per_epoch or data_lib.num_batches(data, batch_size)
        switch = epochs - merge_epochs
        # Of what Keras splits, the number of batches is not known here.
        known = None if validation_split else steps
        with self._keeping(FitState(steps_of_epoch=known)) as state:
            watch = None
            if self.compiled:
                data = self._prepare(
                    state,
                    data,
                    reg_data,
                    batch_size,
                    reg_batch_size,
                    Epochs(
                        epochs - initial_epoch, switch - initial_epoch, steps
                    ),
                )
                learning = self._learning_rho()
                watch = RhoWatch(learning, self.rho_optimizer)
                if learning and reg_data is not None:
                    warn_of_reg_data(data, reg_data, validation_data, learning)
            if state.stream is not None:
                callbacks = with_bar(callbacks, verbose, state)
            if merge_epochs:
                merged = merge(data, reg_data, self._merge_datasets)
                assert steps is not None
                state.finish = finish = Finish(self, switch, epochs, steps)
                callbacks = OneRun(
                    callbacks,
                    self,
                    verbose=verbose,
                    epochs=epochs,
                    steps=steps,
                )
            history = keras_fit(data, callbacks, initial_epoch, switch)
            if watch is not None:
                self._end_learning(state, watch, history)
                self._report_reg_data(watch, history, data, reg_data)
            if merge_epochs and not self.stop_training:
                state.end_stream()
                if state.logs:
                    state.clear_logs(self._reg_metrics.results())
                first = max(
                    switch, initial_epoch, _keras.take_initial_epoch(self)
                )
                steps = steps_per_epoch or data_lib.num_batches(
                    merged, batch_size
                )
                assert steps is not None
                before_steps = None
                if finish.begin(first, steps):
                    before_steps = functools.partial(
                        self.measure_moving_averages, merged, batch_size
                    )
                callbacks.next_phase(steps, before_steps)
                announce(
                    verbose,
                    f"Finishing: {count_of(epochs - first)} on training and "
                    "regularization data together, with rho frozen.",
                )
                history = keras_fit(merged, callbacks, first, epochs)
            return history

    def measure_moving_averages(
        self, data: Any, batch_size: int | None = None
    ) -> None:
        """Measures those of batch normalization, where theta were moved.

        `data`: as a tuple `(x, y, sample_weight)`, to take batches from.
        """
        size = data_lib.batch_size_of(data, batch_size)
        stream = self._make_stream(data, size, position=0)
        count = batch_statistics.NUM_BATCHES
        batches = (self._ranked(next(stream)) for _ in range(count))
        batch_statistics.measure(self, self._make_training_call(), batches)
        stream.close()

    def _end_learning(
        self, state: FitState, watch: RhoWatch, history: Any
    ) -> None:
        """Ends the learning of rho as Keras ends that of theta."""
        if state.stream is None or not self._learning_rho():
            return
        assert state.schedule is not None
        rho_steps = _keras.count_steps(self.rho_optimizer)
        if rho_steps:
            # This puts averages in place, where the optimizer keeps some.
            self.rho_optimizer.finalize_variable_values(self.rho_variables)
            for variable in self.rho_variables:
                # On JAX the average would be the same array, which a step of
                # theta gives away.
                variable.assign(ops.copy(variable.value))
            for level_set in self._learning_level_sets():
                level_set.write()
            watch.report(history.history)
            warn_of_few_rho_steps(
                rho_steps, state.schedule, state.stream.batch_size
            )
        elif state.schedule.steps:
            # Rho took no step in an earlier `fit` either.
            warn_of_no_rho_step(state.schedule)

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Any = None,
        return_dict: bool = False,
        *,
        reg_data: Any = None,
    ) -> Any:
        """One theta step on a batch, then one rho step on `reg_data`, if any.

        Args:
            x: As in `keras.Model.train_on_batch`, and every argument up to
                `return_dict`.
            y: See `keras.Model.train_on_batch`.
            sample_weight: See `keras.Model.train_on_batch`.
            class_weight: See `keras.Model.train_on_batch`.
            return_dict: See `keras.Model.train_on_batch`.
            reg_data: A regularization batch `(x, y)` or
                `(x, y, sample_weight)`. `reg_freq` does not apply: pass it
                whenever rho shall move. Without it, only theta moves.

        Returns:
            As `keras.Model.train_on_batch`; with `reg_data` and
            `return_dict=True` also `reg_loss` and the regularization metrics.
        """
        batch, learning = None, []
        if reg_data is not None and self.compiled:
            batch = data_lib.one_batch(reg_data)
            like = data_lib.symbolic((x, y, sample_weight))
            learning = self._check_reg_batch(like, batch)
            check_not_complex(self, like, reg_data)
            if learning:
                self._check_values(batch)
        with self._keeping(FitState()) as state:
            logs = super().train_on_batch(
                x,
                y,
                sample_weight=sample_weight,
                class_weight=class_weight,
                return_dict=return_dict,
            )
            if learning:
                self._run_rho_step(batch)
                if return_dict:
                    for name, value in state.logs.items():
                        logs[name] = float(value)
        return logs
