"""Models of the ablation with steps of their own, by TensorFlow."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from common import Row
from common import kcr


@keras.saving.register_keras_serializable(package="ablation")
class Deterministic(kcr.CrossRegModel):
    """Its regularization pass draws no noise."""

    def rho_step(self, data: Any, train_data: Any = None) -> Row:
        x, y = data
        rho = [v.value for v in self.rho_variables]
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=False))
        gradients = tape.gradient(loss, rho, unconnected_gradients="zero")
        self.rho_optimizer.apply(gradients, self.rho_variables)
        # Nothing for the logs.
        return {}


@keras.saving.register_keras_serializable(package="ablation")
class Joint(kcr.CrossRegModel):
    """Moves theta and rho by the loss of the training batch."""

    def train_step(self, data: Any) -> Row:
        x, y = data
        theta, rho = self.theta_variables, self.rho_variables
        variables = [v.value for v in theta], [v.value for v in rho]
        with tf.GradientTape() as tape:
            tape.watch(variables)
            # Rho get a gradient in sampling passes alone.
            y_pred = self(x, training=True, sampling=True)
            loss = self.compute_loss(x, y, y_pred)
        of_theta, of_rho = tape.gradient(loss, variables)
        self.optimizer.apply(of_theta, theta)
        self.rho_optimizer.apply(of_rho, rho)
        for metric in self.metrics:
            is_loss = metric.name == "loss"
            metric.update_state(*((loss,) if is_loss else (y, y_pred)))
        return self.get_metrics_result()
