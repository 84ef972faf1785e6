"""Predictions on JAX, which leave the arrays of the variables alone."""

from __future__ import annotations

from typing import Any

import jax
import keras

from keras_crossreg import _keras
from keras_crossreg.sampling.sampled_model import Sampler


class WholePredictions(keras.Model):
    """`evaluate` and `predict` that give no array of a variable away.

    Keras takes the values from the variables, and gives the arrays to the
    step that it compiles, which deletes them. What stops it then, or reads a
    variable meanwhile, as another thread does, finds nothing there. Nothing is
    won by it: theta come out of these steps as they went in.
    """

    def _purge_model_variables(self, **kwargs: Any) -> None:
        pass

    def _make_function(self, step_function: Any, **kwargs: Any) -> Any:
        # Keras makes every step by this function, from what it compiled.
        made = super()._make_function(self._prepared(step_function), **kwargs)

        def with_all_states(state: Any, iterator: Any) -> Any:
            if self._moves_states and len(state[1]) < len(
                self.non_trainable_variables
            ):
                # A look at the first batch has found states, or made some.
                state = _keras.read_state(self, len(state))
            return made(state, iterator)

        return with_all_states

    def _prepared(self, step_function: Any) -> Any:
        """A step of Keras, as `_make_function` takes it."""
        step = getattr(step_function, "__wrapped__", None)
        if step is None or keras.distribution.distribution() is not None:
            # It is not compiled, or for a mesh, of which Keras says the layout.
            return step_function
        return jax.jit(step)

    @property
    def _moves_states(self) -> bool:
        """Whether a pass in inference mode moves any variable."""
        return bool(self.moving_states)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """See `keras.Model.evaluate`."""
        with _keras.synced_in_the_end(self):
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """See `keras.Model.predict`."""
        with _keras.synced_in_the_end(self):
            return super().predict(*args, **kwargs)


class JaxSampler(WholePredictions, Sampler):
    """What `predict_samples` predicts with, on JAX."""

    @property
    def _moves_states(self) -> bool:
        return bool(self.of().moving_states)
