"""The gradient of rho, against closed forms."""

import keras
import numpy as np
import pytest
from helpers import gradients
from helpers import values

import keras_crossreg as kcr

pytestmark = pytest.mark.backend

W = np.array([[0.8], [-0.5], [0.3]], "float32")
SIGMA = 0.7
ROWS = 20_000


def linear_model(sigma=SIGMA):
    """`y_hat = w . (x + sigma * eps)`."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    noise = kcr.layers.GaussianNoiseScale(sigma, seed=3)
    dense = keras.layers.Dense(1, use_bias=False)
    model = kcr.CrossRegModel(inputs, dense(noise(inputs)))
    dense.set_weights([W])
    return model


@pytest.mark.parametrize(
    ("num_samples", "samples_per_pass", "run_eagerly"),
    [(2, 16, True), (4, 16, False), (16, 16, True), (16, 5, True)],
)
def test_gradient_of_the_sampled_average_is_the_closed_form(
    num_samples, samples_per_pass, run_eagerly
):
    # The average over K samples has noise s ~ N(0, v), v = sigma^2 |w|^2 / K:
    #     E L = (w.x - y)^2 + v,    dE L / dsigma = 2 sigma |w|^2 / K.
    # A row with residual r has dL / dsigma = 2 (r + s) s / sigma, of variance
    # 4 (r^2 v + 2 v^2) / sigma^2. We allow 5 standard errors of the mean over
    # the rows: a right gradient fails with probability 6e-7.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 3)).astype("float32")
    residual = 0.3 * rng.normal(size=(ROWS, 1)).astype("float32")
    y = x @ W - residual
    train = np.zeros((1, 3)), np.zeros((1, 1))
    model = linear_model()
    model.compile(
        optimizer=keras.optimizers.SGD(0.0),
        loss="mse",
        rho_optimizer=keras.optimizers.SGD(1.0),
        num_samples=num_samples,
        samples_per_pass=samples_per_pass,
        hypergradient="direct",
        reg_freq=1,
        run_eagerly=run_eagerly,
    )
    (before,) = values(model.rho_variables)
    history = model.fit(*train, reg_data=(x, y), reg_batch_size=ROWS, verbose=0)
    (after,) = values(model.rho_variables)
    gradient = before - after

    v = SIGMA**2 * float((W**2).sum()) / num_samples
    # sigma = softplus(rho), so dsigma / drho = sigmoid(rho).
    chain = 1 / (1 + np.exp(-before))
    expected = 2 * v / SIGMA * chain
    r2 = float((residual**2).mean())
    error = 2 / SIGMA * np.sqrt((r2 * v + 2 * v**2) / ROWS) * chain
    assert abs(gradient - expected) < 5 * error
    # The test can tell a wrong K: the next one is 20 errors away.
    assert expected > 20 * error

    # The loss itself is right likewise: var L = 4 r^2 v + 2 v^2 given r.
    (loss,) = history.history["reg_loss"]
    error = np.sqrt((4 * r2 * v + 2 * v**2) / ROWS)
    assert abs(loss - (r2 + v)) < 5 * error


def test_rho_step_sees_the_new_theta():
    # y_hat = w x + s, with theta = w and rho = s, one example each.
    class Shift(keras.layers.Layer):
        def build(self, input_shape):
            self.shift = kcr.mark_rho(
                self.add_weight(
                    initializer="zeros",
                    dtype="float32",
                    autocast=False,
                    trainable=False,
                )
            )

        def call(self, inputs):
            return inputs + self.shift

    inputs = keras.Input((1,))
    dense = keras.layers.Dense(1, use_bias=False)
    model = kcr.CrossRegModel(inputs, Shift()(dense(inputs)))
    dense.set_weights([np.array([[0.5]])])
    model.compile(
        optimizer=keras.optimizers.SGD(0.1),
        loss="mse",
        rho_optimizer=keras.optimizers.SGD(0.05),
        reg_freq=1,
        run_eagerly=True,
    )
    train = np.array([[1.0]]), np.array([[2.0]])
    # A regularization set is of ten examples, here the same one.
    reg = np.full((10, 1), 3.0), np.full((10, 1), -1.0)
    w, s = 0.5, 0.0
    for _ in range(2):
        model.fit(*train, reg_data=reg, verbose=0)
        w -= 0.1 * 2 * (w * 1.0 + s - 2.0) * 1.0
        s -= 0.05 * 2 * (w * 3.0 + s + 1.0)
        (kernel,) = values([dense.kernel])
        assert kernel.item() == pytest.approx(w, rel=1e-5)
        assert list(model.get_rho().values())[0] == pytest.approx(s, rel=1e-5)


def test_sample_weights_of_reg_data_weigh_its_loss():
    results = []
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    y = x @ W
    for factor in (1.0, 3.0):
        model = linear_model()
        model.compile(
            optimizer=keras.optimizers.SGD(0.0),
            loss="mse",
            rho_optimizer=keras.optimizers.SGD(0.1),
            hypergradient="direct",
            reg_freq=1,
            run_eagerly=True,
        )
        (before,) = values(model.rho_variables)
        weights = np.full(8, factor, "float32")
        # Shuffling moves rows, and with them which noise they get.
        model.train_on_batch(x, y, reg_data=(x, y, weights))
        (after,) = values(model.rho_variables)
        results.append(after - before)
    assert results[1] == pytest.approx(3 * results[0], rel=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_no_gradient_outside_the_sampling_pass(training):
    model = linear_model()
    x = np.ones((4, 3), "float32")
    (by_rho,) = gradients(
        lambda: model(x, training=training), model.rho_variables
    )
    assert by_rho is None
