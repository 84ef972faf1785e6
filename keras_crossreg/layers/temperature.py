"""One learned scale on the logits."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_crossreg.dtypes import at_least_float32
from keras_crossreg.layers.rho_layer import RhoLayer
from keras_crossreg.rho import check_start
from keras_crossreg.rho import human_value


@keras.saving.register_keras_serializable(package="keras_crossreg")
class Temperature(RhoLayer):
    """Divides logits by a temperature T that is learned on `reg_data`.

    `outputs = inputs / T` in evaluation, predictions and sampling passes;
    `outputs = inputs` in training. So calibration comes out of the same `fit`:
    a network that is too sure of itself has its T rise above 1.

    Training leaves T out because theta can scale the logits just as well.
    Were T in the training loss, theta would undo every rise of T, the
    regularization set would see the same excess of confidence again, and T
    and the logits would grow together without an end. As it is, theta trains
    as if there were no such layer, and T follows the minimum over T of the
    regularization loss, with theta as they are: temperature scaling, at every
    step of the training instead of once after it. The loss and the metrics
    that `fit` reports of the training batches are of the undivided logits.

    T changes no prediction of the most likely class, unless it is averaged
    over noise.

    Args:
        initial_temperature: Float, the first T. Above 0. Defaults to `1.0`.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Logits: a tensor of any shape, before a softmax or a sigmoid.
        training: Boolean. If `True`, returns the inputs.
        sampling: Boolean, set by `CrossRegModel`. If `True`, lets the gradient
            of T through.

    Output shape:
        Same as the input shape.

    Raises:
        ValueError: If `initial_temperature` is not above 0 and finite.

    Example:

    >>> x = keras.layers.Dense(10)(x)
    >>> outputs = kcr.layers.Temperature()(x)
    >>> model = kcr.CrossRegModel(inputs, outputs)
    >>> model.compile(
    ...     loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ... )

    Reference:

    - [Guo et al., 2017](https://arxiv.org/abs/1706.04599), section 4.2:
      `softmax(z / T)`, T by the negative log likelihood of held-out data.
    """

    stochastic = False

    def __init__(self, initial_temperature: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.initial_temperature = check_start(
            "initial_temperature", initial_temperature, zero=False
        )

    def build(self, input_shape: Any) -> None:
        self.rho = self.add_rho(
            "temperature",
            start=self.initial_temperature,
            meaning="temperature of the logits",
        )

    @property
    def temperature(self) -> float:
        """T as learned."""
        temperature: float = human_value(self.rho)
        return temperature

    def call(
        self, inputs: Any, training: bool = False, sampling: bool | None = None
    ) -> Any:
        # Integers cannot be divided.
        inputs = ops.cast(inputs, self.compute_dtype)
        if training and not sampling:
            return inputs
        temperature = self.rho_value(self.rho, sampling)
        # The gradient of T is a sum over all logits, too much for sixteen bits.
        wide = ops.cast(inputs, at_least_float32(inputs.dtype))
        outputs = wide / ops.cast(temperature, wide.dtype)
        return ops.cast(outputs, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        config["initial_temperature"] = self.initial_temperature
        return config
