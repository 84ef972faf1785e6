"""The base class of scores that are means over examples."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_crossreg._keras import set_lower_is_better
from keras_crossreg.checks import check_boolean
from keras_crossreg.metrics.probabilities import standardize


class MeanScore(keras.metrics.Mean):
    """The mean over examples of what a subclass's `score` says of each."""

    def __init__(self, from_logits: bool, name: str, dtype: Any) -> None:
        super().__init__(name=name, dtype=dtype)
        self.from_logits = check_boolean("from_logits", from_logits)
        set_lower_is_better(self)

    def score(self, y: Any, scores: Any) -> Any:
        """The score of each example.

        Args:
            y: One-hot labels `(n, classes)`, two classes or more.
            scores: Probabilities, or logits, of the same shape.

        Returns:
            A tensor `(n,)`.
        """
        raise NotImplementedError

    def update_state(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> None:
        y, scores, weight, valid = standardize(
            y_true, y_pred, sample_weight, self.from_logits, type(self).__name__
        )
        values = ops.where(valid, self.score(y, scores), float("nan"))
        super().update_state(values, sample_weight=weight)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "from_logits": self.from_logits}
