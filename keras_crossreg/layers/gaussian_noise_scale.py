"""Gaussian noise whose scale is learned."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_crossreg import random
from keras_crossreg.dtypes import at_least_float32
from keras_crossreg.layers.rho_layer import RhoLayer
from keras_crossreg.layers.rho_layer import shape_of_axes
from keras_crossreg.primitives import evaluated_after
from keras_crossreg.rho import check_start
from keras_crossreg.rho import human_value


@keras.saving.register_keras_serializable(package="keras_crossreg")
class GaussianNoiseScale(RhoLayer):
    """Adds Gaussian noise whose scale sigma is learned on `reg_data`.

    `outputs = inputs + sigma * eps`, `eps ~ N(0, 1)`, independent for every
    element of an example. Up to eight examples of a batch share the numbers,
    each in another place: noise costs less than half as much on a CPU, and
    gradients are as precise. The samples of one example, which are averaged,
    share none. Put it behind a normalization without a trainable scale, e.g.
    `BatchNormalization(center=False, scale=False)`, and before the
    activation: anything else can outgrow the noise. Where nothing normalizes,
    use `relative=True`.

    Args:
        initial_scale: Float, the first sigma. Not negative. Defaults to
            `0.3`.
        axis: Integer, tuple of integers or `None`. The axes that have a sigma
            of their own for every index: `-1` for one per channel (`1` where
            channels come first). `None` for one sigma. Defaults to `None`.
        relative: Boolean. If `True`, sigma is in units of the standard
            deviation of each example's own input, over all its elements, with
            its gradient stopped. Elements that a mask hides do not count.
            Defaults to `False`, units of the input.
        seed: Integer, optional random seed.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Tensor of any rank above 1.
        training: Boolean. If `True`, adds one sample of the noise.
        sampling: Boolean, set by `CrossRegModel`. If `True`, adds one sample
            of the noise, and lets the gradient of sigma through.
        mask: Boolean tensor `(batch, ...)`, of what `relative=True` measures.

    Output shape:
        Same as the input shape.

    Raises:
        ValueError: If `initial_scale` is negative or not finite, if `axis`
            holds the batch axis, is out of range or has an unknown size, or if
            `relative=True` with a single element in each example.

    Example:

    >>> x = keras.layers.Dense(64, use_bias=False)(x)
    >>> x = keras.layers.BatchNormalization(center=False, scale=False)(x)
    >>> x = kcr.layers.GaussianNoiseScale()(x)
    >>> x = keras.layers.ReLU()(x)

    Reference:

    - [Brito, 2025](https://arxiv.org/abs/2506.19755), section 4:
      `h = g(u_hat + sigma * eps)`.
    """

    def __init__(
        self,
        initial_scale: float = 0.3,
        axis: int | tuple[int, ...] | None = None,
        relative: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.initial_scale = check_start("initial_scale", initial_scale)
        self.axis = tuple(axis) if isinstance(axis, (list, tuple)) else axis
        self.relative = relative
        self.seed = seed
        self.seed_generator = random.SeedGenerator(seed)

    def build(self, input_shape: Any) -> None:
        if self.relative and set(input_shape[1:]) <= {1}:
            raise ValueError(
                "`relative=True` needs more than one element in each example "
                "to measure its standard deviation. "
                f"Received: input_shape={input_shape}"
            )
        self.rho = self.add_rho(
            "scale",
            start=self.initial_scale,
            shape=shape_of_axes(self.axis, input_shape),
            meaning=self._meaning,
        )

    @property
    def _meaning(self) -> str:
        return "noise sigma" + (" / input std" if self.relative else "")

    @property
    def scale(self) -> Any:
        """Sigma as learned: a float, or an array that broadcasts to inputs."""
        return human_value(self.rho)

    def call(
        self,
        inputs: Any,
        training: bool = False,
        sampling: bool | None = None,
        mask: Any = None,
    ) -> Any:
        # Integers, such as the pixels of images, get noise too.
        inputs = ops.cast(inputs, self.compute_dtype)
        if not (training or sampling):
            return inputs
        sigma = self.rho_value(self.rho, sampling) * self._unit(inputs, mask)
        # The gradient of sigma is a sum over all elements, which is too long
        # for sixteen bits.
        dtype = at_least_float32(inputs.dtype)
        # Numbers that are drawn before their turn would only take memory.
        with evaluated_after(inputs):
            eps = random.normal(
                ops.shape(inputs),
                seed=self.seed_generator,
                dtype=dtype,
                num_samples=random.samples_in_pass() if sampling else 1,
            )
        return inputs + ops.cast(ops.cast(sigma, dtype) * eps, inputs.dtype)

    def _unit(self, inputs: Any, mask: Any) -> Any:
        """What a sigma of 1 is, in units of the inputs."""
        if not self.relative:
            return 1.0
        axes = tuple(range(1, len(inputs.shape)))
        # The squares of large inputs are beyond sixteen bits.
        wide = ops.cast(inputs, "float32")
        if mask is None:
            return ops.stop_gradient(ops.std(wide, axis=axes, keepdims=True))
        # Padding is no part of the example.
        counts = ops.cast(mask, "float32")
        while len(counts.shape) < len(wide.shape):
            counts = ops.expand_dims(counts, -1)
        counts = ops.broadcast_to(counts, ops.shape(wide))

        def mean(values: Any) -> Any:
            total = ops.sum(counts * values, axis=axes, keepdims=True)
            size = ops.sum(counts, axis=axes, keepdims=True)
            return ops.divide_no_nan(total, size)

        variance = mean(ops.square(wide - mean(wide)))
        return ops.stop_gradient(ops.sqrt(variance))

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        config.update(
            {
                "initial_scale": self.initial_scale,
                "axis": self.axis,
                "relative": self.relative,
                "seed": self.seed,
            }
        )
        return config
