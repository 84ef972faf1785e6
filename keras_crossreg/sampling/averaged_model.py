"""The model around another one that averages its sampled predictions."""

from __future__ import annotations

from typing import Any

import keras
from keras import tree

from keras_crossreg._keras import all_layers
from keras_crossreg._keras import get_input_signature
from keras_crossreg._keras import losses_by_layer
from keras_crossreg._keras import set_losses_by_layer
from keras_crossreg.checks import check_integer
from keras_crossreg.sampling.averaging import average
from keras_crossreg.sampling.averaging import plain_loss
from keras_crossreg.sampling.sampled_model import SampledModel
from keras_crossreg.sampling.sampled_model import sampled_calls
from keras_crossreg.sampling.stochastic_layers import is_stochastic


@keras.saving.register_keras_serializable(package="keras_crossreg")
class AveragedModel(keras.Model):
    """Calls another model as a whole, on several samples; see `averaged`."""

    def __init__(
        self,
        model: SampledModel,
        num_samples: int,
        averaging: Any = "auto",
        loss: Any = None,
        **kwargs: Any,
    ) -> None:
        # Inputs go to `model` as they are: it casts them itself.
        super().__init__(autocast=False, **kwargs)
        self.model = model
        self.num_samples = check_integer("num_samples", num_samples, 1)
        # `model` may be loaded without what it was compiled with.
        self.averaging = averaging
        self.averaged_loss = loss
        # A model that has not predicted yet has not looked at whether the
        # rows of a batch meet in it.
        model.look()
        self._check_state()
        self.built = model.built

    @classmethod
    def of(cls, model: SampledModel, num_samples: int) -> AveragedModel:
        """What averages as a model predicts."""
        return cls(
            model,
            num_samples,
            averaging=model.compile_options.averaging,
            loss=plain_loss(model.loss),
            name=model.name,
        )

    def call(self, inputs: Any) -> Any:
        model = self.model
        if not any(map(is_stochastic, all_layers(model))):
            return model(inputs, training=False)
        flat = tree.flatten(inputs)
        if not any(isinstance(x, keras.KerasTensor) for x in flat):
            model.look(inputs)
            self._check_state()
        # Those of another call of the model, in the same call of an outer one.
        before = losses_by_layer(model)
        with sampled_calls(model, self.num_samples, self._average):
            outputs = model(inputs)
        added = losses_by_layer(model)
        set_losses_by_layer(
            model, [a + b for a, b in zip(before, added, strict=True)]
        )
        return outputs

    def _check_state(self) -> None:
        states = [v.path for v in self.model.moving_states]
        if states:
            raise ValueError(
                "An averaged or exported model keeps no state from batch to "
                "batch, which its samples would each need one of: use "
                "`predict` of the model itself, or layers with "
                f"`stateful=False`. Received: states={states}"
            )

    def _average(self, samples: Any) -> Any:
        return average(
            samples,
            self.averaging,
            self.averaged_loss,
            getattr(self.model, "output_names", None),
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
        # What the model is compiled with is of no use here, and may hold
        # objects that Keras cannot load.
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
