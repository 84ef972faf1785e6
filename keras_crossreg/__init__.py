"""Regularization that tunes itself while a Keras model trains."""

from typing import Any

# The first import says what to install where Keras has no backend.
from keras_crossreg import supported_backends

# isort: split
from keras_crossreg import callbacks
from keras_crossreg import metrics
from keras_crossreg import visualization
from keras_crossreg.rho import is_rho
from keras_crossreg.rho import mark_rho
from keras_crossreg.uncertainty import uncertainty

if supported_backends.is_supported():
    from keras_crossreg import hypergradients
    from keras_crossreg import layers
    from keras_crossreg import optimizers
    from keras_crossreg import random
    from keras_crossreg import regularizers
    from keras_crossreg import testing
    from keras_crossreg.add_noise import add_noise
    from keras_crossreg.averaged import averaged
    from keras_crossreg.cross_reg_model import CrossRegModel
    from keras_crossreg.learn_regularizers import learn_regularizers
    from keras_crossreg.refit import refit
    from keras_crossreg.wrap import wrap
else:

    def __getattr__(name: str) -> Any:
        """Says on which backends the rest is to be had."""
        if name in __all__:
            supported_backends.check_backend()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.2.0.dev0"

__all__ = [
    "CrossRegModel",
    "add_noise",
    "averaged",
    "callbacks",
    "hypergradients",
    "is_rho",
    "layers",
    "learn_regularizers",
    "mark_rho",
    "metrics",
    "optimizers",
    "random",
    "refit",
    "regularizers",
    "testing",
    "uncertainty",
    "visualization",
    "wrap",
]
