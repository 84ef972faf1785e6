"""The smoothness of a weight along an axis, learned."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_crossreg.checks import check_integer
from keras_crossreg.regularizers.learned_regularizer import LearnedRegularizer


@keras.saving.register_keras_serializable(package="keras_crossreg")
class LearnedSmoothness(LearnedRegularizer):
    """Learns how much a weight may vary along its first axis.

    `R = sqrt(sum((D^order weight) ** 2))`, with D the difference of neighbours
    along axis 0: of the inputs of a `Dense` layer, which must have an order,
    such as values on a grid, frequencies, times or coefficients of a B-spline.
    With `order=2` what costs nothing is a straight line; a P-spline with a
    learned penalty.

    Args:
        order: Integer, at least 1, the order of the differences. The weight
            must be longer along axis 0. Defaults to `2`.

    Raises:
        ValueError: If `order` is no integer of 1 or more, or the weight is
            not longer than it.

    Example:

    >>> layer = keras.layers.Dense(
    ...     1, kernel_regularizer=kcr.regularizers.LearnedSmoothness(order=2)
    ... )

    Reference:

    - [Brito, 2025](https://arxiv.org/abs/2506.19755), spline smoothing.
    - [Eilers and Marx, 1996](https://doi.org/10.1214/ss/1038425655), penalties
      on differences of B-spline coefficients.
    """

    name = "roughness"

    def __init__(self, order: int = 2) -> None:
        self.order: int = check_integer("order", order, 1)

    def complexity(self, weight: Any) -> Any:
        if weight.shape[0] <= self.order:
            raise ValueError(
                "`LearnedSmoothness` expects a weight that is longer along "
                f"its first axis than `order`. Received: order={self.order}, "
                f"weight of shape {tuple(weight.shape)}"
            )
        difference = weight
        for _ in range(self.order):
            difference = difference[1:] - difference[:-1]
        return ops.sqrt(ops.sum(ops.square(difference)))

    def get_config(self) -> dict[str, Any]:
        return {"order": self.order}
