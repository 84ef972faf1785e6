"""Pictures of what is learned, with matplotlib."""

from keras_crossreg.visualization.learning_curves import plot_learning_curves
from keras_crossreg.visualization.reliability_diagram import (
    plot_reliability_diagram,
)
from keras_crossreg.visualization.rho_by_layer import plot_rho_by_layer
from keras_crossreg.visualization.rho_history import plot_rho_history

__all__ = [
    "plot_learning_curves",
    "plot_reliability_diagram",
    "plot_rho_by_layer",
    "plot_rho_history",
]
