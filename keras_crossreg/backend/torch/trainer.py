"""Theta's step, rho's step, and their alternation, on PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import torch
from keras import ops
from keras import tree

from keras_crossreg import _keras
from keras_crossreg.backend.torch.stream import TorchStream
from keras_crossreg.backend.torch.stream import merge_loaders
from keras_crossreg.primitives.torch import kept_generators
from keras_crossreg.primitives.torch import still
from keras_crossreg.trainers.reg_stream import RegularizationStream
from keras_crossreg.trainers.trainer import CrossRegTrainer


class TorchTrainer(CrossRegTrainer):
    """The training half of `CrossRegModel`, on PyTorch.

    Theta's step is Keras's own, compiled where `jit_compile=True`. Rho's runs
    eagerly: it is taken once in r steps, and to compile it takes minutes.
    """

    def make_train_function(self, force: bool = False) -> None:
        """Theta at every training step; rho, at the new theta, every r."""
        if self.train_function is not None and not force:
            return
        super().make_train_function(force)
        theta_step = self.train_function
        self._rho_function = self._in_inference(self._rho_step_on)
        self._measure_function = self._in_inference(self.measure_step)

        def alternate(batches: Any) -> dict[str, Any]:
            self._begin_execution()
            logs = theta_step(list(self._keep_train_batch(batches)))
            for batch in self._due_reg_batches():
                self._run_rho_step(batch)
            return self._with_reg_logs(logs)

        self.train_function = alternate

    def _in_inference(self, step: Callable[..., Any]) -> Callable[[Any], Any]:
        """A step on a tuple of batches, in which no theta asks for more."""

        def run(batches: tuple[Any, ...]) -> Any:
            with self._in_mode(training=False):
                return step(*tree.map_structure(_tensor, batches))

        return run

    @contextlib.contextmanager
    def _in_mode(self, training: bool) -> Iterator[None]:
        """Modules of PyTorch are in a mode; nothing asks for a gradient."""
        before = self.training
        self.train(training)
        try:
            with still(self._all_tensors()):
                yield
        finally:
            self.train(before)

    @contextlib.contextmanager
    def _kept_seeds(self) -> Iterator[None]:
        # A layer of the user's own may draw from PyTorch itself.
        with super()._kept_seeds(), kept_generators():
            yield

    def _run_once(self, step: Callable[[Any], Any], batch: Any) -> Any:
        with self._in_mode(training=False):
            return step(batch)

    def _all_tensors(self) -> list[Any]:
        """What the variables hold, and what modules of PyTorch do."""
        held = [_keras.stored_value(v) for v in self.variables]
        return [*held, *self.parameters()]

    def _make_training_call(self) -> Callable[[Any], None]:
        def call_on(batch: Any) -> None:
            x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
            with self._in_mode(training=True):
                self(tree.map_structure(_tensor, x), training=True)

        return call_on

    # ---- Data ----------------------------------------------------------------

    def _make_stream(
        self, reg_data: Any, batch_size: int | None, position: int
    ) -> RegularizationStream:
        return TorchStream(reg_data, batch_size, position)

    def _merge_datasets(self, x: Any, reg_x: Any) -> Any:
        return merge_loaders(x, reg_x)

    # ---- Traces --------------------------------------------------------------

    def _reached(
        self, gradients: Callable[[Any], list[Any]], batch: Any
    ) -> list[bool]:
        try:
            found = self._in_inference(gradients)((batch,))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError) as error:
            raise ValueError(str(error)) from error
        return [gradient is not None for gradient in found]


def _tensor(array: Any) -> Any:
    return None if array is None else ops.convert_to_tensor(array)
