"""Training and regularization data as one, for the last epochs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops
from keras import tree

from keras_crossreg._keras import can_convert_arrays
from keras_crossreg._keras import inner_optimizer
from keras_crossreg.trainers.reg_data import Data
from keras_crossreg.trainers.reg_data import as_tensor
from keras_crossreg.trainers.reg_data import num_rows
from keras_crossreg.trainers.reg_data import peek
from keras_crossreg.trainers.reg_data import with_ranks_of


class OneRun(keras.callbacks.CallbackList):
    """Callbacks that see two calls of Keras's `fit` as one run."""

    def __init__(self, callbacks: Any, model: Any, **params: Any) -> None:
        super().__init__(
            callbacks,
            add_history=True,
            add_progbar=params["verbose"] != 0,
            model=model,
            **params,
        )
        self.is_first = True
        self.is_last = False
        self._theta: list[Any] = []
        self._before_steps: Callable[[], None] | None = None

    def next_phase(
        self, steps: int, before_steps: Callable[[], None] | None
    ) -> None:
        """Called between the two.

        `before_steps` runs once more, when callbacks have begun the epoch:
        theta are what training goes on from then.
        """
        self.is_first, self.is_last = False, True
        self._before_steps = before_steps
        self.set_params({**self.params, "steps": steps})

    def on_train_begin(self, logs: Any = None) -> None:
        if self.is_first:
            super().on_train_begin(logs)
            # A callback may have restored a run that had come further.
            self._keep_theta()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_begin(epoch, logs)
        if self._before_steps is not None:
            self._before_steps()
            self._before_steps = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        if self.is_first:
            self._keep_theta()

    def _keep_theta(self) -> None:
        """Keras puts averages in its place when a `fit` ends: not yet."""
        if inner_optimizer(self.model.optimizer).use_ema:
            self._theta = [
                keras.ops.copy(v.value) for v in self.model.theta_variables
            ]

    def on_train_end(self, logs: Any = None) -> None:
        if self.is_last or self.model.stop_training:
            super().on_train_end(logs)
        elif self._theta:
            for variable, value in zip(
                self.model.theta_variables, self._theta, strict=True
            ):
                variable.assign(value)


def merge(
    data: Data, reg_data: Any, merge_datasets: Callable[[Any, Any], Any]
) -> Data:
    """Both sets of examples as one `(x, y, sample_weight)`.

    Args:
        data: Training data `(x, y, sample_weight)`.
        reg_data: As given to `fit`.
        merge_datasets: From two datasets to one, or to `None` where they are
            none that the backend can merge.

    Raises:
        ValueError: If they are neither arrays nor datasets of known size.
    """
    reg = keras.utils.unpack_x_y_sample_weight(reg_data)
    x, reg_x = data[0], reg[0]
    if can_convert_arrays(data) and can_convert_arrays(reg):
        return _merge_arrays(data, reg)
    merged = merge_datasets(x, reg_x)
    if merged is None:
        raise ValueError(
            "`merge_epochs` needs training and regularization data that are "
            "both arrays, or both datasets of the backend, of known size: "
            "`tf.data.Dataset` on TensorFlow, a `DataLoader` without a sampler "
            "of its own on PyTorch. Received: "
            f"x of type {type(x).__name__}, reg_data of type "
            f"{type(reg_x).__name__}"
        )
    return merged, None, None


def _merge_arrays(data: Data, reg: Data) -> Data:
    like, _ = peek(*data)
    # What is as large as the training data stays off an accelerator.
    with keras.device("cpu"):
        x, y, sample_weight = _tensors(data)
        reg_x, reg_y, reg_weight = with_ranks_of(like, _tensors(reg))
        if (sample_weight is None) != (reg_weight is None):
            # Examples without a weight weigh 1.
            sample_weight = _weights(sample_weight, reg_weight, x)
            reg_weight = _weights(reg_weight, sample_weight, reg_x)
        return (
            _concatenate(x, reg_x),
            _concatenate(y, reg_y),
            _concatenate(sample_weight, reg_weight),
        )


def _tensors(data: Any) -> Any:
    return tree.map_structure(as_tensor, tree.lists_to_tuples(data))


def _concatenate(first: Any, second: Any) -> Any:
    return tree.map_structure(
        lambda a, b: None if a is None else ops.concatenate([a, b]),
        first,
        second,
    )


def _weights(weights: Any, like: Any, x: Any) -> Any:
    if weights is not None:
        return weights
    size = num_rows(x)
    return tree.map_structure(
        lambda w: ops.ones((size, *w.shape[1:]), "float32"), like
    )
