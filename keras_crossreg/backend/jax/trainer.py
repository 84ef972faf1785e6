"""Theta's step, rho's step, and their alternation, on JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import keras

from keras_crossreg import _keras
from keras_crossreg.backend.jax.compiled_step import CompiledStep
from keras_crossreg.backend.jax.predictions import JaxSampler
from keras_crossreg.backend.jax.predictions import WholePredictions
from keras_crossreg.backend.jax.state import HeldState
from keras_crossreg.backend.jax.stream import JaxStream
from keras_crossreg.primitives.jax import finding_unreached
from keras_crossreg.sampling.sampled_model import Sampler
from keras_crossreg.trainers.reg_stream import RegularizationStream
from keras_crossreg.trainers.trainer import CrossRegTrainer


class JaxTrainer(WholePredictions, CrossRegTrainer):
    """The training half of `CrossRegModel`, on JAX.

    Keras's own step of theta takes the state of the model, gives it away and
    returns the next one. Between two steps the variables hold it too, so that
    a step of rho, a callback or a caller that stops training finds them whole.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held = HeldState()

    def make_train_function(self, force: bool = False) -> None:
        """Theta at every training step; rho, at the new theta, every r."""
        if self.train_function is not None and not force:
            return
        held = self._held
        held.is_noting = True
        super().make_train_function(force)
        held.is_noting = False
        theta_step = self.train_function
        self._rho_function = self._compiled(self._rho_step_on)
        self._measure_function = self._compiled(self.measure_step)

        def alternate(state: Any, iterator: Any) -> tuple[dict[str, Any], Any]:
            with held.whole(self, state):
                self._begin_execution()
                logs, state = theta_step(
                    state, self._keep_train_batch(iterator)
                )
                held.write(state)
                for batch in self._due_reg_batches():
                    self._run_rho_step(batch)
                    state = None
                if state is None:
                    state = held.read()
            return self._with_reg_logs(logs), state

        self.train_function = alternate

    def _prepared(self, step_function: Any) -> Any:
        if self._held.is_noting:
            return self._held.noting(step_function)
        return super()._prepared(step_function)

    def _compiled(self, step: Callable[..., Any]) -> Callable[[Any], Any]:
        """A step on a tuple of batches, as Keras compiles its own."""
        if self.run_eagerly or not self.jit_compile:
            return lambda batches: step(*_keras.distribute_batch(batches))
        return CompiledStep(step, self._variables_of_steps)

    def _run_once(self, step: Callable[[Any], Any], batch: Any) -> Any:
        if keras.distribution.distribution() is not None:
            # So few examples cannot be shared out.
            return step(batch)
        # Operation by operation, each would be a program of its own.
        return self._compiled(step)((batch,))

    def _variables_of_steps(self) -> list[keras.Variable]:
        metrics = self._reg_metrics
        return [
            *self.variables,
            *self.metrics_variables,
            *self.moving_variables,
            *self.optimizer.variables,
            *self.rho_optimizer.variables,
            *(level_set.rho for level_set in self._level_sets),
            *metrics.loss.variables,
            *(metrics.metrics.variables if metrics.metrics else ()),
        ]

    def _make_training_call(self) -> Callable[[Any], None]:
        def call(batch: Any) -> dict[str, Any]:
            x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
            self(x, training=True)
            return {}

        step = self._compiled(call)

        def call_on(batch: Any) -> None:
            step((batch,))

        return call_on

    def take_new_schedule(self) -> None:
        # Of a step of theta, what is not in Keras's state is a constant.
        if self.train_function is not None:
            self.make_train_function(force=True)

    # ---- Data ----------------------------------------------------------------

    def _make_stream(
        self, reg_data: Any, batch_size: int | None, position: int
    ) -> RegularizationStream:
        return JaxStream(reg_data, batch_size, position)

    def _whole_batch(self, size: int) -> int:
        devices = _keras.devices_of_batches()
        return -(-size // devices) * devices

    # ---- State ---------------------------------------------------------------

    def stateless_call(
        self,
        trainable_variables: Any,
        non_trainable_variables: Any,
        *args: Any,
        return_losses: bool = False,
        **kwargs: Any,
    ) -> Any:
        """See `keras.Layer.stateless_call`.

        Keras's calls `call`, where a prediction is not an average yet.

        Raises:
            ValueError: If the call moves a variable that is not in the state,
                as the metrics of a layer are not: Keras would lose that.
        """
        variables = self.trainable_variables, self.non_trainable_variables
        values = trainable_variables, non_trainable_variables
        pairs = [
            pair
            for part in zip(variables, values, strict=True)
            for pair in zip(*part, strict=True)
        ]
        with _keras.NestedScope(pairs, collect_losses=return_losses) as scope:
            outputs = self(*args, **kwargs)
            losses = self.losses if return_losses else None
        known = {id(v) for part in variables for v in part}
        lost = [v.path for v in scope.updated if id(v) not in known]
        if lost:
            raise ValueError(
                "On JAX, Keras hands on the weights, the seeds and the states "
                "of a model from step to step, and no metric that a layer "
                "updates in `call`: update it in `compute_loss` or in "
                f"`compute_metrics`. Received: variables={lost}"
            )
        moved = [scope.get_current_value(v) for v in variables[1]]
        return (outputs, moved, losses) if return_losses else (outputs, moved)

    def jax_state_sync(self) -> None:
        """Makes the variables hold the newest state.

        Where they do, Keras would write that of the step before, if something
        is raised before it has taken the next one.
        """
        if self._held.is_newest:
            _keras.mark_synced(self)
        else:
            super().jax_state_sync()

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        self._held.is_newest = False
        return super().evaluate(*args, **kwargs)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        self._held.is_newest = False
        return super().test_on_batch(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        self._held.is_newest = False
        return super().predict(*args, **kwargs)

    def predict_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        self._held.is_newest = False
        return super().predict_on_batch(*args, **kwargs)

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        """Every variable that no optimizer of theta moves."""
        found: list[keras.Variable] = super().non_trainable_variables
        known = {id(v) for v in found}
        # What passes move is a state that every step is given.
        return [
            *found,
            *(v for v in self.moving_states if id(v) not in known),
            *self.states_of_samples,
        ]

    @property
    def _sampler_class(self) -> type[Sampler]:
        return JaxSampler

    # ---- Traces --------------------------------------------------------------

    def _reached(
        self, gradients: Callable[[Any], list[Any]], batch: Any
    ) -> list[bool]:
        found: list[Any] = []

        def trace(batch: Any) -> int:
            nonlocal found
            with (
                _keras.NestedScope(collect_losses=True),
                finding_unreached(),
            ):
                found = gradients(batch)
            return 0

        if self.run_eagerly:
            trace(batch)
        else:
            jax.eval_shape(trace, batch)
        return [gradient is not None for gradient in found]
