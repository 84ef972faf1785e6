"""Theta, rho and batch statistics: each moves on its own data alone."""

import keras
import numpy as np
import pytest
from helpers import Subclassed
from helpers import assert_same
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from helpers import moved
from helpers import values

import keras_crossreg as kcr

pytestmark = pytest.mark.backend


def other_data():
    x, y = make_data(12, seed=5)
    return 2 * x, 1 - y


def statistics(model):
    return [v for v in model.weights if "moving" in v.path]


@pytest.mark.parametrize("reg_data", [make_data(12, seed=1), other_data()])
def test_theta_does_not_move_on_reg_data(reg_data):
    model = compile_model(make_model(), optimizer=keras.optimizers.SGD(0.0))
    theta, rho = values(model.theta_variables), values(model.rho_variables)
    fit(model, reg_data=reg_data)
    assert not any(moved(theta, model.theta_variables))
    assert all(moved(rho, model.rho_variables))


def test_rho_does_not_move_on_training_data():
    model = compile_model(make_model(), rho_optimizer=keras.optimizers.SGD(0.0))
    theta, rho = values(model.theta_variables), values(model.rho_variables)
    fit(model)
    assert all(moved(theta, model.theta_variables))
    assert not any(moved(rho, model.rho_variables))


@pytest.mark.parametrize(
    "subclassed", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_nothing_but_rho_depends_on_what_reg_data_hold(subclassed):
    results = []
    for reg_data in (make_data(12, seed=1), other_data()):
        keras.utils.set_random_seed(0)
        model = Subclassed() if subclassed else make_model()
        compile_model(
            model,
            rho_optimizer=keras.optimizers.SGD(0.0),
            run_eagerly=subclassed,
        )
        history = fit(model, reg_data=reg_data, epochs=2).history
        assert statistics(model)
        results.append(
            (history["loss"], history["reg_loss"], values(model.weights))
        )
    assert results[0][0] == results[1][0]
    assert results[0][1] != results[1][1]
    assert_same(results[0][2], results[1][2])


def test_statistics_do_not_move_in_a_rho_step():
    # A momentum of 0 would make them those of the last batch.
    model = make_model()
    norm = next(
        la
        for la in model.layers
        if isinstance(la, keras.layers.BatchNormalization)
    )
    norm.momentum = 0.0
    compile_model(model, optimizer=keras.optimizers.SGD(0.0))
    x, y = make_data()
    model.train_on_batch(x, y)
    before = values(statistics(model))
    model.train_on_batch(x, y, reg_data=other_data())
    assert_same(before, values(statistics(model)))


def test_dropout_is_off_in_a_rho_step():
    results = []
    for dropout in (0.0, 0.99):
        model = make_model(dropout=dropout)
        compile_model(model, optimizer=keras.optimizers.SGD(0.0))
        history = fit(model).history
        results.append([*history["reg_loss"], model.get_rho()["noise/scale"]])
    np.testing.assert_allclose(*results, rtol=1e-6)
    assert abs(results[0][1] - 0.5) > 1e-3


def test_dropout_is_off_in_a_prediction():
    inputs = keras.Input((3,))
    x = keras.layers.Dropout(0.99, seed=0)(inputs)
    x = kcr.layers.GaussianNoiseScale(0.0)(x)
    model = kcr.CrossRegModel(inputs, x)
    data, _ = make_data()
    np.testing.assert_allclose(model.predict(data, verbose=0), data, atol=1e-6)


def test_an_average_of_theta_stays_with_theta():
    # At its end, `fit` writes the averages into the weights, by position.
    optimizer = keras.optimizers.SGD(0.1, use_ema=True)
    model = compile_model(
        make_model(),
        optimizer=optimizer,
        rho_optimizer=keras.optimizers.SGD(0.0),
    )
    fit(model)
    assert model.get_rho()["noise/scale"] == pytest.approx(0.5)


def test_weight_decay_and_clipping_of_theta_leave_rho_alone():
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5, clipnorm=1.0)
    model = compile_model(
        make_model(),
        optimizer=optimizer,
        rho_optimizer=keras.optimizers.SGD(0.0),
    )
    fit(model)
    assert model.get_rho()["noise/scale"] == pytest.approx(0.5)
    assert len(optimizer.variables) == len(
        keras.optimizers.AdamW().variables
    ) + 2 * len(model.theta_variables)


# Rho learn nowhere else.


def test_rho_do_not_learn_in_a_plain_model():
    model = make_model(cls=keras.Model)
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = make_data()
    rho = [v for v in model.weights if kcr.is_rho(v)]
    before = values(rho)
    model.fit(x, y, verbose=0)
    assert len(rho) == 1
    assert not any(moved(before, rho))
