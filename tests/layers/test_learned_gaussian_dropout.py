import keras
import numpy as np
import pytest
from helpers import compile_model
from helpers import gradients
from helpers import make_data
from keras import ops

import keras_crossreg as kcr
from keras_crossreg.layers import LearnedGaussianDropout

SHAPE = (400, 50, 4)


def factors(layer, shape=SHAPE, **flags):
    """What the layer multiplies with."""
    flags = flags or {"training": True}
    return ops.convert_to_numpy(layer(np.ones(shape, "float32"), **flags))


def test_starts_at_its_documented_rate():
    layer = LearnedGaussianDropout()
    layer.build((None, 3))
    assert layer.rate == pytest.approx(0.1)


@pytest.mark.parametrize("flags", [{"training": True}, {"sampling": True}])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_is_the_gaussian_dropout_of_keras(flags, rate):
    found = factors(LearnedGaussianDropout(rate, seed=0), **flags)
    keras_layer = keras.layers.GaussianDropout(rate, seed=0)
    theirs = factors(keras_layer)
    odds = rate / (1 - rate)
    # Eight examples share each number, so that 10,000 of ours are independent.
    # We allow 5 standard errors of the mean and of the variance: a right layer
    # fails with probability 1e-6 each, at this seed never.
    for numbers, n in (found, 10_000), (theirs, theirs.size):
        assert abs(numbers.mean() - 1) < 5 * np.sqrt(odds / n)
        assert abs(numbers.var() / odds - 1) < 5 * np.sqrt(2 / n)


def test_is_in_proportion_to_its_inputs_and_silent_in_inference():
    x = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    layer, same = (LearnedGaussianDropout(0.4, seed=0) for _ in range(2))
    np.testing.assert_array_equal(layer(x), x)
    y = ops.convert_to_numpy(layer(x, training=True))
    np.testing.assert_allclose(
        y, x * factors(same, (20, 3)), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("axis", [None, -1])
def test_gradient_of_the_rate_equals_finite_differences(axis):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 3)).astype("float32")
    w = rng.normal(size=(6, 3))
    layer = LearnedGaussianDropout(0.3, axis=axis, seed=0)
    same = LearnedGaussianDropout(0.3, axis=axis, seed=0)
    layer.build(x.shape)
    (found,) = gradients(
        lambda: ops.multiply(ops.tanh(layer(x, sampling=True)), w), [layer.rho]
    )
    y = ops.convert_to_numpy(same(x, sampling=True))
    eps = (y / x - 1) * np.sqrt(0.7 / 0.3)

    def loss_at(rho):
        # The definition of the layer, with the rate from its logit.
        rate = 1 / (1 + np.exp(-rho))
        return (np.tanh(x * (1 + np.sqrt(rate / (1 - rate)) * eps)) * w).sum()

    rho, h = np.full((1, 3), np.log(0.3 / 0.7)), 1e-4
    steps = np.eye(3) if axis else np.ones((1, 3))
    expected = [
        (loss_at(rho + h * s) - loss_at(rho - h * s)) / (2 * h) for s in steps
    ]
    np.testing.assert_allclose(np.ravel(found), expected, rtol=2e-3)


def test_training_gives_the_rate_no_gradient():
    layer = LearnedGaussianDropout(seed=0)
    layer.build((None, 3))
    x = np.ones((4, 3), "float32")
    (found,) = gradients(lambda: layer(x, training=True), [layer.rho])
    assert found is None or found == 0


def test_extreme_rates_stay_finite():
    layer = LearnedGaussianDropout(seed=0)
    layer.build(SHAPE)
    for rho in (-100.0, 100.0):
        layer.rho.assign(rho)
        assert np.isfinite(factors(layer, sampling=True)).all()


def test_learns_in_a_model():
    x, y = make_data()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(6, activation="relu")(inputs)
    hidden = LearnedGaussianDropout(0.4, seed=1, name="drop")(hidden)
    outputs = keras.layers.Dense(2, activation="softmax")(hidden)
    model = compile_model(kcr.CrossRegModel(inputs, outputs))
    model.fit(x, y, reg_data=(x + 1, y), verbose=0)
    assert model.get_rho()["drop/rate"] != pytest.approx(0.4, abs=1e-5)
    assert np.ptp(model.predict_samples(x, verbose=0), axis=0).max() > 0


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, float("nan"), "often"])
def test_refuses_a_rate_out_of_range(value):
    match = f"above 0 and below 1. Received: initial_rate={value}$"
    with pytest.raises(ValueError, match=match):
        LearnedGaussianDropout(value)


@pytest.mark.parametrize("axis", [0, -3, 3])
def test_axis_errors(axis):
    with pytest.raises(ValueError, match=f"`axis` must .*axis={axis}, "):
        LearnedGaussianDropout(axis=axis).build((None, 2, 3))
