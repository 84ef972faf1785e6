"""Rho steps whose samples are made in several passes."""

import keras
import numpy as np
import pytest
from helpers import Factor
from helpers import Rows
from helpers import compile_model
from helpers import gradients
from helpers import make_data
from helpers import make_model
from keras import ops

import keras_crossreg as kcr
from keras_crossreg import random

pytestmark = pytest.mark.backend

X, Y = make_data()
REG = make_data(12, seed=1)
# A loss that is not linear in the predictions, and none for the last output.
LOSSES = [keras.losses.SparseCategoricalCrossentropy(from_logits=True), None]


def several(**kwargs):
    """A network with two outputs and three rho, one of them a complexity."""
    keras.utils.set_random_seed(0)
    inputs, rows = keras.Input((3,)), Rows()
    x = keras.layers.Dense(8, kernel_regularizer=kcr.regularizers.LearnedL2())(
        inputs
    )
    x = rows(kcr.layers.GaussianNoiseScale(0.5, axis=-1, seed=1)(x))
    x = kcr.layers.LearnedDropout(0.2, seed=2)(x)
    outputs = [keras.layers.Dense(2)(x), keras.layers.ReLU()(x)]
    model = kcr.CrossRegModel(inputs, outputs)
    # The gradient of one set alone: that of another is made in the same way.
    compile_model(model, loss=LOSSES, hypergradient="direct", **kwargs)
    return model, rows.rows


def rho_gradients(model, reg=REG, train=(X, Y)):
    """By path: the step of SGD with a rate of 1."""
    model.rho_optimizer.learning_rate = 1.0
    rho = model.rho_variables
    before = {v.path: v.numpy() for v in rho}
    model.optimizer.learning_rate = 0.0
    model.train_on_batch(*train, reg_data=reg)
    return {v.path: before[v.path] - v.numpy() for v in rho}


def loss_of_one_pass(model):
    """The regularization loss of six samples that are made at once."""
    x = np.concatenate([REG[0]] * 2)
    with random.sampling_pass(2):
        parts = [model(x, training=False, sampling=True) for _ in range(3)]
    logits = [ops.reshape(part[0], (2, 12, 2)) for part in parts]
    p = ops.mean(ops.softmax(ops.concatenate(logits)), axis=0)
    picked = ops.take_along_axis(p, REG[1][:, None], axis=1)
    return -ops.mean(ops.log(picked))


def check_passes(gradients_of, **mode):
    """Six samples in passes of two, against one gradient of all of them.

    `gradients_of(loss, variables)` differentiates as the mode does, since
    noise depends on whether XLA compiles it.
    """
    model, rows = several(num_samples=6, samples_per_pass=2, **mode)
    twin, _ = several(num_samples=6)
    twin.set_weights(model.get_weights())
    # What the step of theta draws.
    twin(X, training=True)
    layers = [v for v in twin.layers if isinstance(v, kcr.layers.RhoLayer)]
    expected = gradients_of(
        lambda: loss_of_one_pass(twin), [layer.weights[-1] for layer in layers]
    )
    rows.clear()
    found = rho_gradients(model)
    # Nothing is larger than a pass, or than the training batch.
    assert max(rows) == 2 * 12
    assert len(found) == 3
    for value, gradient in zip(list(found.values())[1:], expected, strict=True):
        np.testing.assert_allclose(value, gradient, rtol=1e-4, atol=1e-7)
        assert np.abs(value).max() > 1e-4


@pytest.mark.parametrize(
    "mode",
    [
        dict(run_eagerly=True),
        pytest.param(
            dict(run_eagerly=False, jit_compile=False), marks=pytest.mark.slow
        ),
    ],
    ids=["eager", "compiled"],
)
def test_gradient_is_that_of_the_same_samples_in_one(mode):
    check_passes(gradients, **mode)


def test_a_complexity_has_the_gradient_of_one_pass():
    """Without noise that differs between passes and calls."""
    of_passes = []
    for samples_per_pass in (9, 4, 1):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((3,))
        x = keras.layers.Dense(
            4, kernel_regularizer=kcr.regularizers.LearnedL2()
        )(inputs)
        x = keras.layers.Dense(1, kernel_regularizer="l2")(Factor(0.5)(x))
        model = compile_model(
            kcr.CrossRegModel(inputs, x),
            loss="mse",
            num_samples=9,
            samples_per_pass=samples_per_pass,
            hypergradient="one_step",
        )
        of_passes.append(list(rho_gradients(model).values()))
    for found in of_passes[1:]:
        np.testing.assert_allclose(found, of_passes[0], rtol=1e-4)
    assert np.abs(of_passes[0]).min() > 1e-3


def test_a_fit_is_the_same_run_by_run():
    def fit():
        model = compile_model(make_model(), num_samples=5, samples_per_pass=2)
        model.fit(X, Y, reg_data=REG, batch_size=8, verbose=0)
        return list(model.get_rho().values())

    first = fit()
    assert first == fit()
    assert first != [0.5]


def test_losses_of_calls_take_one_pass():
    inputs, rows = keras.Input((3,)), Rows()
    noisy = rows(kcr.layers.GaussianNoiseScale(0.5, seed=1)(inputs))
    noisy = keras.layers.ActivityRegularization(l2=0.1)(noisy)
    outputs = keras.layers.Dense(3)(noisy)
    of_passes = []
    for samples_per_pass in (8, 2):
        model = kcr.CrossRegModel(inputs, outputs)
        model.layers[1].seed_generator.state.assign([1, 0])
        model.set_rho({model.rho_variables[0].path: 0.5})
        compile_model(
            model, loss="mse", num_samples=8, samples_per_pass=samples_per_pass
        )
        rows.rows.clear()
        data = REG[0], REG[0]
        of_passes += rho_gradients(model, data, data).values()
        assert max(rows.rows) == 8 * 12
    assert of_passes[0] == of_passes[1] != 0


def test_it_is_saved(tmp_path):
    model = compile_model(make_model(), samples_per_pass=3)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_compile_config()["samples_per_pass"] == 3
