"""The base class of regularizers whose strength is learned."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_crossreg import primitives


class LearnedRegularizer(keras.regularizers.Regularizer):
    """Base class of weight regularizers without a strength to choose.

    `kernel_regularizer=` of any Keras layer in a `CrossRegModel`. A subclass
    says how complex a weight is, `R(weight)`; the gradient is then split in
    two, `g = g_rho + g_perp`, where `g_rho` is its projection on `grad R`:

    - the training batch applies `g_perp`, which moves the weight within its
      level set of R. The optimizer of theta sees `g_perp` alone; what its
      step leaves over of the level set, a retraction takes back.
    - the regularization batch applies `g_rho`, which moves the weight across
      level sets. Its rho is R itself, in the list of rho as
      `<path of the weight>/<name>`, positive and learned as its logarithm: a
      step of Adam with learning rate 0.1 changes it by 10 %.

    R is no state of its own: it is read from the weight, in a file too. To
    the loss a learned regularizer adds nothing, so that in a plain
    `keras.Model` it has no effect. It works on one device.

    A weight starts at the complexity that its initializer drew. It must not
    start where R is 0 or has no gradient.

    Example:

    >>> @keras.saving.register_keras_serializable()
    ... class LearnedL4(kcr.regularizers.LearnedRegularizer):
    ...     def complexity(self, weight):
    ...         return ops.sum(weight ** 4) ** 0.25
    >>> layer = keras.layers.Dense(64, kernel_regularizer=LearnedL4())

    Reference:

    - [Brito, 2025](https://arxiv.org/abs/2506.19755), section 3: the
      decomposition of the gradient.
    """

    #: The last part of the path of its rho, and what the table calls it.
    name = "complexity"

    def complexity(self, weight: Any) -> Any:
        """R: how complex a weight is, a scalar tensor, not negative."""
        raise NotImplementedError(
            f"`{type(self).__name__}` must implement `complexity(weight)`."
        )

    def __call__(self, weight: Any) -> Any:
        """What it adds to the loss: nothing."""
        # Losses have this dtype, whatever the weight has.
        return ops.zeros((), dtype=keras.config.floatx())

    def tangent(self, weight: Any, gradient: Any) -> Any:
        """`g_perp`: the gradient without its part along `grad R`."""
        _, normal = primitives.value_and_gradient(self.complexity, weight)
        along = ops.divide_no_nan(
            ops.sum(normal * gradient), ops.sum(normal * normal)
        )
        return gradient - along * normal

    def move(self, weight: Any, level: Any) -> Any:
        """One Newton step along `grad R` towards the level set `R = level`.

        Where the weight lies on it, the value is the weight, and the
        derivatives are `grad R / |grad R|^2` in the level and the projection
        on the tangent space in the weight: the parametrization that
        `hypergradient="implicit"` differentiates.
        """
        value, normal = primitives.value_and_gradient(self.complexity, weight)
        step = ops.divide_no_nan(level - value, ops.sum(normal * normal))
        return weight + step * normal

    def retract(self, weight: Any, level: Any, num_steps: int = 3) -> Any:
        """Back onto the level set, by Newton steps."""
        for _ in range(num_steps):
            weight = self.move(weight, level)
        return weight

    def after_step(self, before: Any, direction: Any, after: Any) -> Any:
        """What a training step may reach; here everything.

        Args:
            before: The weight before the step.
            direction: The descent direction, `-g_perp`.
            after: The weight after the step of the optimizer.
        """
        return after

    def get_config(self) -> dict[str, Any]:
        return {}
