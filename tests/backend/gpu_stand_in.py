"""What a GPU brings to the tests, on a CPU: `AS_ON_A_GPU=1`.

Noise of the backend's own generator; and XLA on TensorFlow, for every model
that does not say otherwise. PyTorch compiles nothing of its own accord, and
JAX compiles on a CPU too.
"""

import os

import keras
from keras.src.trainers.trainer import model_supports_jit

from keras_crossreg import primitives

# Of `keras.Model`: what `jit_compile="auto"` means.
RESOLVES_AUTO = "_resolve_auto_jit_compile"
IS_ASKED = bool(os.environ.get("AS_ON_A_GPU"))


def _chooses_xla(model):
    """As Keras does where there is more than a CPU."""
    import tensorflow as tf

    return model_supports_jit(model) and not tf.distribute.has_strategy()


if IS_ASKED:
    primitives.shares_numbers = lambda: False
    if keras.backend.backend() == "tensorflow":
        setattr(keras.Model, RESOLVES_AUTO, _chooses_xla)
