"""The negative log-likelihood."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_crossreg.metrics.mean_score import MeanScore


@keras.saving.register_keras_serializable(package="keras_crossreg")
class NegativeLogLikelihood(MeanScore):
    """Mean of `-log p` of the class that happened, in nats.

    One metric for labels of every form, one output or several. Probabilities
    are kept from 0 and 1 by the machine epsilon of their dtype, as
    `sklearn.metrics.log_loss` does: no example costs more than 15.9 in
    float32, or 36.0 in float64. Logits have no such limit.

    A proper score: no other probabilities than the true ones have a better
    mean.

    Args:
        from_logits: Boolean, whether `y_pred` are logits. Defaults to `False`,
            probabilities.
        name: String. Defaults to `"nll"`.
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

    >>> metric = kcr.metrics.NegativeLogLikelihood()
    >>> float(metric([1, 0], [[0.5, 0.5], [1.0, 0.0]]))
    0.3465736
    >>> model.compile("adam", loss, metrics=[metric])
    """

    def __init__(
        self, from_logits: bool = False, name: str = "nll", dtype: Any = None
    ) -> None:
        super().__init__(from_logits=from_logits, name=name, dtype=dtype)

    def score(self, y: Any, scores: Any) -> Any:
        if self.from_logits:
            log_p = ops.log_softmax(scores)
        else:
            dtype = keras.backend.standardize_dtype(scores.dtype)
            epsilon = float(np.finfo(dtype).eps)
            log_p = ops.log(ops.clip(scores, epsilon, 1 - epsilon))
        # A class whose y is 0 adds nothing, whatever is predicted for it: 0
        # times infinity is no number.
        return -ops.sum(ops.where(y == 0, 0.0, y * log_p), axis=-1)
