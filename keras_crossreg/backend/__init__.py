"""The trainer of the Keras backend in use."""

import keras

if keras.backend.backend() == "tensorflow":
    from keras_crossreg.backend.tensorflow.gradient import gradient
    from keras_crossreg.backend.tensorflow.gradient import value_and_gradient
    from keras_crossreg.backend.tensorflow.gradient import vector_jacobian
    from keras_crossreg.backend.tensorflow.order import after
    from keras_crossreg.backend.tensorflow.random import uniform
    from keras_crossreg.backend.tensorflow.replicas import replica_index
    from keras_crossreg.backend.tensorflow.trainer import (
        TensorFlowTrainer as Trainer,
    )
else:
    raise ImportError(
        "keras_crossreg trains on the TensorFlow backend so far. Set "
        "`KERAS_BACKEND=tensorflow` before Keras is imported. "
        f"Received: keras.backend.backend()={keras.backend.backend()}"
    )

__all__ = [
    "Trainer",
    "after",
    "gradient",
    "replica_index",
    "uniform",
    "value_and_gradient",
    "vector_jacobian",
]
