"""`compile(rho=)`: any weight as rho."""

import re

import keras
import pytest
from helpers import Subclassed
from helpers import assert_same
from helpers import compile_model
from helpers import fit as fit_steps
from helpers import make_data
from helpers import moved
from helpers import values

import keras_crossreg as kcr


def normalized_model(cls=kcr.CrossRegModel):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4)(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    outputs = keras.layers.Dense(2, activation="softmax", name="classes")(x)
    return cls(inputs, outputs)


def fit(model, **kwargs):
    """With ten regularization examples for each number in rho."""
    reg_data = make_data(80, seed=1)
    return fit_steps(model, reg_data=reg_data, reg_batch_size=8, **kwargs)


def paths(variables):
    return [v.path for v in variables]


def test_a_gamma_learns_on_the_regularization_set_alone():
    model = compile_model(normalized_model(), rho="gamma$")
    assert paths(model.rho_variables) == ["norm/gamma"]
    assert "norm/gamma" not in paths(model.theta_variables)
    before = values(model.rho_variables)
    x, y = make_data()
    model.train_on_batch(x, y)
    assert_same(before, values(model.rho_variables))
    fit(model)
    assert all(moved(before, model.rho_variables))


def test_theta_of_rate_zero_leaves_rho_to_learn():
    model = compile_model(
        normalized_model(), rho=["gamma", "beta"], optimizer="sgd"
    )
    model.optimizer.learning_rate = 0.0
    theta = values(model.theta_variables)
    rho = values(model.rho_variables)
    assert len(rho) == 2
    fit(model)
    assert_same(theta, values(model.theta_variables))
    assert all(moved(rho, model.rho_variables))


def test_a_model_that_is_not_built_yet():
    model = compile_model(Subclassed(), rho="classes|dense.*/bias")
    assert fit(model)
    assert any("bias" in path for path in paths(model.rho_variables))
    assert not any("bias" in path for path in paths(model.theta_variables))


def test_it_survives_saving_and_refit(tmp_path):
    model = compile_model(normalized_model(), rho="gamma$")
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert paths(loaded.rho_variables) == ["norm/gamma"]
    assert_same(values(model.rho_variables), values(loaded.rho_variables))
    for both in (model, loaded):
        fit(both)
    assert_same(values(model.weights), values(loaded.weights))
    final = kcr.refit(model, *make_data(), verbose=0)
    assert_same(values(model.rho_variables), values(final.rho_variables))


def test_compiled_anew_they_are_theta_again():
    model = compile_model(normalized_model(), rho="gamma$")
    compile_model(model)
    assert not model.rho_variables
    assert "norm/gamma" in paths(model.theta_variables)


def test_the_summary_shows_them(capsys):
    compile_model(normalized_model(), rho="gamma$").rho_summary()
    assert "norm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rho", "message"),
    [
        ("delta", "No trainable weight has a path that the pattern is found"),
        (["gamma", "delta"], "Received: rho=delta"),
        (".", "no theta is left. Received: rho=['.']"),
        ("(", "must be a regular expression"),
        (3, "Received: rho=3"),
    ],
)
def test_patterns_that_cannot_be(rho, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        compile_model(normalized_model(), rho=rho)


def test_a_pattern_that_matches_nothing_of_an_unbuilt_model():
    model = compile_model(Subclassed(), rho="delta")
    with pytest.raises(ValueError, match="Received: rho=delta"):
        fit(model)
