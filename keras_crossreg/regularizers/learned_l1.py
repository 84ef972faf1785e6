"""The sum of the absolute values of a weight, learned."""

from __future__ import annotations

from typing import Any

import keras

from keras_crossreg.regularizers.learned_group_l1 import LearnedGroupL1
from keras_crossreg.regularizers.learned_regularizer import LearnedRegularizer


@keras.saving.register_keras_serializable(package="keras_crossreg")
class LearnedL1(LearnedGroupL1):
    """Learns the sum of absolute values: `R = sum(abs(weight))`.

    What the lasso sets by a strength. Weights become exactly zero: a step
    that would change a sign ends at zero, and the way back onto the level set
    is the Euclidean projection onto the ball of radius R, which makes all
    shorter by the same length. A zero comes back where the gradient there is
    larger than that of the weights that are not.

    Steps of mini-batches are noisy, and so is then which weights are zero: let
    the learning rate decay, or train on whole batches. And along the path of
    the lasso the regularization loss may have several minima: with `"direct"`
    above all, the answer can depend on the start.

    Example:

    >>> layer = keras.layers.Dense(
    ...     1, kernel_regularizer=kcr.regularizers.LearnedL1()
    ... )

    Reference:

    - [Brito, 2025](https://arxiv.org/abs/2506.19755), L1 regularization.
    - [Duchi et al., 2008](https://doi.org/10.1145/1390156.1390191), projection
      onto the ball.
    """

    name = "l1_norm"

    def __init__(self) -> None:
        super().__init__(axis=())

    def _other_axes(self, weight: Any) -> tuple[int, ...]:
        # Every number is a group of its own.
        return ()

    def get_config(self) -> dict[str, Any]:
        return LearnedRegularizer.get_config(self)
