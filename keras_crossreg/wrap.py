"""A CrossRegModel around an existing model."""

from __future__ import annotations

from typing import Any

import keras

from keras_crossreg._keras import Functional
from keras_crossreg._keras import graph_structure
from keras_crossreg.cross_reg_model import CrossRegModel
from keras_crossreg.own_steps import check_no_own_steps


def wrap(model: keras.Model) -> CrossRegModel:
    """A `CrossRegModel` around an existing model of any kind.

    It shares the layers and the weights of the model: training one trains the
    other. A functional or a built sequential model becomes a functional
    `CrossRegModel` of the same layers; any other is called as a whole.

    Args:
        model: A `keras.Model`. It may have been called, trained or compiled;
            what it was compiled with is not taken over.

    Returns:
        A `CrossRegModel`, to be compiled.

    Raises:
        ValueError: If `model` is not a `keras.Model`, or its class has steps
            or a loss of its own (`train_step`, `compute_loss`, ...).

    Example:

    >>> model = keras.Sequential([
    ...     keras.layers.Dense(64, use_bias=False),
    ...     keras.layers.BatchNormalization(center=False, scale=False),
    ...     kcr.layers.GaussianNoiseScale(),
    ...     keras.layers.ReLU(),
    ...     keras.layers.Dense(10, activation="softmax"),
    ... ])
    >>> model = kcr.wrap(model)
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "`wrap` expects a `keras.Model`. "
            f"Received: model={model} of type {type(model).__name__}"
        )
    if isinstance(model, CrossRegModel):
        return model
    check_no_own_steps(model, "wrap")
    if type(model) is Functional:
        inputs, outputs = graph_structure(model)
        return CrossRegModel(inputs, outputs, name=model.name)
    if type(model) is keras.Sequential and model.built:
        return CrossRegModel(model.inputs[0], model.outputs[0], name=model.name)
    return WrappedModel(model, name=model.name)


@keras.saving.register_keras_serializable(package="keras_crossreg")
class WrappedModel(CrossRegModel):
    """Calls another model as a whole; see `wrap`."""

    def __init__(self, model: keras.Model, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = model

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.model(inputs, training=training)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        config["model"] = keras.saving.serialize_keras_object(self.model)
        return config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> WrappedModel:
        config = dict(config)
        model = keras.saving.deserialize_keras_object(
            config.pop("model"), custom_objects=custom_objects
        )
        return cls(model, **config)
