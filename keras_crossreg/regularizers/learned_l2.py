"""The Euclidean norm of a weight, learned."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_crossreg.regularizers.learned_regularizer import LearnedRegularizer


@keras.saving.register_keras_serializable(package="keras_crossreg")
class LearnedL2(LearnedRegularizer):
    """Learns the Euclidean norm of a weight: `R = sqrt(sum(weight ** 2))`.

    What ridge regression and weight decay set by a strength. As
    `layers.NormMagnitude` without a wrapper; that one also has a norm for each
    unit.

    Example:

    >>> layer = keras.layers.Dense(
    ...     64, kernel_regularizer=kcr.regularizers.LearnedL2()
    ... )

    Reference:

    - [Brito, 2025](https://arxiv.org/abs/2506.19755), L2 regularization.
    """

    name = "l2_norm"

    def complexity(self, weight: Any) -> Any:
        return ops.sqrt(ops.sum(ops.square(weight)))
