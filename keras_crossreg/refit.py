"""The final model: all the data, and the learned rho from the first step."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np

from keras_crossreg._keras import all_layers
from keras_crossreg.callbacks.rho_history import RhoHistory
from keras_crossreg.checks import check_boolean
from keras_crossreg.cross_reg_model import CrossRegModel
from keras_crossreg.rho import assign_rho
from keras_crossreg.rho import read_rho
from keras_crossreg.rho import rho_by_key
from keras_crossreg.rho import stored_value
from keras_crossreg.trainers.progress import announce
from keras_crossreg.trainers.progress import count_of
from keras_crossreg.warm_start import MeasureAverages
from keras_crossreg.warm_start import check_data
from keras_crossreg.warm_start import take_theta
from keras_crossreg.warm_start import whole_schedule


def refit(
    model: CrossRegModel,
    x: Any = None,
    y: Any = None,
    *,
    schedule: RhoHistory | None = None,
    warm: bool = False,
    **fit_arguments: Any,
) -> CrossRegModel:
    """Trains a copy on all the data, with the learned rho frozen.

    A run that learns its regularization gets it late, when theta has already
    memorized, and without the examples that it held out. The second run has
    both from its first step, at the price of one more training.

    The copy is compiled as `model` was, with optimizers as they were then. Its
    weights are drawn anew, but for what training does not set: layers with
    `trainable=False`, and layers that were adapted to data, such as
    `keras.layers.Normalization`, keep their state.

    With `warm=True` theta start half way between those of `model` and weights
    drawn anew; kernels of a network with batch normalization, as half of what
    they are and a tenth of a new draw. Moving averages of batch normalization
    are measured anew. Half of the epochs are then enough: a learning rate
    schedule runs through the epochs that there are as far as it came in
    `model`.

    Args:
        model: A compiled `CrossRegModel` that has learned its rho.
        x: All the data: training and regularization examples together. Every
            form that `fit` takes.
        y: Targets, as for `fit`.
        schedule: The `kcr.callbacks.RhoHistory` of the run that learned, to
            replay it: rho then follow what they were at the same part of that
            run, epoch by epoch, and end at its last values. `None` for the
            values of `model` from the first step. Defaults to `None`.
        warm: Boolean. Whether theta start from those of `model`, and not from
            weights drawn anew. Defaults to `False`.
        **fit_arguments: Arguments of `keras.Model.fit`, such as `epochs`,
            `batch_size` and `validation_data`.

    Returns:
        The trained copy, with its rho frozen, and its `history`.

    Raises:
        ValueError: If `model` is not a compiled and built `CrossRegModel`, if
            it cannot be copied, if regularization data are passed, if
            `schedule` has no record of a rho of the model, or if `warm=True`
            with a generator, or with a learning rate schedule and data of
            unknown length.

    Example:

    >>> model.fit(x_train, y_train, reg_data=(x_reg, y_reg), epochs=20)
    >>> x = np.concatenate([x_train, x_reg])
    >>> y = np.concatenate([y_train, y_reg])
    >>> final = kcr.refit(model, x, y, epochs=20)

    At a quarter of the price:

    >>> final = kcr.refit(model, x, y, epochs=5, warm=True)

    With what was learned along the way:

    >>> record = kcr.callbacks.RhoHistory()
    >>> model.fit(
    ...     x_train, y_train, reg_data=(x_reg, y_reg), epochs=20,
    ...     callbacks=[record],
    ... )
    >>> final = kcr.refit(model, x, y, schedule=record, epochs=20)
    """
    if not isinstance(model, CrossRegModel) or not (
        model.compiled and model.built
    ):
        raise ValueError(
            "`refit` expects a `CrossRegModel` that was compiled and fitted. "
            f"Received: model={model}"
        )
    for name in ("reg_data", "reg_split", "merge_epochs"):
        if name in fit_arguments:
            raise ValueError(
                "`refit` keeps rho as they are: pass the regularization "
                "examples with the training data. "
                f"Received: {name}={fit_arguments[name]}"
            )
    if check_boolean("warm", warm):
        check_data(x)
    final = _fresh_copy(model)
    learned = model.rho_variables
    first: list[keras.callbacks.Callback] = [
        keras.callbacks.LambdaCallback(
            # By then `fit` has looked at its arguments.
            on_train_begin=lambda logs: announce(
                fit_arguments.get("verbose", "auto"),
                _what_happens(fit_arguments, warm, schedule),
            )
        )
    ]
    if schedule is not None:
        first.append(_Replay(schedule, list(rho_by_key(model))))
    data = (x, y, fit_arguments.get("sample_weight"))
    if warm:
        take_theta(final, model)
        batch_size = fit_arguments.get("batch_size")
        first.append(MeasureAverages(data, batch_size))
    for old, new in zip(learned, final.rho_variables, strict=True):
        assign_rho(new, read_rho(old))
    final.freeze_rho()
    callbacks = fit_arguments.get("callbacks")
    if isinstance(callbacks, keras.callbacks.CallbackList):
        for callback in first:
            callbacks.append(callback)
    else:
        # Other callbacks see what these set.
        callbacks = [*first, *keras.tree.flatten(callbacks or [])]
        fit_arguments["callbacks"] = callbacks
    stretched: contextlib.AbstractContextManager[None]
    stretched = contextlib.nullcontext()
    if warm:
        stretched = whole_schedule(final, model, data, fit_arguments)
    with stretched:
        final.fit(x, y, **fit_arguments)
    return final


def _what_happens(arguments: Any, warm: bool, schedule: Any) -> str:
    epochs = arguments.get("epochs", 1) - arguments.get("initial_epoch", 0)
    begin = "from the trained weights" if warm else "from new weights"
    rho = "frozen" if schedule is None else "replayed"
    return f"Refitting: {count_of(epochs)} {begin}, with rho {rho}."


class _Replay(keras.callbacks.Callback):
    """Sets rho to what they were at the same part of an earlier run.

    Args:
        schedule: The record of that run.
        paths: The paths in it, in the order of `rho_variables`.
    """

    def __init__(self, schedule: RhoHistory, paths: list[str]) -> None:
        super().__init__()
        if not isinstance(schedule, RhoHistory) or not len(schedule.epochs):
            raise ValueError(
                "`schedule` expects the `kcr.callbacks.RhoHistory` of a run, "
                f"with an epoch at least. Received: schedule={schedule}"
            )
        history = schedule.history
        missing = [path for path in paths if path not in history]
        if missing:
            raise ValueError(
                f"`schedule` has no record of the rho {missing}. "
                f"Received: schedule with {sorted(history)}"
            )
        # A curve goes from the start of the run to the end of its last epoch.
        self.curves = [
            np.stack([schedule.start.get(path, values[0]), *values])
            for path, values in ((path, history[path]) for path in paths)
        ]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._set(epoch / self.params["epochs"])

    def on_train_end(self, logs: Any = None) -> None:
        self._set(1.0)

    def _set(self, part: float) -> None:
        """`part`: of the run, from 0 to 1."""
        rho = self.model.rho_variables
        for variable, curve in zip(rho, self.curves, strict=True):
            place = part * (len(curve) - 1)
            before = min(int(place), len(curve) - 2)
            step = place - before
            value = (1 - step) * curve[before] + step * curve[before + 1]
            assign_rho(variable, stored_value(variable, value))


def _fresh_copy(model: CrossRegModel) -> CrossRegModel:
    """A compiled copy with weights drawn anew."""
    try:
        copy: CrossRegModel = type(model).from_config(model.get_config())
        if not copy.built:
            copy.build_from_config(model.get_build_config())
        shapes, copied = (
            [tuple(v.shape) for v in m.weights] for m in (model, copy)
        )
        if shapes != copied:
            raise ValueError(
                f"Its config gives weights of shapes {copied} for {shapes}."
            )
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            "The model cannot be copied. Give its class a `get_config()` that "
            "returns the arguments of its constructor, as saving needs too; "
            "or build the copy yourself: `copy.set_rho(model.get_rho())`, "
            "`copy.freeze_rho()`, `copy.fit(...)`. "
            f"Received: model={model}"
        ) from error
    old_layers, new_layers = all_layers(model), all_layers(copy)
    for old, new in zip(old_layers, new_layers, strict=True):
        adapted = hasattr(old, "adapt")
        if not old.trainable or adapted:
            new.set_weights(old.get_weights())
        if adapted:
            new.finalize_state()
    copy.compile(**model.compile_arguments())
    return copy
