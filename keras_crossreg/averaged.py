"""A plain Keras model that averages sampled predictions inside."""

from __future__ import annotations

from typing import Any

import keras

from keras_crossreg import averaging as averaging_lib
from keras_crossreg._keras import get_input_signature
from keras_crossreg.checks import check_integer
from keras_crossreg.cross_reg_model import CrossRegModel


def averaged(model: CrossRegModel, num_samples: int) -> keras.Model:
    """A plain `keras.Model` that samples and averages inside.

    For `export()`, for serving, and wherever a model is called rather than
    asked to `predict`. A call of it returns what `model.predict` returns with
    `eval_num_samples=num_samples`. It shares the weights of the model, and
    averages in the space of the loss that the model is compiled with. A model
    that is not compiled has no loss: its outputs are averaged as they are.

    The noise is drawn from the state in which training left the seeds, and
    the state is put back. So a request that is repeated gets the same answer,
    on every server, and `model` trains on as if it had not predicted. The
    noise of an example depends on its place in the batch and on the size of
    the batch. The error of `num_samples` samples is that of noise drawn anew;
    only, to repeat a request does not average it out. Calls at the same
    moment may disturb each other's seeds: they get other noise of the same
    kind.

    Args:
        model: A `CrossRegModel` that was built.
        num_samples: Integer, at least 1. Sampled predictions to average, in
            one pass over a batch that many times as large; more than 8 in
            several passes, one after the other.

    Returns:
        A `keras.Model`. It is for predictions: rho do not learn in it.

    Raises:
        ValueError: If `model` is not a `CrossRegModel` that was built, or if
            `num_samples` is below 1.

    Example:

    >>> kcr.averaged(model, 32).export("served")
    >>> served = tf.saved_model.load("served")
    >>> served.serve(x_test)
    """
    if not isinstance(model, CrossRegModel) or not model.built:
        raise ValueError(
            "`averaged` expects a `CrossRegModel` that was fitted, called or "
            f"loaded. Received: model={model} of type {type(model).__name__}"
        )
    return AveragedModel(
        model,
        num_samples,
        averaging=model._reg.averaging,
        loss=averaging_lib.plain_loss(model.loss),
        name=model.name,
    )


@keras.saving.register_keras_serializable(package="keras_crossreg")
class AveragedModel(keras.Model):
    """Calls another model as a whole, on several samples; see `averaged`."""

    def __init__(
        self,
        model: CrossRegModel,
        num_samples: int,
        averaging: Any = "auto",
        loss: Any = None,
        **kwargs: Any,
    ) -> None:
        # Inputs go to `model` as they are: it casts them itself.
        super().__init__(autocast=False, **kwargs)
        self.model = model
        self.num_samples = check_integer("num_samples", num_samples, 1)
        # Not those that `model` is compiled with: it may be loaded without.
        self.averaging = averaging
        self.averaged_loss = loss
        self.built = model.built

    def call(self, inputs: Any) -> Any:
        model = self.model
        if not model._stochastic:
            return model(inputs, training=False)
        return averaging_lib.average(
            model._repeatable_samples(inputs, self.num_samples),
            self.averaging,
            self.averaged_loss,
            getattr(model, "output_names", None),
        )

    def export(
        self,
        filepath: Any,
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> None:
        """Exports the model; see `keras.Model.export`.

        The inputs are those of the model inside, and the batch may have any
        size.
        """
        if input_signature is None:
            input_signature = get_input_signature(self.model)
        super().export(filepath, format, verbose, input_signature, **kwargs)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        model = keras.saving.serialize_keras_object(self.model)
        # What it is compiled with is of no use here, and may hold objects
        # that Keras cannot load.
        model.pop("compile_config", None)
        config.update(
            model=model,
            num_samples=self.num_samples,
            averaging=keras.saving.serialize_keras_object(self.averaging),
            loss=keras.saving.serialize_keras_object(self.averaged_loss),
        )
        return config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> AveragedModel:
        config = dict(config)
        for name in ("model", "averaging", "loss"):
            config[name] = keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
        return cls(**config)
