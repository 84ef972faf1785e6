"""What `fit` shows of its phases."""

from __future__ import annotations

from typing import Any

import keras

from keras_crossreg import _keras
from keras_crossreg.trainers.fit_state import FitState


def announce(verbose: Any, message: str) -> None:
    """Prints a line where a bar would be; `verbose` as for `fit`."""
    if verbose:
        _keras.print_message(message)


def count_of(epochs: int) -> str:
    return f"{epochs} epoch" if epochs == 1 else f"{epochs} epochs"


def with_bar(callbacks: Any, verbose: Any, state: FitState) -> Any:
    """Callbacks of a `fit` with our bar, where Keras would add its own."""
    if not verbose or isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks
    callbacks = keras.tree.flatten(callbacks) if callbacks else []
    if any(isinstance(c, keras.callbacks.ProgbarLogger) for c in callbacks):
        return callbacks
    return [*callbacks, PhaseBar(state)]


class PhaseBar(keras.callbacks.ProgbarLogger):
    """Keras's bar, of what is known of the regularization batches.

    `History` has the same keys in every epoch, which are not numbers while rho
    wait for their first step, and when they are frozen.

    Args:
        state: Of the `fit` that shows it.
    """

    def __init__(self, state: FitState) -> None:
        super().__init__()
        self._state = state
        self._is_first = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._is_first:
            self._is_first = False
            self._tell_of_warmup(epoch)
        super().on_epoch_begin(epoch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_end(batch, self._known(logs))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, self._known(logs))

    def _known(self, logs: Any) -> Any:
        if not logs or self._state.logs_are_known:
            return logs
        hidden = self._state.logs
        return {name: v for name, v in logs.items() if name not in hidden}

    def _tell_of_warmup(self, epoch: int) -> None:
        schedule = self._state.schedule
        if self._state.stream is None or schedule is None:
            return
        wait = schedule.reg_warmup - _keras.count_steps(self.model.optimizer)
        if wait <= 0:
            return
        message = f"Rho wait for {wait} training steps"
        if self.target:
            message += f", until epoch {epoch + wait // self.target + 1}"
        announce(self.verbose, f"{message} (reg_warmup).")
