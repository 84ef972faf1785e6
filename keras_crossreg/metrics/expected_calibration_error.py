"""The expected calibration error."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_crossreg._keras import set_lower_is_better
from keras_crossreg.checks import check_boolean
from keras_crossreg.checks import check_integer
from keras_crossreg.metrics.probabilities import standardize

# The histogram that bins of equal mass are made from: so many cells, and for
# each class. Beyond this logit, float32 tells no probability from 0 or 1.
CELLS = 2**14
CELLS_BY_CLASS = 2**10
LARGEST_LOGIT = 17.0


@keras.saving.register_keras_serializable(package="keras_crossreg")
class ExpectedCalibrationError(keras.metrics.Metric):
    """How far confidence is from accuracy, on average.

    Puts the examples into bins by their confidence, the largest predicted
    probability. In each, accuracy should equal the mean confidence:
    `ECE = sum_b |sum of (hit - confidence) in bin b| / n`. Bins hold their
    lower edge, the last one both.

    With two classes, one output or two, the probability of the second class
    takes the place of confidence, and how often it happened that of accuracy.
    All this as `netcal.metrics.ECE`.

    It is biased: even true probabilities score up to `0.4 * sqrt(bins / n)`,
    from the chance in what happened. And it is no proper score: judge models
    by `NegativeLogLikelihood` too.

    Args:
        num_bins: Integer, at least 1. Defaults to `15`.
        equal_mass: Boolean. Bins of equal width if `False`, the default; if
            `True`, of equally many examples. Quantiles need all the examples,
            and a metric sees them in batches: it keeps a histogram of 16,384
            cells (1,024 for each class), equally wide in the logit of the
            confidence, and cuts it where two cells meet. The bins are those of
            the quantiles where each cell holds one example; otherwise a cut
            may have some of a cell's examples on the wrong side. Of 1,000
            predictions with 10 classes that changes the error by 0.0001 on
            average (chance alone: 0.015).
        class_wise: Boolean. If `True`, the mean over classes of the error of
            each class's probability, which sees all that is predicted and not
            the largest alone. Defaults to `False`.
        from_logits: Boolean, whether `y_pred` are logits. Defaults to `False`,
            probabilities.
        name: String. Defaults to `"ece"`.
        dtype: Dtype of the result. Defaults to `keras.config.floatx()`.

    Call arguments:
        y_true: Labels: integers `(n, ...)` or `(n, ..., 1)`, or one-hot
            `(n, ..., classes)`.
        y_pred: Predictions `(n, ..., classes)`, or of the second of two
            classes, `(n, ..., 1)` or `(n,)`. float64 is binned as such.
        sample_weight: Optional weights `(n, ...)`.

    Raises:
        ValueError: If `num_bins` is below 1; if `y_pred` are not
            probabilities, or `y_true` not labels. Compiled code cannot raise:
            there the result is `nan`.

    Example:

    >>> metric = kcr.metrics.ExpectedCalibrationError()
    >>> float(metric([0, 1], [[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]))
    0.2
    >>> model.compile("adam", loss, metrics=[metric])
    >>> float(metric(y_test, model.predict(x_test)))

    Reference:

    - [Guo et al., 2017, On calibration of modern neural
      networks](https://arxiv.org/abs/1706.04599): the error.
    - [Nixon et al., 2019, Measuring calibration in deep
      learning](https://arxiv.org/abs/1904.01685): equal mass, by class.
    """

    def __init__(
        self,
        num_bins: int = 15,
        equal_mass: bool = False,
        class_wise: bool = False,
        from_logits: bool = False,
        name: str = "ece",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.num_bins = check_integer("num_bins", num_bins, 1)
        self.equal_mass = check_boolean("equal_mass", equal_mass)
        self.class_wise = check_boolean("class_wise", class_wise)
        self.from_logits = check_boolean("from_logits", from_logits)
        set_lower_is_better(self)
        # A border lies between one cell and the next.
        self._edges = np.linspace(0, 1, self.num_bins + 1)[1:-1]
        if equal_mass:
            cells = CELLS_BY_CLASS if class_wise else CELLS
            logits = np.linspace(-LARGEST_LOGIT, LARGEST_LOGIT, cells - 1)
            self._edges = 1 / (1 + np.exp(-logits))
        self._built = False
        if not class_wise:
            self._build(1)

    def _build(self, classes: int) -> None:
        shape = (classes, len(self._edges) + 1)
        # A cell holds the sums of weights and of `weight * (hit - confidence)`.
        self.weight = self.add_variable(
            shape, "zeros", dtype=self.dtype, name="weight"
        )
        self.gap = self.add_variable(
            shape, "zeros", dtype=self.dtype, name="gap"
        )
        self.count = self.add_variable(
            (), "zeros", dtype=self.dtype, name="count"
        )
        self._built = True

    def update_state(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> None:
        y, scores, weight, valid = standardize(
            y_true, y_pred, sample_weight, self.from_logits, type(self).__name__
        )
        p = ops.softmax(scores) if self.from_logits else scores
        if not self._built:
            self._build(p.shape[-1])
        if self.class_wise:
            hit, confidence = y, p
        else:
            hit, confidence = confidences(y, p)
        dtype = keras.backend.standardize_dtype(p.dtype)
        if weight is None:
            weight = ops.ones_like(p[:, 0])
        examples = ops.sum(ops.cast(weight != 0, self.dtype))
        weight = ops.broadcast_to(weight[:, None], ops.shape(confidence))

        classes, cells = self.gap.shape
        cell = ops.searchsorted(
            ops.convert_to_tensor(self._edges, dtype),
            # PyTorch warns where it has to copy them itself.
            ops.copy(ops.reshape(confidence, (-1,))),
            side="right",
        )
        cell = ops.reshape(cell, ops.shape(confidence))
        cell = ops.reshape(
            cell + cells * ops.arange(classes, dtype="int32"), (-1,)
        )

        def sum_by_cell(values: Any) -> Any:
            sums = ops.segment_sum(
                ops.reshape(values, (-1,)), cell, num_segments=classes * cells
            )
            return ops.cast(ops.reshape(sums, (classes, cells)), self.dtype)

        gap = ops.where(valid, weight * (hit - confidence), float("nan"))
        self.weight.assign(self.weight + sum_by_cell(weight))
        self.gap.assign(self.gap + sum_by_cell(gap))
        self.count.assign(self.count + examples)

    def result(self) -> Any:
        if not self._built:
            return ops.zeros((), self.dtype)
        gap = self._merge_cells() if self.equal_mass else self.gap
        total = ops.sum(self.weight, axis=-1)
        error = ops.sum(ops.abs(gap), axis=-1)
        return ops.mean(ops.divide_no_nan(error, total))

    def _merge_cells(self) -> Any:
        """From cells to bins of equal mass.

        `numpy.quantile` puts the example of rank k, from 0 to n - 1, into
        bin `floor(bins * k / (n - 1))`; a cell goes where its middle goes.
        """
        weight, classes = ops.convert_to_tensor(self.weight), self.gap.shape[0]
        total = ops.sum(weight, axis=-1, keepdims=True)
        one = ops.divide_no_nan(total, self.count)
        rank = ops.cumsum(weight, axis=-1) - weight + (weight - one) / 2
        place = ops.divide_no_nan(self.num_bins * rank, total - one)
        place = ops.clip(ops.floor(place), 0, self.num_bins - 1)
        place = ops.cast(place, "int32")
        place += self.num_bins * ops.arange(classes, dtype="int32")[:, None]
        merged = ops.segment_sum(
            ops.reshape(self.gap, (-1,)),
            ops.reshape(place, (-1,)),
            num_segments=classes * self.num_bins,
        )
        return ops.reshape(merged, (classes, self.num_bins))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_bins": self.num_bins,
            "equal_mass": self.equal_mass,
            "class_wise": self.class_wise,
            "from_logits": self.from_logits,
        }


def confidences(y: Any, p: Any) -> tuple[Any, Any]:
    """What happened and what was expected of each example, both `(n, 1)`.

    The largest probability and whether its class happened; with two classes,
    whether the second happened, and its probability.
    """
    if p.shape[-1] == 2:
        return y[:, 1:], p[:, 1:]
    hit = ops.argmax(p, axis=-1) == ops.argmax(y, axis=-1)
    confidence = ops.max(p, axis=-1, keepdims=True)
    return ops.cast(hit, confidence.dtype)[:, None], confidence
