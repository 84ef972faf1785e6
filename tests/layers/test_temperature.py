import keras
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from helpers import assert_same
from helpers import compile_model
from helpers import gradients
from helpers import make_data
from helpers import values
from keras import Variable
from keras import ops

import keras_crossreg as kcr
from keras_crossreg.layers import Temperature

LOGITS = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
FROM_LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def test_starts_at_its_documented_temperature():
    layer = Temperature()
    layer.build((None, 3))
    assert layer.temperature == pytest.approx(1.0)


@pytest.mark.parametrize("flags", [{}, {"training": False}, {"sampling": True}])
def test_divides(flags):
    outputs = Temperature(2.5)(LOGITS, **flags)
    np.testing.assert_allclose(outputs, LOGITS / 2.5, rtol=1e-6)


def test_training_is_without_it():
    outputs = Temperature(2.5)(LOGITS, training=True)
    np.testing.assert_array_equal(outputs, LOGITS)


def test_gradients():
    layer, x = Temperature(2.5), Variable(LOGITS)
    layer.build(LOGITS.shape)
    by_rho, by_x = gradients(
        lambda: layer(ops.convert_to_tensor(x), sampling=True), [layer.rho, x]
    )
    # T = softplus(rho): dT / drho = sigmoid(rho) = 1 - exp(-T).
    expected = -LOGITS.sum() / 2.5**2 * (1 - np.exp(-2.5))
    assert float(by_rho) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(by_x, np.full_like(LOGITS, 1 / 2.5), rtol=1e-6)


def test_in_inference_t_has_no_gradient():
    layer, x = Temperature(2.5), Variable(LOGITS)
    layer.build(LOGITS.shape)
    by_rho, by_x = gradients(
        lambda: layer(ops.convert_to_tensor(x)), [layer.rho, x]
    )
    assert by_rho is None
    np.testing.assert_allclose(by_x, np.full_like(LOGITS, 1 / 2.5), rtol=1e-6)


@pytest.mark.parametrize(
    "policy", ["mixed_float16", "mixed_bfloat16", "float64"]
)
def test_divides_under_every_dtype_policy(policy):
    y = Temperature(2.0, dtype=policy)(LOGITS)
    np.testing.assert_allclose(
        ops.cast(y, "float32"), LOGITS / 2, rtol=1e-2, atol=1e-2
    )


def test_the_gradient_of_many_half_precision_logits_is_finite():
    x = np.full((1000, 100), 100.0, "float16")
    layer = Temperature(dtype="mixed_float16")
    layer.build(x.shape)
    (by_rho,) = gradients(
        lambda: ops.cast(layer(x, sampling=True), "float32"), [layer.rho]
    )
    expected = -1e7 * (1 - np.exp(-1))
    assert float(by_rho) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "hot"])
def test_refuses_a_temperature_that_is_not_positive(value):
    match = f"number above 0. Received: initial_temperature={value}$"
    with pytest.raises(ValueError, match=match):
        Temperature(value)


# In a model.


def make_model(temperature=True):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4, activation="relu")(inputs)
    outputs = keras.layers.Dense(2)(x)
    if temperature:
        outputs = Temperature(name="temperature")(outputs)
    return kcr.CrossRegModel(inputs, outputs)


def test_theta_trains_as_without_it():
    x, y = make_data()
    theta = []
    for temperature in (True, False):
        model = compile_model(make_model(temperature), loss=FROM_LOGITS)
        reg = {"reg_data": make_data(40, seed=1)} if temperature else {}
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0, **reg)
        theta.append(values(model.theta_variables))
        if temperature:
            assert model.get_rho()["temperature/temperature"] != 1.0
    assert_same(*theta)


def test_every_prediction_is_divided():
    x, _ = make_data()
    model = make_model()
    undivided = model.predict(x, verbose=0)
    model.set_rho({"temperature/temperature": 4.0})
    for divided in (model.predict(x, verbose=0), model(x)):
        np.testing.assert_allclose(divided, undivided / 4, rtol=1e-5)


def overconfident(rows, seed):
    """Labels of softmax(z), and logits 3 z."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, 3)) * 1.5
    y = (z + rng.gumbel(size=z.shape)).argmax(axis=1)
    return (3 * z).astype("float32"), y


def nll(logits, y, temperature):
    scores = scipy.special.log_softmax(logits / temperature, axis=1)
    return -scores[np.arange(len(y)), y].mean()


@pytest.mark.parametrize("start", [1.0, 8.0])
def test_equals_temperature_scaling_where_theta_is_fixed(start):
    reg, test = overconfident(600, 1), overconfident(2000, 2)
    inputs = keras.Input((3,))
    x = keras.layers.Dense(3, "linear", kernel_initializer="identity")(inputs)
    layer = Temperature(start)
    model = compile_model(
        kcr.CrossRegModel(inputs, layer(x)),
        optimizer=keras.optimizers.SGD(0.0),
        rho_optimizer=keras.optimizers.Adam(0.1),
        loss=FROM_LOGITS,
        num_samples=1,
        run_eagerly=False,
    )
    model.fit(
        *overconfident(150, 0),
        batch_size=1,
        reg_data=reg,
        reg_batch_size=600,
        verbose=0,
    )
    best = scipy.optimize.minimize_scalar(
        lambda t: nll(*reg, t), bounds=(0.1, 20), method="bounded"
    ).x
    assert 2 < best < 4
    assert layer.temperature == pytest.approx(best, rel=0.01)
    # The loss on other data is the best too, and much below that without T.
    assert nll(*test, layer.temperature) == pytest.approx(
        nll(*test, best), rel=0.01
    )
    evaluated = model.evaluate(*test, batch_size=2000, verbose=0)
    assert evaluated == pytest.approx(nll(*test, layer.temperature), rel=1e-4)
    assert evaluated < 0.8 * nll(*test, 1.0)
