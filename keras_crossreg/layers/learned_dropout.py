"""Dropout whose rate is learned."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_crossreg import random
from keras_crossreg.layers.rho_layer import RhoLayer
from keras_crossreg.layers.rho_layer import shape_of_axes
from keras_crossreg.parametrization import RATE
from keras_crossreg.primitives import evaluated_after
from keras_crossreg.rho import check_start
from keras_crossreg.rho import human_value

# What is kept is divided by the chance to keep it, in sixteen bits too.
_SMALLEST_KEEP = 1e-4
# This part of the dropped is left in sampling passes. At zero, a ReLU behind
# would have no gradient, and theirs is half of the gradient of the rate.
_LEFT = 1e-5


@keras.saving.register_keras_serializable(package="keras_crossreg")
class LearnedDropout(RhoLayer):
    """Sets inputs to zero at random, at a rate learned on `reg_data`.

    `outputs = inputs * mask / (1 - rate)`, `mask ~ Bernoulli(1 - rate)`:
    exact dropout, as in `keras.layers.Dropout`, in training, on the
    regularization set and in predictions, which `CrossRegModel` averages over
    samples. In the last two a hundred thousandth of what is dropped is left,
    for the gradient to pass a ReLU that comes behind. A plain call in
    inference mode returns the inputs.

    Only the gradient of the rate is relaxed. With `rho = logit(rate)` the
    noise that dropout multiplies with has mean 1 and variance
    `rate / (1 - rate) = exp(rho)`. Its gradient is that of a noise whose
    deviation is `exp(rho / 2)` and whose shape stays as it was drawn,

    `d outputs / d rho = (outputs - inputs) / 2`.

    In expectation that is right to the second order in the noise: exact where
    the loss of the averaged outputs is quadratic in it, such as a linear model
    with a squared error. Beyond, it leaves out how the shape of the noise
    depends on the rate, which is biased where the rate is high and few units
    share the work: on classifiers with six inputs it was mostly within a third
    of the exact gradient at rates up to 0.2, and far from it at 0.8. The
    concrete relaxation at temperature 0.1 is nearly without bias there, but a
    single draw of its gradient deviates 2.5 to 6 times as much, and it
    predicts with other noise than dropout (`benchmarks/dropout_gradient.py`).

    Args:
        initial_rate: Float, the first rate. Between 0 and 1, both excluded:
            what is never dropped teaches nothing. Defaults to `0.1`.
        axis: Integer, tuple of integers or `None`. The axes that have a rate
            of their own for every index: `-1` for one per channel (`1` where
            channels come first). `None` for one rate. Defaults to `None`.
        seed: Integer, optional random seed.
        noise_shape: Tuple, the shape of the mask, as in
            `keras.layers.Dropout`: `None` for the size of the inputs, `1`
            where all are dropped together. `(None, 1, 1, None)` drops whole
            channels of images; `(None, 1, 1, 1)` whole examples, for
            stochastic depth. It starts with `None`: each of the averaged
            samples has a mask of its own. Defaults to the shape of the inputs.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Tensor of any rank above 1.
        training: Boolean. If `True`, applies dropout.
        sampling: Boolean, set by `CrossRegModel`. If `True`, applies dropout,
            and lets the gradient of the rate through.

    Output shape:
        Same as the input shape.

    Raises:
        ValueError: If `initial_rate` is not between 0 and 1, if `axis` holds
            the batch axis, is out of range or has an unknown size, or if
            `noise_shape` does not broadcast to the inputs.

    Example:

    >>> x = keras.layers.Dense(64, activation="relu")(x)
    >>> x = kcr.layers.LearnedDropout()(x)

    Reference:

    - [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html):
      dropout; section 10: Gaussian noise of the same variance.
    - [Wang and Manning, 2013](https://proceedings.mlr.press/v28/wang13a.html)
      and [Kingma et al., 2015](https://arxiv.org/abs/1506.02557): learning
      by the moments of the noise.
    - [Gal et al., 2017](https://arxiv.org/abs/1705.07832): the concrete
      relaxation that this one was compared with.
    """

    def __init__(
        self,
        initial_rate: float = 0.1,
        axis: int | tuple[int, ...] | None = None,
        seed: int | None = None,
        noise_shape: tuple[int | None, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.initial_rate = check_start(
            "initial_rate", initial_rate, zero=False, below=1.0
        )
        self.axis = tuple(axis) if isinstance(axis, (list, tuple)) else axis
        self.seed = seed
        if noise_shape is not None:
            if not isinstance(noise_shape, (list, tuple)):
                raise ValueError(
                    "`noise_shape` must be a tuple or `None`. "
                    f"Received: noise_shape={noise_shape}"
                )
            noise_shape = tuple(noise_shape)
        self.noise_shape = noise_shape
        self.seed_generator = random.SeedGenerator(seed)

    def build(self, input_shape: Any) -> None:
        self._check_noise_shape(input_shape)
        self.rho = self.add_rho(
            "rate",
            start=self.initial_rate,
            shape=shape_of_axes(self.axis, input_shape),
            meaning="dropout rate",
            parametrization=RATE,
        )

    def _check_noise_shape(self, input_shape: Any) -> None:
        shape = self.noise_shape
        if shape is not None and (
            len(shape) != len(input_shape)
            or shape[0] is not None
            or any(
                size not in (None, 1, given)
                for size, given in zip(shape, input_shape, strict=True)
            )
        ):
            raise ValueError(
                "`noise_shape` must start with `None` and have, for every "
                "other axis of the inputs, `None`, 1 or its size. Received: "
                f"noise_shape={shape}, input_shape={input_shape}"
            )

    @property
    def rate(self) -> Any:
        """The rate as learned: a float, or an array that broadcasts."""
        return human_value(self.rho)

    def in_words(self, value: float) -> str:
        """The share of its inputs that is dropped."""
        return f"drops {value:.0%}" if value >= 0.01 else "drops next to none"

    def call(
        self, inputs: Any, training: bool = False, sampling: bool | None = None
    ) -> Any:
        # Integers, such as the pixels of images, are dropped too.
        inputs = ops.cast(inputs, self.compute_dtype)
        if not (training or sampling):
            return inputs
        rho = ops.convert_to_tensor(self.rho)
        fixed = ops.stop_gradient(rho)
        keep = ops.maximum(ops.sigmoid(-fixed), _SMALLEST_KEEP)
        # Numbers that are drawn before their turn would only take memory.
        with evaluated_after(inputs):
            uniform = random.uniform(
                self._mask_shape(inputs), self.seed_generator
            )
        dropped = _LEFT - 1.0 if sampling else -1.0
        noise = ops.where(uniform < keep, 1.0 / keep - 1.0, dropped)
        if sampling:
            # The factor is 1, and has a gradient of 1/2.
            noise = noise * ops.exp((rho - fixed) / 2)
        return inputs * ops.cast(1.0 + noise, inputs.dtype)

    def _mask_shape(self, inputs: Any) -> Any:
        shape = ops.shape(inputs)
        if self.noise_shape is None:
            return shape
        return tuple(
            given if size is None else size
            for size, given in zip(self.noise_shape, shape, strict=True)
        )

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        config.update(
            {
                "initial_rate": self.initial_rate,
                "axis": self.axis,
                "seed": self.seed,
                "noise_shape": self.noise_shape,
            }
        )
        return config
