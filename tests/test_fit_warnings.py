"""Warnings about regularization that will not do what it should."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model

import keras_crossreg as kcr
from keras_crossreg import guards

X, Y = make_data()


def test_the_validation_set_as_regularization_set():
    data = make_data(12, seed=1)
    model = compile_model(make_model())
    with pytest.warns(UserWarning, match="also the `validation_data`"):
        fit(model, reg_data=data, validation_data=data)


def test_a_copy_of_the_validation_set():
    model = compile_model(make_model())
    data = make_data(12, seed=1)
    with pytest.warns(UserWarning, match="also the `validation_data`"):
        fit(model, reg_data=data, validation_data=make_data(12, seed=1))
    # No warning: other rows, fewer rows, another order.
    for other in (make_data(12, seed=2), make_data(11, seed=1)):
        fit(model, reg_data=data, validation_data=other)
    fit(model, reg_data=data, validation_data=[a[::-1] for a in data])


def test_the_same_dataset_object():
    data = tf.data.Dataset.from_tensor_slices(make_data(12, seed=1)).batch(12)
    model = compile_model(make_model())
    with pytest.warns(UserWarning, match="also the `validation_data`"):
        fit(model, reg_data=data, validation_data=data)


def test_training_rows_in_the_regularization_set():
    x, y = make_data(12, seed=1)
    reg_data = np.concatenate([x, X[3:11]]), np.concatenate([y, Y[3:11]])
    model = compile_model(make_model())
    with pytest.warns(UserWarning, match="^8 of 20 regularization examples"):
        fit(model, reg_data=reg_data)


def test_rows_that_chance_repeats():
    # Two features of three values, as in a survey.
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (60, 3)).astype("float32")
    y = (x.sum(axis=1) > 3).astype("int32")
    model = compile_model(make_model())
    fit(model, x=x[:36], y=y[:36], reg_data=(x[36:], y[36:]))


def test_how_often_chance_repeats_more_rows():
    # Random parts of random tables, from no repetition to nothing else. A
    # warning has been seen in 0 to 2.5 of 1,000; 16 of 1,000 and more at that
    # rate have a probability of 1e-8.
    warned = 0
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        table = rng.geometric(rng.uniform(0.02, 0.5), size=(260, 3))
        train, reg = table[:200], table[200:]
        shared = guards._count_shared_rows([train], [reg])
        warned += shared > guards._most_by_chance([train], len(reg))
    assert warned < 16


@pytest.mark.parametrize("rows, enough", [(200, 5), (10_000, 3)])
def test_how_many_rows_are_no_chance(rows, enough):
    # Few rows, none of them twice, do not exclude that some have a double.
    rng = np.random.default_rng(0)
    train, reg = rng.random((rows, 3)), rng.random((60, 3))
    most = guards._most_by_chance([train], 60)
    for shared in (enough - 1, enough):
        reg[:shared] = train[100 : 100 + shared]
        assert guards._count_shared_rows([train], [reg]) == shared
        assert (shared > most) == (shared == enough)


def test_the_same_inputs_with_other_targets_are_other_examples():
    model = compile_model(make_model())
    fit(model, reg_data=(X[:12], 1 - Y[:12]))


def test_more_rho_than_a_tenth_of_the_examples():
    model = kcr.wrap(make_model(rho=False))
    inputs = model.inputs[0]
    noise = kcr.layers.GaussianNoiseScale(axis=-1)
    model = compile_model(kcr.CrossRegModel(inputs, model(noise(inputs))))
    with pytest.warns(UserWarning, match="^3 rho learn from 29 reg"):
        fit(model, reg_data=make_data(29, seed=1))
    fit(model, reg_data=make_data(30, seed=1))


def test_frozen_rho_need_no_warning():
    model = compile_model(make_model())
    model.freeze_rho()
    fit(model, reg_data=(X[:3], Y[:3]))


def test_a_run_without_a_rho_step():
    model = compile_model(make_model(), reg_freq=4)
    with pytest.warns(UserWarning, match="comes after 4 .* there were 3"):
        fit(model)
    # The fourth step.
    fit(model)


def test_one_sample_without_noise():
    # `test_errors` has the warning where there is noise.
    inputs = keras.Input((3,))
    outputs = kcr.layers.NormMagnitude(keras.layers.Dense(2))(inputs)
    model = kcr.CrossRegModel(inputs, outputs)
    compile_model(model, loss="mse", num_samples=1)


# At the end of `fit`. Seven epochs of three steps are more than 20 steps.


def of_start(start, **kwargs):
    inputs = keras.Input((3,))
    x = kcr.layers.GaussianNoiseScale(start, name="noise", **kwargs)(inputs)
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    return compile_model(kcr.CrossRegModel(inputs, outputs))


def test_a_rho_that_starts_at_its_bound():
    model = of_start(0.0)
    # 18 steps.
    fit(model, epochs=6)
    message = r"at their bound, .* vanishes: \['noise/scale'\]"
    with pytest.warns(UserWarning, match=message):
        fit(model, epochs=7)


def test_one_value_of_many_at_its_bound():
    model = of_start(0.3, axis=-1)
    model.set_rho({"noise/scale": [0.3, 0.0, 0.3]})
    fit(model, epochs=7, reg_data=make_data(40, seed=1))


def test_a_rho_that_moves():
    fit(of_start(0.3), epochs=7)


def without_effect():
    inputs = keras.Input((3,))
    noisy = kcr.layers.GaussianNoiseScale(0.3, name="noise")(inputs)
    nothing = keras.layers.Rescaling(1e-3)(noisy)
    x = keras.layers.Add()([inputs, nothing])
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    return compile_model(kcr.CrossRegModel(inputs, outputs))


def test_a_rho_without_effect():
    model = without_effect()
    fit(model, epochs=6)
    message = r"not moved in 21 steps: \['noise/scale'\]"
    with pytest.warns(UserWarning, match=message):
        fit(model, epochs=7)


def test_a_rho_that_is_not_meant_to_move():
    model = of_start(0.3)
    model.rho_optimizer.learning_rate = 0.0
    fit(model, epochs=7)


def train_on(x, y, epochs):
    """A linear classifier on 24 rows, and the other rows to regularize."""
    inputs = keras.Input(x.shape[1:])
    noisy = kcr.layers.GaussianNoiseScale(0.01)(inputs)
    outputs = keras.layers.Dense(2, activation="softmax")(noisy)
    model = kcr.CrossRegModel(inputs, outputs)
    compile_model(
        model,
        optimizer=keras.optimizers.Adam(0.1),
        rho_optimizer=keras.optimizers.SGD(0.0),
    )
    return fit(
        model,
        x=x[:24],
        y=y[:24],
        reg_data=(x[24:], y[24:]),
        batch_size=24,
        reg_batch_size=36,
        epochs=epochs,
    )


def without_a_rule():
    """Thirty features, and labels of a coin."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 30)).astype("float32")
    return x, rng.integers(0, 2, 60)


def test_a_regularization_loss_that_rises():
    message = "rose from .* to .* while the training loss fell from"
    with pytest.warns(UserWarning, match=message):
        logs = train_on(*without_a_rule(), epochs=18).history
    assert logs["reg_loss"][-1] > 1.5 * min(logs["reg_loss"])


def test_a_regularization_loss_that_falls():
    train_on(*make_data(60), epochs=18)


def test_a_short_run():
    train_on(*without_a_rule(), epochs=14)


@pytest.mark.parametrize("epochs", [15, 40])
def test_a_regularization_loss_that_scatters(epochs):
    # The bootstrap of real runs has 0 to 1.1 warnings in 1,000 runs. At that
    # rate, more than 12 in 2,000 have a probability of 1e-6.
    rng = np.random.default_rng(0)
    loss = np.linspace(1, 0.1, epochs)
    warned = sum(
        guards._rise({"loss": loss, "reg_loss": reg_loss}) is not None
        for reg_loss in rng.lognormal(sigma=1.0, size=(2000, epochs))
    )
    assert warned <= 12


def test_losses_of_epochs_without_a_rho_step():
    # Each is there three times: 12 epochs, not 36.
    reg_loss = np.repeat(np.linspace(1, 4, 12), 3)
    logs = {"loss": np.linspace(1, 0.1, 36), "reg_loss": reg_loss}
    assert guards._rise(logs) is None
    logs["reg_loss"] = np.linspace(1, 4, 36)
    assert guards._rise(logs) is not None
    # Theta does not get better: no overfitting.
    logs["loss"] = np.linspace(0.1, 1, 36)
    assert guards._rise(logs) is None
    # Rho did not learn.
    assert guards._rise({"loss": logs["loss"]}) is None
    logs["reg_loss"] = np.full(36, np.nan)
    assert guards._rise(logs) is None
