"""Concrete Dropout, as published.

Gal, Hron and Kendall, *Concrete Dropout*, NeurIPS 2017 (arXiv 1705.07832).
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_crossreg_benchmarks")
class ConcreteDropout(keras.layers.Wrapper):
    """Drops inputs of a dense layer at a rate that its loss learns.

    The dropout is on in predictions too.

    Args:
        layer: A layer with a `kernel`, whose inputs are dropped.
        rows: How many rows train.
        length_scale: Of the prior of the kernel.
        initial_rate: Where the rate starts.
        temperature: Of the relaxation.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        rows: int,
        length_scale: float = 1e-4,
        initial_rate: float = 0.1,
        temperature: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, **kwargs)
        # For a mean of cross-entropies, their factor of 2 is left out.
        self.of_weights, self.of_rate = length_scale**2 / rows, 1 / rows
        self.initial_logit = -float(ops.log(1 / initial_rate - 1))
        self.temperature = temperature
        self.random = keras.random.SeedGenerator()

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.inputs = input_shape[-1]
        start = keras.initializers.Constant(self.initial_logit)
        self.logit = self.add_weight(shape=(), initializer=start, name="logit")

    @property
    def rate(self) -> Any:
        return ops.sigmoid(self.logit)

    def call(self, x: Any) -> Any:
        p, tiny = self.rate, keras.config.epsilon()
        entropy = -p * ops.log(p) - (1 - p) * ops.log(1 - p)
        weights = ops.sum(ops.square(self.layer.kernel))
        self.add_loss(
            self.of_weights * weights / (1 - p)
            - self.of_rate * self.inputs * entropy
        )
        u = keras.random.uniform(ops.shape(x), seed=self.random)
        odds = ops.log(u + tiny) - ops.log(1 - u + tiny)
        dropped = ops.sigmoid((self.logit + odds) / self.temperature)
        return self.layer(x * (1 - dropped) / (1 - p))
