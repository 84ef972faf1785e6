"""`evaluate`, `predict` and `predict_samples`."""

import keras
import numpy as np
import pytest
from helpers import Rows
from helpers import assert_same
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from helpers import values

import keras_crossreg as kcr
from keras_crossreg.primitives import SAMPLES_PER_PASS

pytestmark = pytest.mark.backend

X, Y = make_data(20, seed=3)


def test_evaluate_is_the_score_of_predict():
    model = compile_model(make_model(), metrics=["accuracy"])
    p = model.predict(X, verbose=0)
    loss, accuracy = model.evaluate(X, Y, verbose=0)
    assert loss == pytest.approx(-np.log(p[np.arange(20), Y]).mean(), rel=1e-5)
    assert accuracy == pytest.approx((p.argmax(-1) == Y).mean())


def test_predictions_repeat():
    model = compile_model(make_model())
    first = model.predict(X, verbose=0)
    model.evaluate(X, Y, verbose=0)
    model.predict_samples(X, 3, verbose=0)
    np.testing.assert_array_equal(first, model.predict(X, verbose=0))


def test_predictions_are_noisy_averages():
    model = compile_model(make_model(), num_samples=4)
    exact = keras.ops.convert_to_numpy(model(X, training=False))
    assert np.abs(model.predict(X, verbose=0) - exact).max() > 1e-3


def test_validation_does_not_change_training():
    results = []
    for validation_data in (None, (X, Y)):
        model = compile_model(make_model(dropout=0.5), run_eagerly=False)
        fit(model, epochs=2, validation_data=validation_data)
        results.append(values(model.weights))
    assert_same(*results)


def test_samples():
    model = compile_model(make_model(), eval_num_samples=6, run_eagerly=False)
    samples = model.predict_samples(X, verbose=0)
    assert samples.shape == (6, 20, 2)
    assert all((samples[0] != s).any() for s in samples[1:])
    np.testing.assert_allclose(
        samples.mean(0), model.predict(X, verbose=0), rtol=1e-5
    )
    assert model.predict_samples(X, 3, verbose=0).shape == (3, 20, 2)
    # In batches too, the samples lie in order.
    assert model.predict_samples(X, 3, 7, verbose=0).shape == (3, 20, 2)


def test_samples_refuse_no_samples():
    with pytest.raises(ValueError, match="Received: num_samples=0$"):
        make_model().predict_samples(X, 0)


def test_eval_num_samples_defaults_to_num_samples():
    model = compile_model(make_model(), num_samples=3)
    assert len(model.predict_samples(X, verbose=0)) == 3


def test_more_samples_come_closer_to_the_mean():
    # A model is linear in the noise: a mean of K is off by sigma |w| / sqrt(K).
    # The mean squared deviation over 20,000 rows has a relative standard error
    # of sqrt(2 / 20000) = 1%; we allow 5: it fails with probability 1e-6.
    inputs = keras.Input((1,))
    model = kcr.CrossRegModel(
        inputs, kcr.layers.GaussianNoiseScale(0.7, seed=1)(inputs)
    )
    x = np.zeros((20_000, 1), "float32")
    for k in (1, 16):
        model.compile(loss="mse", eval_num_samples=k, run_eagerly=True)
        predictions = model.predict(x, batch_size=20_000, verbose=0)
        assert (predictions**2).mean() * k == pytest.approx(0.49, rel=0.05)


def test_a_model_that_is_not_compiled_predicts():
    model = make_model()
    assert model.predict(X, verbose=0).shape == (20, 2)


def test_prediction_without_rho_has_equal_samples():
    samples = make_model(rho=False).predict_samples(X, 2, verbose=0)
    np.testing.assert_array_equal(samples[0], samples[1])


@pytest.mark.parametrize(
    ("num_samples", "run_eagerly"), [(70, True), (23, False)]
)
def test_many_samples_take_several_passes(num_samples, run_eagerly):
    inputs, layer = keras.Input((3,)), Rows()
    x = layer(kcr.layers.GaussianNoiseScale(seed=1)(inputs))
    model = kcr.CrossRegModel(inputs, keras.layers.Dense(2)(x))
    model.compile(
        loss="mse", eval_num_samples=num_samples, run_eagerly=run_eagerly
    )
    # A model with a layer of one's own is looked at first, once.
    model.make_predict_function()
    layer.rows.clear()
    samples = model.predict_samples(X, verbose=0)
    assert set(layer.rows) == {SAMPLES_PER_PASS * 20}
    assert samples.shape == (num_samples, 20, 2)
    assert len(np.unique(samples[:, 0, 0])) == num_samples
    predictions = model.predict(X, verbose=0)
    np.testing.assert_allclose(samples.mean(0), predictions, rtol=1e-5)
    np.testing.assert_array_equal(model.predict(X, verbose=0), predictions)
    # The last pass ends early: all others are those of fewer samples.
    first = model.predict_samples(X, 16, verbose=0)
    np.testing.assert_array_equal(samples[:16], first)
    # As many samples as fit one pass are one pass.
    layer.rows.clear()
    model.predict_samples(X, 3, verbose=0)
    assert set(layer.rows) == {3 * 20}
