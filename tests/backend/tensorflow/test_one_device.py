"""Learned regularizers under a strategy of one device."""

import contextlib

import keras
import pytest
import tensorflow as tf
from helpers import compile_model
from helpers import make_data

import keras_crossreg as kcr


def learned(scope, run_eagerly):
    x, y = make_data()
    with scope:
        keras.utils.set_random_seed(0)
        inputs = keras.Input((3,))
        hidden = keras.layers.Dense(
            4, kernel_regularizer=kcr.regularizers.LearnedL1()
        )(inputs)
        model = kcr.CrossRegModel(
            inputs, keras.layers.Dense(2, activation="softmax")(hidden)
        )
        compile_model(model, run_eagerly=run_eagerly)
    model.fit(x, y, reg_data=make_data(12, seed=1), batch_size=8, verbose=0)
    model.evaluate(x, y, verbose=0)
    return list(model.get_rho().values())


@pytest.mark.parametrize(
    "run_eagerly", [pytest.param(True, marks=pytest.mark.slow), False]
)
@pytest.mark.parametrize(
    "strategy",
    [
        lambda: tf.distribute.OneDeviceStrategy("/cpu:0"),
        lambda: tf.distribute.MirroredStrategy(["/cpu:0"]),
    ],
    ids=["one", "mirrored"],
)
def test_it_learns_what_it_would_without(strategy, run_eagerly):
    expected = learned(contextlib.nullcontext(), run_eagerly)
    found = learned(strategy().scope(), run_eagerly)
    assert found == pytest.approx(expected, rel=1e-5)
