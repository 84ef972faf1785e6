"""Warnings about regularization that will not do what it should.

Every test of a warning of `fit` looks at where it points, too: at the line of
the user's call.
"""

import contextlib
import inspect
import re
import warnings

import keras
import numpy as np
import pytest
from forms import Batches
from forms import batches
from helpers import compile_model
from helpers import make_data
from helpers import make_model

import keras_crossreg as kcr
from keras_crossreg.trainers.fit_warnings import RhoWatch
from keras_crossreg.trainers.shared_rows import count_shared_rows
from keras_crossreg.trainers.shared_rows import most_by_chance

X, Y = make_data()


@contextlib.contextmanager
def recorded_warnings():
    """A list of the warnings that the block gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield caught


def warnings_of_fit(model, **arguments):
    """What three steps warn of; each warning points at the call below."""
    defaults = dict(
        x=X,
        y=Y,
        batch_size=8,
        reg_data=make_data(12, seed=1),
        shuffle=False,
        verbose=0,
    )
    arguments = {**defaults, **arguments}
    with recorded_warnings() as caught:
        line = inspect.currentframe().f_lineno + 1
        model.fit(**arguments)
    for warning in caught:
        assert (warning.filename, warning.lineno) == (__file__, line)
    return [str(warning.message) for warning in caught]


def check_warns(match, model, **arguments):
    """`fit` gives this warning and no other."""
    (message,) = warnings_of_fit(model, **arguments)
    assert re.search(match, message)


def test_a_model_without_rho():
    model = compile_model(make_model(rho=False))
    check_warns("^The model has no rho", model)


def test_train_on_batch_points_at_the_line_of_its_call():
    model = compile_model(make_model(rho=False))
    with recorded_warnings() as caught:
        line = inspect.currentframe().f_lineno + 1
        model.train_on_batch(X, Y, reg_data=(X, Y))
    (warning,) = caught
    assert (warning.filename, warning.lineno) == (__file__, line)


def test_the_validation_set_as_regularization_set():
    data = make_data(12, seed=1)
    model = compile_model(make_model())
    check_warns(
        "also the `validation_data`",
        model,
        reg_data=data,
        validation_data=data,
    )


def test_a_copy_of_the_validation_set():
    model = compile_model(make_model())
    data = make_data(12, seed=1)
    check_warns(
        "also the `validation_data`",
        model,
        reg_data=data,
        validation_data=make_data(12, seed=1),
    )
    for other in (
        # Other rows, fewer rows, another order.
        make_data(12, seed=2),
        make_data(11, seed=1),
        [a[::-1] for a in data],
    ):
        assert not warnings_of_fit(model, reg_data=data, validation_data=other)


def test_one_object_as_both_sets():
    data = Batches(batches(make_data(12, seed=1), 12))
    model = compile_model(make_model())
    check_warns(
        "also the `validation_data`",
        model,
        reg_data=data,
        validation_data=data,
    )


def test_training_rows_in_the_regularization_set():
    x, y = make_data(12, seed=1)
    reg_data = np.concatenate([x, X[3:11]]), np.concatenate([y, Y[3:11]])
    model = compile_model(make_model())
    check_warns("^8 of 20 regularization examples", model, reg_data=reg_data)


def test_rows_that_chance_repeats():
    # Two features of three values, as in a survey.
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (60, 3)).astype("float32")
    y = (x.sum(axis=1) > 3).astype("int32")
    model = compile_model(make_model())
    reg_data = x[36:], y[36:]
    assert count_shared_rows((x[:36], y[:36]), reg_data) > 0
    assert not warnings_of_fit(model, x=x[:36], y=y[:36], reg_data=reg_data)


def test_how_often_chance_repeats_more_rows():
    # Random parts of random tables, from no repetition to nothing else. A
    # warning has been seen in 0 to 2.5 of 1,000; 16 of 1,000 and more at that
    # rate have a probability of 1e-8.
    warned = 0
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        table = rng.geometric(rng.uniform(0.02, 0.5), size=(260, 3))
        train, reg = table[:200], table[200:]
        shared = count_shared_rows([train], [reg])
        warned += shared > most_by_chance([train], len(reg))
    assert warned < 16


@pytest.mark.parametrize("rows, enough", [(200, 5), (10_000, 3)])
def test_how_many_rows_are_no_chance(rows, enough):
    # Few rows, none of them twice, do not exclude that some have a double.
    rng = np.random.default_rng(0)
    train, reg = rng.random((rows, 3)), rng.random((60, 3))
    most = most_by_chance([train], 60)
    for shared in (enough - 1, enough):
        reg[:shared] = train[100 : 100 + shared]
        assert count_shared_rows([train], [reg]) == shared
        assert (shared > most) == (shared == enough)


def test_the_same_inputs_with_other_targets_are_other_examples():
    model = compile_model(make_model())
    assert not warnings_of_fit(model, reg_data=(X[:12], 1 - Y[:12]))


def test_more_rho_than_a_tenth_of_the_examples():
    model = kcr.wrap(make_model(rho=False))
    inputs = model.inputs[0]
    noise = kcr.layers.GaussianNoiseScale(axis=-1)
    model = compile_model(kcr.CrossRegModel(inputs, model(noise(inputs))))
    data = make_data(29, seed=1)
    check_warns("^3 rho learn from 29 reg", model, reg_data=data)
    assert not warnings_of_fit(model, reg_data=make_data(30, seed=1))


def test_frozen_rho_need_no_warning():
    model = compile_model(make_model())
    model.freeze_rho()
    assert not warnings_of_fit(model, reg_data=(X[:3], Y[:3]))


@pytest.mark.slow
def test_a_run_with_few_rho_steps():
    # 54 training steps: one for about each fiftieth of the run would do.
    slow = keras.optimizers.SGD(0.01)
    model = compile_model(make_model(), optimizer=slow, reg_freq=25)
    check_warns(
        r"^Rho took 2 steps in 54 .*`reg_freq=1`.* reg_freq=25, .* of 1 ex",
        model,
        epochs=18,
    )


@pytest.mark.slow
def test_a_short_run_and_one_with_enough_rho_steps():
    # 48 training steps, and ten rho steps.
    for reg_freq, epochs in ((25, 16), (6, 20)):
        slow = keras.optimizers.SGD(0.01)
        model = compile_model(make_model(), optimizer=slow, reg_freq=reg_freq)
        assert not warnings_of_fit(model, epochs=epochs)


def test_a_run_without_a_rho_step():
    model = compile_model(make_model(), reg_freq=4)
    check_warns("comes after 4 .* there were 3", model)
    # The fourth step.
    assert not warnings_of_fit(model)


def test_curvature_that_is_not_positive():
    # The negative of a loss bends downwards everywhere.
    def negative(y_true, y_pred):
        return -keras.ops.mean((y_true - y_pred) ** 2, axis=-1)

    inputs = keras.Input((3,))
    dense = keras.layers.Dense(1, use_bias=False)
    model = kcr.CrossRegModel(inputs, kcr.layers.NormMagnitude(dense)(inputs))
    # The curvature on the sphere of directions depends on where they start.
    dense.kernel.assign([[0.36], [0.928], [-0.096]])
    compile_model(model, loss=negative, hypergradient="implicit")
    check_warns(
        "at 3 of 3 rho steps",
        model,
        y=X[:, :1],
        reg_data=(2 * X[:12], X[:12, :1]),
    )


def test_one_sample_without_noise():
    # `test_errors` has the warning where there is noise.
    inputs = keras.Input((3,))
    outputs = kcr.layers.NormMagnitude(keras.layers.Dense(2))(inputs)
    model = kcr.CrossRegModel(inputs, outputs)
    with recorded_warnings() as caught:
        compile_model(model, loss="mse", num_samples=1)
    assert not caught


# At the end of `fit`. Seven epochs of three steps are more than 20 steps.


def of_start(start, **kwargs):
    inputs = keras.Input((3,))
    x = kcr.layers.GaussianNoiseScale(start, name="noise", **kwargs)(inputs)
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    return compile_model(kcr.CrossRegModel(inputs, outputs), run_eagerly=False)


def test_a_rho_that_starts_at_its_bound():
    model = of_start(0.0)
    # 18 steps.
    assert not warnings_of_fit(model, epochs=6)
    match = r"at their bound, .* vanishes: \['noise/scale'\]"
    check_warns(match, model, epochs=7)


def test_one_value_of_many_at_its_bound():
    model = of_start(0.3, axis=-1)
    model.set_rho({"noise/scale": [0.3, 0.0, 0.3]})
    data = make_data(40, seed=1)
    assert not warnings_of_fit(model, epochs=7, reg_data=data)


def test_a_rho_that_moves_or_is_not_meant_to():
    model = of_start(0.3)
    assert not warnings_of_fit(model, epochs=7)
    model.rho_optimizer.learning_rate = 0.0
    assert not warnings_of_fit(model, epochs=7)


def without_effect():
    inputs = keras.Input((3,))
    noisy = kcr.layers.GaussianNoiseScale(0.3, name="noise")(inputs)
    nothing = keras.layers.Rescaling(1e-3)(noisy)
    x = keras.layers.Add()([inputs, nothing])
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    return compile_model(kcr.CrossRegModel(inputs, outputs), run_eagerly=False)


def test_a_rho_without_effect():
    model = without_effect()
    assert not warnings_of_fit(model, epochs=6)
    match = r"not moved in 21 steps: \['noise/scale'\]"
    check_warns(match, model, epochs=7)


def linear_model(features):
    # Some weights to start with are so good that what follows is overfitting.
    keras.utils.set_random_seed(0)
    inputs = keras.Input((features,))
    noisy = kcr.layers.GaussianNoiseScale(0.01)(inputs)
    outputs = keras.layers.Dense(2, activation="softmax")(noisy)
    return compile_model(
        kcr.CrossRegModel(inputs, outputs),
        optimizer=keras.optimizers.Adam(0.1),
        rho_optimizer=keras.optimizers.SGD(0.0),
        run_eagerly=False,
    )


def in_one_batch(x, y, epochs):
    """Arguments of `fit`: 24 rows to train, the others to regularize."""
    return dict(
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
    model = linear_model(30)
    check_warns(
        "rose from .* to .* while the training loss fell from",
        model,
        **in_one_batch(*without_a_rule(), epochs=18),
    )
    losses = model.history.history["reg_loss"]
    assert losses[-1] > 1.5 * min(losses)


def test_a_regularization_loss_that_falls():
    data = make_data(60)
    model = linear_model(3)
    assert not warnings_of_fit(model, **in_one_batch(*data, epochs=18))
    losses = model.history.history["reg_loss"]
    assert losses[-1] < losses[0]


NO_RHO = RhoWatch(rho=[], optimizer=None)


def warns_of_rise(**logs):
    """Whether the end of a `fit` with these logs warns of overfitting."""
    with recorded_warnings() as caught:
        NO_RHO.report(logs)
    for warning in caught:
        assert "The regularization loss rose" in str(warning.message)
    return bool(caught)


@pytest.mark.parametrize("epochs", [15, 40])
def test_a_regularization_loss_that_scatters(epochs):
    # The bootstrap of real runs has 0 to 1.1 warnings in 1,000 runs. At that
    # rate, more than 12 in 2,000 have a probability of 1e-6.
    rng = np.random.default_rng(0)
    loss = np.linspace(1, 0.1, epochs)
    warned = sum(
        warns_of_rise(loss=loss, reg_loss=reg_loss)
        for reg_loss in rng.lognormal(sigma=1.0, size=(2000, epochs))
    )
    assert warned <= 12


@pytest.mark.parametrize(("epochs", "warns"), [(14, False), (15, True)])
def test_a_short_run(epochs, warns):
    loss, reg_loss = np.linspace(1, 0.1, epochs), np.linspace(1, 4, epochs)
    assert warns_of_rise(loss=loss, reg_loss=reg_loss) == warns


def test_losses_of_epochs_without_a_rho_step():
    loss, reg_loss = np.linspace(1, 0.1, 36), np.linspace(1, 4, 36)
    assert warns_of_rise(loss=loss, reg_loss=reg_loss)
    # Each is there three times: 12 epochs, not 36.
    repeated = np.repeat(np.linspace(1, 4, 12), 3)
    assert not warns_of_rise(loss=loss, reg_loss=repeated)
    # Theta does not get better: no overfitting.
    assert not warns_of_rise(loss=loss[::-1], reg_loss=reg_loss)
    # Rho did not learn.
    assert not warns_of_rise(loss=loss)
    assert not warns_of_rise(loss=loss, reg_loss=np.full(36, np.nan))
