"""Learned noise that the gain of a normalization cannot outgrow."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_crossreg._keras import producing_node
from keras_crossreg.layers.gaussian_noise_scale import GaussianNoiseScale


@keras.saving.register_keras_serializable(package="keras_crossreg")
class NormalizedNoiseScale(GaussianNoiseScale):
    """Noise behind a normalization layer, as if it were before its gain.

    `outputs = inputs + sigma * gamma * eps`, with the gamma of the layer that
    it is called on the output of, in a functional model. The gradient of gamma
    is that of `gamma * (normalized + sigma * eps) + beta`.
    """

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(inputs, keras.KerasTensor):
            layer = producing_node(inputs).operation
            # Keras does not find a layer to track in a function: this one is
            # the model's, not ours.
            self._find_gain = lambda: find_gain(layer)
            if find_gain(layer) is None:
                raise ValueError(
                    "`NormalizedNoiseScale` follows a normalization layer "
                    f"with a gain. Received: inputs={inputs}"
                )
            axes = layer.axis
            self._gain_axes = [axes] if isinstance(axes, int) else list(axes)
        return super().__call__(inputs, *args, **kwargs)

    @property
    def _meaning(self) -> str:
        return "noise sigma before gamma"

    def _unit(self, inputs: Any, mask: Any) -> Any:
        rank = len(inputs.shape)
        axes = {axis % rank for axis in self._gain_axes}
        shape = [inputs.shape[a] if a in axes else 1 for a in range(rank)]
        gain = ops.convert_to_tensor(self._find_gain())
        return ops.reshape(ops.cast(gain, "float32"), shape)


def find_gain(layer: Any) -> keras.Variable | None:
    """The trainable scale of a normalization layer, if it has one."""
    is_rms = isinstance(layer, keras.layers.RMSNormalization)
    gain = getattr(layer, "scale" if is_rms else "gamma", None)
    return gain if isinstance(gain, keras.Variable) else None
