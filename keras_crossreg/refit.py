"""The final model: all the data, and the learned rho from the first step."""

from __future__ import annotations

from typing import Any

from keras_crossreg._keras import all_layers
from keras_crossreg.cross_reg_model import CrossRegModel
from keras_crossreg.rho import rho_variables_of


def refit(
    model: CrossRegModel, x: Any = None, y: Any = None, **fit_arguments: Any
) -> CrossRegModel:
    """Trains a fresh copy on all the data, with the learned rho frozen.

    A run that learns its regularization gets it late, when theta has already
    memorized, and without the examples that it held out. The second run has
    both from its first step, at the price of one more training.

    The copy is compiled as `model` was, with optimizers as they were then. Its
    weights are drawn anew, but for what training does not set: layers with
    `trainable=False`, and layers that were adapted to data, such as
    `keras.layers.Normalization`, keep their state.

    Args:
        model: A compiled `CrossRegModel` that has learned its rho.
        x: All the data: training and regularization examples together. Every
            form that `fit` takes.
        y: Targets, as for `fit`.
        **fit_arguments: Arguments of `keras.Model.fit`, such as `epochs`,
            `batch_size` and `validation_data`.

    Returns:
        The trained copy, with its rho frozen, and its `history`.

    Raises:
        ValueError: If `model` is not a compiled and built `CrossRegModel`, if
            it cannot be copied, or if regularization data are passed.

    Example:

    >>> model.fit(x_train, y_train, reg_data=(x_reg, y_reg), epochs=20)
    >>> x = np.concatenate([x_train, x_reg])
    >>> y = np.concatenate([y_train, y_reg])
    >>> final = kcr.refit(model, x, y, epochs=20)
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
    final = _fresh_copy(model)
    learned = rho_variables_of(model)
    for old, new in zip(learned, final.rho_variables, strict=True):
        final._assign_rho(new, old)
    final.freeze_rho()
    final.fit(x, y, **fit_arguments)
    return final


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
    model._compile_copy(copy)
    return copy
