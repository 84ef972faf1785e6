"""The model around another one that averages its sampled predictions."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
from keras import tree

from keras_crossreg import primitives
from keras_crossreg._keras import Functional
from keras_crossreg._keras import all_layers
from keras_crossreg._keras import compute_output_spec
from keras_crossreg._keras import get_input_signature
from keras_crossreg._keras import graph_structure
from keras_crossreg._keras import losses_by_layer
from keras_crossreg._keras import set_losses_by_layer
from keras_crossreg.checks import check_integer
from keras_crossreg.noise_source import NoiseRefused
from keras_crossreg.sampling.averaging import average
from keras_crossreg.sampling.averaging import plain_loss
from keras_crossreg.sampling.exported_file import check_file
from keras_crossreg.sampling.exported_file import check_format
from keras_crossreg.sampling.exported_file import has_runtime_noise
from keras_crossreg.sampling.noise_ahead import NOISE
from keras_crossreg.sampling.noise_ahead import check_can_be_fixed
from keras_crossreg.sampling.noise_ahead import example_inputs
from keras_crossreg.sampling.noise_ahead import fixed_noise_of
from keras_crossreg.sampling.noise_ahead import has_numbers
from keras_crossreg.sampling.noise_ahead import runtime_noise_of
from keras_crossreg.sampling.noise_ahead import seed_of
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
        noise: str = "random",
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        # Inputs go to `model` as they are: it casts them itself.
        super().__init__(autocast=False, **kwargs)
        self.model = model
        self.num_samples = check_integer("num_samples", num_samples, 1)
        if not (isinstance(noise, str) and noise in NOISE):
            raise ValueError(
                f"`noise` must be one of {NOISE}. Received: noise={noise}"
            )
        self.noise = noise
        self.seed = seed
        # `model` may be loaded without what it was compiled with.
        self.averaging = averaging
        self.averaged_loss = loss
        # A model that has not predicted yet has not looked at whether the
        # rows of a batch meet in it.
        model.look()
        self._check_state()
        self.built = model.built
        self._was_tried = False
        if model.built:
            self._try(example_inputs(model), are_random=True)
            self._try_open_sizes()

    @classmethod
    def of(
        cls, model: SampledModel, num_samples: int, noise: str = "random"
    ) -> AveragedModel:
        """What averages as a model predicts."""
        return cls(
            model,
            num_samples,
            averaging=model.compile_options.averaging,
            loss=plain_loss(model.loss),
            noise=noise,
            seed=seed_of(model.random_states),
            name=model.name,
        )

    @property
    def is_stochastic(self) -> bool:
        """Whether there is any noise to average over."""
        return any(map(is_stochastic, all_layers(self.model)))

    def call(self, inputs: Any) -> Any:
        model = self.model
        if not self.is_stochastic:
            return model(inputs, training=False)
        flat = tree.flatten(inputs)
        if not any(isinstance(x, keras.KerasTensor) for x in flat):
            model.look(inputs)
            self._check_state()
            self._try(inputs)
        # Those of another call of the model, in the same call of an outer one.
        before = losses_by_layer(model)
        outputs = self._predict(inputs)
        added = losses_by_layer(model)
        set_losses_by_layer(
            model, [a + b for a, b in zip(before, added, strict=True)]
        )
        return outputs

    def _predict(self, inputs: Any) -> Any:
        noise = (
            fixed_noise_of(self.model, self.seed, inputs)
            if self.noise == "fixed"
            else contextlib.nullcontext()
        )
        with noise, sampled_calls(self.model, self.num_samples, self._average):
            return self.model(inputs)

    def _try(self, inputs: Any, are_random: bool = False) -> None:
        """Refuses noise that cannot be drawn ahead, as soon as that shows."""
        if self._was_tried or self.noise != "fixed" or not self.is_stochastic:
            return
        if inputs is None or not all(map(has_numbers, tree.flatten(inputs))):
            return
        try:
            check_can_be_fixed(
                self.model, self._predict, inputs, self.model.random_states
            )
        except NoiseRefused:
            raise
        except Exception:
            # A model may not take random inputs.
            if not are_random:
                raise
            return
        self._was_tried = True

    def _try_open_sizes(self) -> None:
        """Refuses noise of a shape that is open in the graph of the model."""
        is_graph = isinstance(self.model, Functional)
        if self.noise != "fixed" or not self.is_stochastic or not is_graph:
            return
        inputs, _ = graph_structure(self.model)
        compute_output_spec(self._predict, inputs)

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
        size, where the format has that. Noise that is not fixed is drawn from
        the seeds in a SavedModel, and by the runtime's own random numbers in
        other formats; those that have none refuse it.
        """
        if input_signature is None:
            input_signature = get_input_signature(self.model)
        draws = self.is_stochastic and self.noise == "random"
        check_format(format, draws, input_signature)
        write = primitives.writers.get(format)
        with (
            runtime_noise_of(self.model)
            if draws and has_runtime_noise(format)
            else contextlib.nullcontext()
        ):
            if write is None:
                super().export(
                    str(filepath), format, verbose, input_signature, **kwargs
                )
            else:
                write(self, filepath, input_signature, verbose, **kwargs)
        check_file(filepath, format)

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
            noise=self.noise,
            seed=self.seed,
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
