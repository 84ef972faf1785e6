"""The learned values, epoch by epoch."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_crossreg._keras import count_steps
from keras_crossreg.rho import human_value
from keras_crossreg.rho import note_course
from keras_crossreg.rho import rho_by_key
from keras_crossreg.rho import rho_info


class RhoHistory(keras.callbacks.Callback):
    """Records every learned value at the end of every epoch.

    In human units, into the logs of the epoch, so that `History`, the progress
    bar, and the callbacks that come *after* this one in the list write them
    with the losses: pass it before `CSVLogger` and `TensorBoard`. The keys are
    `rho/<path>`; where a rho has a shape, such as a sigma for each channel,
    `rho/<path>/mean`, `rho/<path>/min` and `rho/<path>/max`. Every single
    value is in `history`.

    `model.rho_summary()` draws the course of each rho afterwards, until it
    changes by something else. Rho that are frozen are recorded too. One call
    of `fit` is one record: the next one starts anew. It works with every
    `keras.Model` that has rho.

    Attributes:
        history: A dict `{path: array (epochs, ...)}`, in the order of the
            network.
        start: A dict `{path: value}`, as `fit` found them.
        epochs: An integer array `(epochs,)`: the epochs, from 0.
        steps: An integer array `(epochs,)`: training steps that `optimizer`
            had taken then, in this call of `fit` and earlier ones.
        meanings: A dict `{path: string}`: what each value means.

    Example:

    >>> rho_history = kcr.callbacks.RhoHistory()
    >>> history = model.fit(
    ...     x_train, y_train, reg_data=(x_reg, y_reg), epochs=20,
    ...     callbacks=[rho_history, keras.callbacks.CSVLogger("log.csv")],
    ... )
    >>> history.history["rho/noise_0/scale"]
    >>> rho_history.history["noise_0/scale"]
    >>> kcr.visualization.plot_rho_history(rho_history)
    """

    def __init__(self) -> None:
        super().__init__()
        self._clear()

    def _clear(self) -> None:
        self.start: dict[str, Any] = {}
        self.meanings: dict[str, str] = {}
        self._records: list[tuple[int, int, dict[str, Any]]] = []
        self._courses: dict[str, list[float]] = {}
        self._before = self._counted = 0

    @property
    def history(self) -> dict[str, np.ndarray]:
        values = [record for _, _, record in self._records]
        return {
            path: np.stack([record[path] for record in values])
            for path in (values[0] if values else ())
        }

    @property
    def epochs(self) -> np.ndarray:
        return np.array([epoch for epoch, _, _ in self._records], "int64")

    @property
    def steps(self) -> np.ndarray:
        return np.array([step for _, step, _ in self._records], "int64")

    def on_train_begin(self, logs: Any = None) -> None:
        self._clear()
        self.start = self._values()
        for key, variable in rho_by_key(self.model).items():
            self._note(key, variable, self.start[key])

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        values = self._values()
        for key, variable in rho_by_key(self.model).items():
            self.meanings[key] = rho_info(variable).meaning
            self._note(key, variable, values[key])
        counted = count_steps(self.model.optimizer)
        if counted < self._counted:
            # The last epochs of a `fit` begin with a fresh optimizer.
            self._before = self._records[-1][1]
        self._counted = counted
        self._records.append((epoch, self._before + counted, values))
        if logs is not None:
            logs.update(_as_logs(values))

    def _note(self, key: str, variable: keras.Variable, value: Any) -> None:
        course = self._courses.setdefault(key, [])
        course.append(float(np.mean(value)))
        note_course(variable, course)

    def _values(self) -> dict[str, Any]:
        rho = rho_by_key(self.model)
        return {key: human_value(v) for key, v in rho.items()}


def _as_logs(values: dict[str, Any]) -> dict[str, float]:
    """Numbers for the logs, which take no arrays."""
    logs = {}
    for path, value in values.items():
        key, array = f"rho/{path}", np.asarray(value)
        if array.size == 1:
            logs[key] = array.item()
        else:
            for name in ("mean", "min", "max"):
                logs[f"{key}/{name}"] = float(getattr(array, name)())
    return logs
