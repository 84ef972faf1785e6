"""The loss and the metrics on regularization batches."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops
from keras import tree

from keras_crossreg._keras import CompileMetrics
from keras_crossreg._keras import build_metrics
from keras_crossreg._keras import unscale_loss_for_distribution


class RegMetrics:
    """`reg_loss`, and each compiled metric as `reg_<name>`.

    A plain object, so that Keras does not count them into the model's own.

    Args:
        metrics: The compiled metrics, with a state of their own, or `None`.
    """

    def __init__(self, metrics: CompileMetrics | None = None) -> None:
        self.loss = keras.metrics.Mean(name="loss")
        self.metrics = metrics

    @property
    def built(self) -> bool:
        return self.metrics is None or bool(self.metrics.built)

    def build(self, *symbolic: Any) -> None:
        """Creates the state, from symbolic y, y_pred and sample weights."""
        build_metrics(self.metrics, *symbolic)

    def reset(self) -> None:
        self.loss.reset_state()
        if self.metrics is not None:
            self.metrics.reset_state()

    def update(self, data: Any, loss: Any, y_pred: Any) -> dict[str, Any]:
        """Adds a regularization batch; returns the results so far."""
        _, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self.loss.update_state(
            unscale_loss_for_distribution(loss),
            sample_weight=ops.shape(tree.flatten(y_pred)[0])[0],
        )
        if self.metrics is not None:
            self.metrics.update_state(y, y_pred, sample_weight)
        return self.results()

    def results(self) -> dict[str, Any]:
        results = {"reg_loss": self.loss.result()}
        if self.metrics is not None:
            for name, value in self.metrics.result().items():
                results[f"reg_{name}"] = value
        return results
