"""What is nonlinear in a graph, and where noise may go before it."""

from __future__ import annotations

from typing import Any

import keras

from keras_crossreg.rewriting.graph import variables_of

NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
    keras.layers.UnitNormalization,
)
ACTIVATIONS = (
    keras.layers.Activation,
    keras.layers.ELU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ReLU,
)
OTHER_NONLINEAR = (
    keras.layers.Bidirectional,
    keras.layers.RNN,
    keras.layers.Softmax,
)
# In these layers `call` ends with `activation`, and nothing else uses it.
WITH_ACTIVATION = (
    keras.layers.Conv1D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3D,
    keras.layers.Conv3DTranspose,
    keras.layers.Dense,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.EinsumDense,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
# Activations can be operations in the graph, which go by these class names.
OPERATIONS = {name.replace("_", "") for name in dir(keras.activations)}
NOT_HIDDEN = (
    keras.activations.linear,
    keras.activations.softmax,
    keras.activations.log_softmax,
)


def is_nonlinear(operation: Any) -> bool:
    if not isinstance(operation, keras.layers.Layer):
        return type(operation).__name__.lower() in OPERATIONS
    activation = getattr(operation, "activation", keras.activations.linear)
    return (
        activation not in (None, keras.activations.linear)
        or isinstance(operation, ACTIVATIONS[1:])
        or isinstance(operation, OTHER_NONLINEAR)
    )


def is_hidden(operation: Any) -> bool:
    """Whether noise may go before this activation."""
    if not isinstance(operation, keras.layers.Layer):
        name = type(operation).__name__.lower()
        return name in OPERATIONS and "softmax" not in name
    if isinstance(operation, ACTIVATIONS[1:]):
        return True
    activation = getattr(operation, "activation", None)
    if activation is None or activation in NOT_HIDDEN:
        return False
    # A subclass may do something after its activation.
    return isinstance(operation, keras.layers.Activation) or (
        type(operation) in WITH_ACTIVATION and not variables_of(activation)
    )
