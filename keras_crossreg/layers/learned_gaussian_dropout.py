"""Gaussian dropout whose rate is learned."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_crossreg import random
from keras_crossreg.dtypes import at_least_float32
from keras_crossreg.layers.rho_layer import RhoLayer
from keras_crossreg.layers.rho_layer import shape_of_axes
from keras_crossreg.parametrization import RATE
from keras_crossreg.primitives import evaluated_after
from keras_crossreg.rho import check_start
from keras_crossreg.rho import human_value


@keras.saving.register_keras_serializable(package="keras_crossreg")
class LearnedGaussianDropout(RhoLayer):
    """Multiplies inputs by Gaussian noise, at a rate learned on `reg_data`.

    `outputs = inputs * (1 + sqrt(rate / (1 - rate)) * eps)`,
    `eps ~ N(0, 1)`: as in `keras.layers.GaussianDropout`, noise of the mean
    and the variance that dropout at this rate multiplies with. With
    `rho = logit(rate)` its deviation is `exp(rho / 2)`, and the gradient of
    the rate is exact.

    It is drawn in training, on the regularization set and in predictions,
    which `CrossRegModel` averages over samples. A plain call in inference mode
    returns the inputs. As in `GaussianNoiseScale`, up to eight examples of a
    batch share the numbers, each in another place; the samples of one example
    share none.

    Args:
        initial_rate: Float, the first rate. Between 0 and 1, both excluded.
            Defaults to `0.1`.
        axis: Integer, tuple of integers or `None`. The axes that have a rate
            of their own for every index: `-1` for one per channel (`1` where
            channels come first). `None` for one rate. Defaults to `None`.
        seed: Integer, optional random seed.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Tensor of any rank above 1.
        training: Boolean. If `True`, multiplies by one sample of the noise.
        sampling: Boolean, set by `CrossRegModel`. If `True`, multiplies by one
            sample of the noise, and lets the gradient of the rate through.

    Output shape:
        Same as the input shape.

    Raises:
        ValueError: If `initial_rate` is not between 0 and 1, or if `axis`
            holds the batch axis, is out of range or has an unknown size.

    Example:

    >>> x = keras.layers.Dense(64, activation="relu")(x)
    >>> x = kcr.layers.LearnedGaussianDropout()(x)

    Reference:

    - [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html),
      section 10: Gaussian dropout.
    - [Kingma et al., 2015](https://arxiv.org/abs/1506.02557): learning its
      rate through the noise.
    """

    def __init__(
        self,
        initial_rate: float = 0.1,
        axis: int | tuple[int, ...] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.initial_rate = check_start(
            "initial_rate", initial_rate, zero=False, below=1.0
        )
        self.axis = tuple(axis) if isinstance(axis, (list, tuple)) else axis
        self.seed = seed
        self.seed_generator = random.SeedGenerator(seed)

    def build(self, input_shape: Any) -> None:
        self.rho = self.add_rho(
            "rate",
            start=self.initial_rate,
            shape=shape_of_axes(self.axis, input_shape),
            meaning="Gaussian dropout rate",
            parametrization=RATE,
        )

    @property
    def rate(self) -> Any:
        """The rate as learned: a float, or an array that broadcasts."""
        return human_value(self.rho)

    def call(
        self, inputs: Any, training: bool = False, sampling: bool | None = None
    ) -> Any:
        # Integers, such as the pixels of images, get noise too.
        inputs = ops.cast(inputs, self.compute_dtype)
        if not (training or sampling):
            return inputs
        rho = ops.convert_to_tensor(self.rho)
        deviation = ops.exp((rho if sampling else ops.stop_gradient(rho)) / 2)
        # The gradient of the rate is a sum over all elements, which is too
        # long for sixteen bits.
        dtype = at_least_float32(inputs.dtype)
        # Numbers that are drawn before their turn would only take memory.
        with evaluated_after(inputs):
            eps = random.normal(
                ops.shape(inputs),
                seed=self.seed_generator,
                dtype=dtype,
                num_samples=random.samples_in_pass() if sampling else 1,
            )
        noise = ops.cast(deviation, dtype) * eps
        return inputs * ops.cast(1.0 + noise, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        config.update(
            {
                "initial_rate": self.initial_rate,
                "axis": self.axis,
                "seed": self.seed,
            }
        )
        return config
