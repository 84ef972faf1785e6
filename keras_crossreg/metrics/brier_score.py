"""The Brier score."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_crossreg.metrics.mean_score import MeanScore


@keras.saving.register_keras_serializable(package="keras_crossreg")
class BrierScore(MeanScore):
    """Mean squared distance of predicted probabilities from what happened.

    `sum_c (p_c - y_c)^2`, `y` one-hot, averaged over the examples: 0 at best,
    2 at worst. For two classes half of that, so that a softmax of two outputs
    scores as its sigmoid does, `(p_1 - y_1)^2`, 1 at worst. As
    `sklearn.metrics.brier_score_loss`.

    A proper score: no other probabilities than the true ones have a better
    mean.

    Args:
        from_logits: Boolean, whether `y_pred` are logits. Defaults to `False`,
            probabilities.
        name: String. Defaults to `"brier_score"`.
        dtype: Dtype of the result. Defaults to `keras.config.floatx()`.

    Call arguments:
        y_true: Labels: integers `(n, ...)` or `(n, ..., 1)`, or one-hot
            `(n, ..., classes)`.
        y_pred: Predictions `(n, ..., classes)`, or of the second of two
            classes, `(n, ..., 1)` or `(n,)`.
        sample_weight: Optional weights `(n, ...)`.

    Raises:
        ValueError: If `y_pred` are not probabilities, or `y_true` not labels.
            Compiled code cannot raise: there the result is `nan`.

    Example:

    >>> metric = kcr.metrics.BrierScore()
    >>> float(metric([1, 0], [[0.5, 0.5], [1.0, 0.0]]))
    0.125
    >>> model.compile("adam", loss, metrics=[kcr.metrics.BrierScore()])

    Reference:

    - Brier, 1950, Verification of forecasts expressed in terms of probability.
    """

    def __init__(
        self,
        from_logits: bool = False,
        name: str = "brier_score",
        dtype: Any = None,
    ) -> None:
        super().__init__(from_logits=from_logits, name=name, dtype=dtype)

    def score(self, y: Any, scores: Any) -> Any:
        p = ops.softmax(scores) if self.from_logits else scores
        distance = ops.sum(ops.square(p - y), axis=-1)
        return distance / 2 if p.shape[-1] == 2 else distance
