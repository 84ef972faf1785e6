"""Theta's step, rho's step, and their alternation, on TensorFlow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from keras_crossreg import _keras
from keras_crossreg.backend.tensorflow.replicas import first_replica
from keras_crossreg.backend.tensorflow.replicas import for_a_cluster
from keras_crossreg.backend.tensorflow.stream import TensorFlowStream
from keras_crossreg.backend.tensorflow.stream import merge_datasets
from keras_crossreg.trainers.reg_stream import RegularizationStream
from keras_crossreg.trainers.trainer import CrossRegTrainer


class TensorFlowTrainer(CrossRegTrainer):
    """The training half of `CrossRegModel`, on TensorFlow."""

    def make_train_function(self, force: bool = False) -> None:
        """Theta at every training step; rho, at the new theta, every r."""
        if self.train_function is not None and not force:
            return
        # Each step is compiled as Keras compiles its own, with its strategy.
        super().make_train_function(force)
        theta_step = self.train_function
        rho_step = _keras.make_step_function(
            self, lambda batches: self._rho_step_on(*batches)
        )
        measure_step = _keras.make_step_function(
            self, lambda batches: self.measure_step(*batches)
        )
        self._rho_function = lambda batches: rho_step(iter([batches]))
        self._measure_function = lambda batches: measure_step(iter([batches]))

        def alternate(iterator: Any) -> dict[str, Any]:
            self._begin_execution()
            logs = theta_step(self._keep_train_batch(iterator))
            for batch in self._due_reg_batches():
                self._run_rho_step(batch)
            return self._with_reg_logs(logs)

        self.train_function = alternate

    def _make_training_call(self) -> Callable[[Any], None]:
        def call(batches: Any) -> dict[str, Any]:
            x, _, _ = keras.utils.unpack_x_y_sample_weight(batches[0])
            self(x, training=True)
            return {}

        step = _keras.make_step_function(self, call)

        def call_on(batch: Any) -> None:
            step(iter([(batch,)]))

        return call_on

    # ---- Data ----------------------------------------------------------------

    def _make_stream(
        self, reg_data: Any, batch_size: int | None, position: int
    ) -> RegularizationStream:
        return TensorFlowStream(
            reg_data, batch_size, position, self.distribute_strategy
        )

    def _merge_datasets(self, x: Any, reg_x: Any) -> Any:
        return merge_datasets(x, reg_x)

    # ---- Strategies ----------------------------------------------------------

    @property
    def _num_replicas(self) -> int:
        return int(self.distribute_strategy.num_replicas_in_sync)

    def _creation_scope(self) -> contextlib.AbstractContextManager[Any]:
        scope: contextlib.AbstractContextManager[Any]
        scope = self.distribute_strategy.scope()
        return scope

    def _make_function(self, step_function: Callable[[Any], Any]) -> Any:
        # Keras makes both steps, and that of `evaluate`, by this function.
        step = for_a_cluster(self.distribute_strategy, step_function)
        return super()._make_function(step)

    def _part_of_one_replica(self, batch: Any) -> Any:
        return first_replica(self.distribute_strategy, batch)

    # ---- Traces --------------------------------------------------------------

    def _reached(
        self, gradients: Callable[[Any], list[Any]], batch: Any
    ) -> list[bool]:
        found: list[Any] = []

        def trace(batch: Any) -> None:
            nonlocal found
            found = gradients(batch)

        try:
            if self.run_eagerly:
                trace(batch)
            else:
                # Keras, too, compiles steps without AutoGraph.
                tf.function(trace, autograph=False).get_concrete_function(batch)
        except tf.errors.OpError as error:
            raise ValueError(str(error)) from error
        return [gradient is not None for gradient in found]

    def _build_on_inputs(self, x: Any) -> None:
        if not any(v is not None and v.ragged for v in tree.flatten(x)):
            self(x)
        else:
            # Keras makes a symbolic ragged tensor a dense one.
            tf.function(self).get_concrete_function(
                tree.map_structure(_type_spec, x)
            )

    def _maybe_symbolic_build(
        self, iterator: Any = None, data_batch: Any = None
    ) -> None:
        strategy = self.distribute_strategy
        if iterator is not None and self._num_replicas > 1:
            # Keras averages a batch over the replicas to see its shapes, which
            # fails for those of a cluster, and where a replica has no example.
            # And `fit` would miss the batch that this takes from a generator.
            if self._fit_state is not None:
                data_batch = self._fit_state.train_like
            if data_batch is None:
                _, _, batches = next(iter(iterator))
                data_batch = first_replica(strategy, next(batches))
            iterator = None
        super()._maybe_symbolic_build(iterator, data_batch)
        self._mark_rho()


def _type_spec(tensor: keras.KerasTensor) -> Any:
    if tensor.ragged:
        return tf.RaggedTensorSpec(
            tensor.shape, tensor.dtype, tensor.ragged_rank
        )
    return tf.TensorSpec(tensor.shape, tensor.dtype)
