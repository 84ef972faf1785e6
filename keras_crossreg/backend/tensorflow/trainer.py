"""The alternation of the two steps, on TensorFlow."""

from __future__ import annotations

import itertools
import warnings

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_crossreg import _keras
from keras_crossreg import level_sets
from keras_crossreg import regularization_data as data_lib
from keras_crossreg.averaging import in_each_pass
from keras_crossreg.averaging import join
from keras_crossreg.backend.tensorflow.hypergradient import SecondOrderError
from keras_crossreg.backend.tensorflow.hypergradient import correction
from keras_crossreg.backend.tensorflow.merge import OneRun
from keras_crossreg.backend.tensorflow.merge import merge
from keras_crossreg.backend.tensorflow.merge import num_batches
from keras_crossreg.backend.tensorflow.passes import gradient_in_passes
from keras_crossreg.backend.tensorflow.replicas import first_replica
from keras_crossreg.backend.tensorflow.replicas import for_a_cluster
from keras_crossreg.backend.tensorflow.stream import RegularizationStream
from keras_crossreg.guards import RhoWatch
from keras_crossreg.guards import warn_of_curvature
from keras_crossreg.guards import warn_of_nan_monitors
from keras_crossreg.guards import warn_of_no_rho_step
from keras_crossreg.guards import warn_of_reg_data
from keras_crossreg.warmup import default_reg_warmup

# In the logs of a rho step, for `_run_rho_step` alone.
IS_POSITIVE = "is_positive"


class TensorFlowTrainer:
    """The training half of `CrossRegModel`, mixed in before `keras.Model`."""

    # ---- The two steps, and their alternation --------------------------------

    def train_step(self, data):
        """`theta <- theta - a dL_train(theta, rho) / dtheta`.

        Keras's own step, with one sample of the noise: rho are not among the
        `trainable_variables` that it moves. Weights whose complexity is rho
        stay in its level set.
        """
        with level_sets.within(self._level_sets, self.optimizer):
            return super().train_step(data)

    def rho_step(self, data, train_data=None):
        """`rho <- rho - b dL_reg(theta, rho) / drho`, at the new theta."""
        data = data_lib.with_ranks_of(self._reg.like, data)
        loss, y_pred, gradients, is_positive = self._rho_gradients(
            data, train_data
        )
        learning = self._learning_level_sets()
        for level_set in learning:
            level_set.read()
        self.rho_optimizer.apply(gradients, self._learning_rho())
        for level_set in learning:
            level_set.write()
        logs = self._update_reg_metrics(data, loss, y_pred)
        if self._hypergradient is not None:
            logs[IS_POSITIVE] = is_positive
        return logs

    def _rho_gradients(self, data, train_data):
        """L_reg of the average of K sampled predictions, and dL_reg / drho.

        With a `hypergradient` of second order, also what theta's answer to
        rho adds, from the curvature of L_train on `train_data`.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        learning = self._learning_rho()
        rho = [v.value for v in learning]
        theta = []
        if self._hypergradient is not None:
            theta = [v.value for v in self.theta_variables]
        crossing = self._learning_level_sets()
        weights = [level_set.weight.value for level_set in crossing]
        # One does where all are the same.
        num_samples = self._reg.num_samples if self._stochastic else 1
        # Of no gradient yet; empty where one pass does.
        parts = self._samples_for_passes(x, num_samples)
        # Only rho are watched, and theta where they shall answer.
        watched = [rho, theta, weights]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([watched, parts])
            samples = parts or [self._sample(x, num_samples)]
            y_pred = self._average(join(samples, num_samples))
            loss = _keras.compute_loss(self, x, y, y_pred, sample_weight)
            # Theta's answer is to the loss of held-out examples alone.
            scaled_loss = self.rho_optimizer.scale_loss(loss - self._penalty())
        in_each = in_each_pass(num_samples, self._reg.samples_per_pass)
        found, upstream = tape.gradient(scaled_loss, [watched, parts])
        gradients, answers, across = gradient_in_passes(
            lambda x: self._sample(x, in_each), x, upstream, watched, found
        )
        # What weights with a learned regularizer leave to rho.
        g_rho = {
            id(level_set.rho): level_set.rho_gradient(g)
            for level_set, g in zip(crossing, across, strict=True)
            if g is not None
        }
        gradients = [
            g_rho.get(id(v), g)
            for v, g in zip(learning, gradients, strict=True)
        ]
        is_positive = True
        if theta:
            added, is_positive = correction(self, train_data, learning, answers)
            gradients = [
                g if g is None else g + a
                for g, a in zip(gradients, added, strict=True)
            ]
        return loss, y_pred, gradients, is_positive

    def _samples_for_passes(self, x, num_samples):
        """Samples in several passes, whose noise the next passes repeat.

        None where one pass does: for few samples, and where `call` adds a
        loss of its own, which is of a single pass.
        """
        most = self._reg.samples_per_pass
        if num_samples <= most:
            return []
        with self._kept_seeds():
            parts = self._sample_in_passes(x, num_samples, most)
        return [] if _keras.call_losses(self) else parts

    def _penalty(self):
        """What the regularizers of theta add to the loss of any examples."""
        return sum(
            tf.cast(v.regularizer(v), "float32")
            for v in self.theta_variables
            if v.regularizer is not None
        )

    def _learning_level_sets(self):
        learning = {id(v) for v in self._learning_rho()}
        return [s for s in self._level_sets.values() if id(s.rho) in learning]

    def make_train_function(self, force=False):
        """Theta at every training step; rho, at the new theta, every r."""
        if self.train_function is not None and not force:
            return
        super().make_train_function(force)
        reg, theta_function = self._reg, self.train_function
        reg.rho_function = _keras.make_step_function(
            self, lambda batches: self.rho_step(*batches)
        )

        def alternate(iterator):
            reg.show_metrics = False
            if reg.steps_are_stale:
                # In every epoch, as a run does that goes on from there:
                # loss scaling leaves steps out. And not before the first: a
                # callback may have restored the optimizers.
                reg.steps = _keras.count_steps(self.optimizer)
                if reg.stream is not None:
                    reg.stream.seek(_keras.count_steps(self.rho_optimizer))
                reg.steps_are_stale = False
            if self._hypergradient is not None:
                batches = list(
                    itertools.islice(iterator, self.steps_per_execution)
                )
                if not batches:
                    raise StopIteration
                iterator, reg.train_batch = iter(batches), batches[-1]
            logs = theta_function(iterator)
            for _ in range(self._count_rho_steps()):
                self._run_rho_step(next(reg.stream))
            reg.show_metrics = bool(reg.logs)
            return {**logs, **reg.logs}

        self.train_function = alternate

    def _make_function(self, step_function):
        # Keras's, of both steps and of `evaluate`.
        step = for_a_cluster(self.distribute_strategy, step_function)
        return super()._make_function(step)

    def _count_rho_steps(self):
        """Multiples of r, after the warm-up, among the steps just taken."""
        reg = self._reg
        before = reg.steps
        if self.steps_per_execution == 1:
            reg.steps += 1
        else:
            # The last execution of an epoch may be shorter: ask.
            reg.steps = _keras.count_steps(self.optimizer)
        if reg.stream is None:
            return 0
        if reg.reg_freq is None:
            size = _keras.count_examples(self) / max(1, reg.steps - before)
            reg.reg_freq = data_lib.default_reg_freq(
                reg.num_samples, reg.stream.batch_size, size
            )
        if self._rho_frozen:
            return 0

        def rho_steps(steps):
            return max(0, steps - reg.reg_warmup) // reg.reg_freq

        return rho_steps(reg.steps) - rho_steps(before)

    def _run_rho_step(self, batch):
        reg = self._reg
        if reg.metrics_are_stale:
            reg.reset_metrics()
        batches = (batch,)
        if self._hypergradient is not None:
            batches += (reg.train_batch,)
        reg.logs = reg.rho_function(iter([batches]))
        if self._hypergradient is not None:
            reg.rho_steps += 1
            if not reg.logs.pop(IS_POSITIVE):
                reg.bad_curvature.append(_keras.count_steps(self.optimizer))
        reg.has_results = True

    def _update_reg_metrics(self, data, loss, y_pred):
        _, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        reg = self._reg
        reg.loss.update_state(
            _keras.unscale_loss_for_distribution(loss),
            sample_weight=tf.shape(tree.flatten(y_pred)[0])[0],
        )
        if reg.metrics is not None:
            reg.metrics.update_state(y, y_pred, sample_weight)
        return reg.results()

    # ---- Training ------------------------------------------------------------

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        class_weight=None,
        sample_weight=None,
        initial_epoch=0,
        steps_per_epoch=None,
        validation_steps=None,
        validation_batch_size=None,
        validation_freq=1,
        *,
        reg_data=None,
        reg_split=0.0,
        reg_batch_size=None,
        merge_epochs=0,
    ):
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
                most the regularization set. Defaults to an eighth of
                `batch_size`, and one for each replica at least. Not for data
                that come in batches.
            merge_epochs: Integer. The last of the `epochs` that train theta
                on training and regularization data together, with rho
                frozen, so that no example is lost to regularization. A run
                that a callback stops before has none. Defaults to `0`.

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

        def keras_fit(data, callbacks, initial_epoch, epochs):
            return super(TensorFlowTrainer, self).fit(
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

        steps = steps_per_epoch or num_batches(data, batch_size)
        try:
            if self.compiled:
                data = self._prepare(data, reg_data, batch_size, reg_batch_size)
                self._prepare_warmup(steps, epochs - initial_epoch)
                learning = self._learning_rho()
                watch = RhoWatch(learning, self.rho_optimizer)
                if learning and reg_data is not None:
                    warn_of_reg_data(data, reg_data, validation_data, learning)
            if merge_epochs:
                merged = merge(data, reg_data)
                callbacks = OneRun(
                    callbacks,
                    self,
                    verbose=verbose,
                    epochs=epochs,
                    steps=steps,
                )
            switch = epochs - merge_epochs
            history = keras_fit(data, callbacks, initial_epoch, switch)
            reg = self._reg
            if reg.stream and self._learning_rho():
                if _keras.count_steps(self.rho_optimizer):
                    # Where it averages, as Keras ends the learning of theta.
                    self.rho_optimizer.finalize_variable_values(
                        self.rho_variables
                    )
                    for level_set in self._learning_level_sets():
                        level_set.write()
                    watch.report(history.history)
                elif reg.steps:
                    # In no earlier `fit` either.
                    warn_of_no_rho_step(reg.steps, reg.reg_freq, reg.reg_warmup)
            if merge_epochs and not self.stop_training:
                self._end_stream()
                if reg.logs:
                    reg.clear_results()
                callbacks.next_phase(
                    steps_per_epoch or num_batches(merged, batch_size)
                )
                first = max(switch, initial_epoch, self._initial_epoch or 0)
                self._initial_epoch = None
                history = keras_fit(merged, callbacks, first, epochs)
            warn_of_nan_monitors(callbacks)
            return history
        finally:
            self._finish()

    def _prepare_warmup(self, steps, epochs):
        """With `steps` an epoch, or `None`."""
        reg = self._reg
        reg.reg_warmup = reg.settings["reg_warmup"]
        if reg.reg_warmup is None:
            total = _keras.count_steps(self.optimizer) + epochs * (steps or 0)
            reg.reg_warmup = default_reg_warmup(
                _keras.all_layers(self), total if steps else None
            )

    def _prepare(self, data, reg_data, batch_size, reg_batch_size):
        """Checks everything that can be checked before a weight moves."""
        size = data_lib.batch_size_of(data, batch_size)
        reg = self._reg
        like, x = None, data[0]
        replicas = self.distribute_strategy.num_replicas_in_sync
        if reg_data is not None or not self._is_built or replicas > 1:
            like, x = data_lib.peek(*data)
        reg.train_like = like
        reg.reg_freq = reg.settings["reg_freq"]
        if reg_data is None:
            self._build_on(like)
            self._check_level_sets()
            data_lib.check_reg_data_is_there(self._learning_rho(), reg_data)
        else:
            if reg_batch_size is None and size is not None:
                reg_batch_size = max(size // 8, replicas)
            stream = RegularizationStream(
                reg_data,
                reg_batch_size,
                self.distribute_strategy,
                position=_keras.count_steps(self.rho_optimizer),
            )
            if self._check_reg_batch(like, stream.first_batch):
                self._check_finite(*stream.not_finite())
                reg.clear_results()
            if self.rho_variables:
                reg.stream = stream
        self._build_optimizers()
        reg.steps, reg.steps_are_stale = None, True
        return x, *data[1:]

    def _check_reg_batch(self, like, batch):
        """Whether a regularization batch fits the training data and the model.

        `like`: symbolic tensors like the training batch, or `None`. Returns
        the rho that will learn.
        """
        reg = self._reg
        self._build_on(like)
        self._check_level_sets()
        learning = self._learning_rho()
        checked = (
            [id(v) for v in learning],
            data_lib.describe(like),
            data_lib.describe(batch),
        )
        if checked != reg.checked:
            reg.like = like
            batch = data_lib.with_ranks_of(like, batch)
            if like is not None:
                data_lib.check_batches_match(like, batch)
            if learning:
                self._check_rho_step(learning, batch)
                reg.checked = checked
            elif not self.rho_variables:
                warnings.warn(
                    "The model has no rho: `reg_data` is not used.",
                    stacklevel=4,
                )
            self._build_optimizers()
        return learning

    def _check_level_sets(self):
        replicas = self.distribute_strategy.num_replicas_in_sync
        for level_set in self._level_sets.values():
            if replicas > 1:
                raise ValueError(
                    "Learned regularizers work on one device. Received: "
                    f"weight={level_set.weight.path} with "
                    f"regularizer={level_set.regularizer} under a strategy of "
                    f"{replicas} replicas"
                )
            level_set.check()

    def _finish(self):
        """Ends the learning of rho in this call of `fit`."""
        reg = self._reg
        if reg.bad_curvature:
            warn_of_curvature(
                len(reg.bad_curvature), reg.rho_steps, reg.bad_curvature[-1]
            )
        reg.rho_steps, reg.bad_curvature = 0, []
        self._end_stream()
        reg.train_batch = reg.train_like = None
        reg.logs = {}
        reg.show_metrics = False

    def _end_stream(self):
        if self._reg.stream is not None:
            self._reg.stream.close()
        self._reg.stream = None

    @property
    def _is_built(self):
        return self.built and all(
            layer.built for layer in _keras.all_layers(self)
        )

    def _build_on(self, batch):
        """Creates the variables of a model that has not seen data yet."""
        if batch is not None and not self._is_built:
            x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
            with self.distribute_strategy.scope():
                if not any(v is not None and v.ragged for v in tree.flatten(x)):
                    self(x)
                else:
                    # Keras makes a symbolic ragged tensor a dense one.
                    tf.function(self).get_concrete_function(
                        tree.map_structure(_type_spec, x)
                    )
        self._mark_rho()

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        strategy = self.distribute_strategy
        if iterator is not None and strategy.num_replicas_in_sync > 1:
            # Keras averages a batch over the replicas to see its shapes, which
            # fails for those of a cluster, and where a replica has no example.
            # And `fit` would miss what that batch takes from a generator.
            data_batch = self._reg.train_like
            if data_batch is None:
                _, _, batches = next(iter(iterator))
                data_batch = first_replica(strategy, next(batches))
            iterator = None
        super()._maybe_symbolic_build(iterator, data_batch)
        self._mark_rho()

    def _build_optimizers(self):
        """Builds each optimizer on its own variables.

        Keras does it for `optimizer` alone, in `fit` and on loading.
        """
        if not self.built:
            return
        with self.distribute_strategy.scope():
            for optimizer, variables in (
                (self.optimizer, self.theta_variables),
                (self.rho_optimizer, self.rho_variables),
            ):
                if optimizer is not None and not optimizer.built:
                    optimizer.build(variables)

    def _check_rho_step(self, rho, batch):
        """Traces the gradient of rho, without moving anything."""
        y_pred = None
        gradients = []

        def trace(data):
            nonlocal y_pred, gradients
            # A training batch has the same structure.
            _, y_pred, gradients, _ = self._rho_gradients(data, data)

        try:
            with self._kept_seeds():
                if self.run_eagerly:
                    trace(batch)
                else:
                    tf.function(trace).get_concrete_function(batch)
            metrics = self._reg.metrics
            if metrics is not None and not metrics.built:
                _, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
                with self.distribute_strategy.scope():
                    _keras.build_metrics(
                        metrics, *map(data_lib.symbolic, (y, y_pred, weight))
                    )
        except SecondOrderError:
            raise
        except (ValueError, TypeError, KeyError, tf.errors.OpError) as error:
            if self._reg.like is not None:
                # Says more, where it is the sizes.
                data_lib.check_batches_match(self._reg.like, batch, sizes=True)
            raise ValueError(
                "The regularization pass failed: `reg_data` must hold inputs "
                "and targets that fit the model and its loss. The error was: "
                f"{error}\nReceived: reg_data={data_lib.describe(batch)}"
            ) from error
        lost = [
            v.path
            for v, gradient in zip(rho, gradients, strict=True)
            if gradient is None
        ]
        if lost:
            raise ValueError(
                "No gradient of the regularization loss reaches these rho: "
                "they do not take part in a sampling pass (`call(..., "
                "sampling=True)`), or a gradient is stopped on the way. "
                f"Received: rho={lost}"
            )

    def _check_finite(self, rows, batch):
        """Refuses examples that would make rho not a number, for good.

        `batch`: the examples of arrays that hold a NaN or an infinity, and
        `rows` their numbers. A model or a loss may know how to mask them.
        """
        if not rows:
            return
        batch = data_lib.with_ranks_of(self._reg.like, batch)
        with self._kept_seeds():
            loss, _, gradients, _ = self._rho_gradients(batch, batch)
        if not all(np.isfinite(v).all() for v in (loss, *gradients)):
            raise ValueError(
                "There are NaN or infinities in `reg_data`, and they make the "
                "regularization loss one too. Leave such examples out, or "
                "mask them in the model and in the loss. "
                f"Received: rows of reg_data={rows}"
            )

    def train_on_batch(
        self,
        x,
        y=None,
        sample_weight=None,
        class_weight=None,
        return_dict=False,
        *,
        reg_data=None,
    ):
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
        learning = []
        if reg_data is not None and self.compiled:
            batch = data_lib.one_batch(reg_data)
            like = data_lib.symbolic((x, y, sample_weight))
            learning = self._check_reg_batch(like, batch)
        logs = super().train_on_batch(
            x,
            y,
            sample_weight=sample_weight,
            class_weight=class_weight,
            return_dict=return_dict,
        )
        if learning:
            self._reg.metrics_are_stale = True
            self._run_rho_step(batch)
            if return_dict:
                for name, value in self._reg.logs.items():
                    logs[name] = float(value)
            self._finish()
        return logs

    # ---- Predictions, averaged over the noise --------------------------------

    def test_step(self, data):
        """Keras's own step, on the average of sampled predictions."""
        with self._averaged_calls():
            return super().test_step(data)

    def predict_step(self, data):
        """Keras's own step, on the average of sampled predictions."""
        with self._averaged_calls():
            return super().predict_step(data)

    def evaluate(self, *args, **kwargs):
        # What `evaluate` reports is of the data that it was given.
        self._reg.show_metrics = False
        return super().evaluate(*args, **kwargs)

    def reset_metrics(self):
        super().reset_metrics()
        # Kept until the next rho step: r may be longer than an epoch.
        self._reg.metrics_are_stale = True
        self._reg.steps_are_stale = True

    def get_metrics_result(self):
        results = super().get_metrics_result()
        reg = self._reg
        if reg.show_metrics:
            results.update(reg.results() if reg.has_results else reg.logs)
        return results


def _type_spec(tensor):
    """Of a symbolic tensor."""
    if tensor.ragged:
        return tf.RaggedTensorSpec(
            tensor.shape, tensor.dtype, tensor.ragged_rank
        )
    return tf.TensorSpec(tensor.shape, tensor.dtype)
