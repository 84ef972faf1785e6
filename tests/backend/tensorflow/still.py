"""One training that must not depend on the number of replicas."""

import keras
import numpy as np
import tensorflow as tf
from helpers import compile_model
from helpers import make_data
from helpers import values

import keras_crossreg as kcr


def still_model(cls=kcr.CrossRegModel, batch_norm=True):
    """A rho that learns without noise, and a noise that is fixed near 0."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    dense = keras.layers.Dense(4, use_bias=False, kernel_regularizer="l2")
    x = kcr.layers.NormMagnitude(dense, name="norm")(inputs)
    if batch_norm:
        x = keras.layers.BatchNormalization()(x)
    noise = kcr.layers.GaussianNoiseScale(0.0, name="noise")
    noise.trainable = False
    x = keras.layers.Activation("tanh")(noise(x))
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    return cls(inputs, outputs)


def twin_data():
    """24 rows; both halves of each batch of 8 are the same four.

    For BatchNormalization, which takes the statistics of the rows that a
    replica has.
    """
    x, y = (a.reshape(3, 4, -1) for a in make_data(12))
    x, y = (np.concatenate([a, a], axis=1) for a in (x, y))
    return x.reshape(24, 3), y.reshape(24)


def train(strategy=None, compile_arguments=None, make=still_model, **kwargs):
    """Three epochs of three steps, four rho steps.

    By gradient descent, which shows the scale of a gradient.
    """
    defaults = dict(
        optimizer=keras.optimizers.SGD,
        rho_optimizer=keras.optimizers.SGD,
        reg_freq=2,
        metrics=["accuracy"],
        run_eagerly=False,
    )
    arguments = {**defaults, **(compile_arguments or {})}
    with (strategy or tf.distribute.get_strategy()).scope():
        model = make()
        for name, rate in (("optimizer", 0.2), ("rho_optimizer", 0.5)):
            arguments[name] = arguments[name](rate)
        compile_model(model, **arguments)
    x, y = twin_data()
    defaults = dict(
        x=x,
        y=y,
        batch_size=8,
        epochs=3,
        reg_data=make_data(14, seed=1),
        reg_batch_size=6,
        validation_data=make_data(10, seed=2),
        shuffle=False,
        verbose=0,
    )
    history = model.fit(**{**defaults, **kwargs}).history
    return model, history


def assert_close(first, second):
    """The same training, within 1e-5."""
    (model, history), (other, other_history) = first, second
    assert set(history) == set(other_history)
    for name, value in history.items():
        np.testing.assert_allclose(
            value, other_history[name], rtol=1e-5, atol=1e-5, err_msg=name
        )
    assert len(model.weights) == len(other.weights)
    for a, b in zip(model.weights, other.weights, strict=True):
        np.testing.assert_allclose(
            *values([a, b]), rtol=1e-5, atol=1e-5, err_msg=a.path
        )
