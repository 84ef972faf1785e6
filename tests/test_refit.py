"""The final model: all the data, and the learned rho from the start."""

import functools

import keras
import numpy as np
import pytest
from helpers import Configured
from helpers import Subclassed
from helpers import assert_same
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from helpers import moved
from helpers import slow_but
from helpers import values

import keras_crossreg as kcr

X, Y = make_data(32)


def fitted(model, **arguments):
    compile_model(model, **arguments)
    fit(model)
    return model


@functools.cache
def fitted_model():
    """One for all tests that do not change it: `refit` does not either."""
    return fitted(make_model())


def refit(model, **arguments):
    return kcr.refit(
        model, X, Y, **{**dict(batch_size=8, verbose=0), **arguments}
    )


class Uncopyable(Subclassed):
    """Keras cannot tell what its constructor was given."""

    def __init__(self, *units):
        super().__init__(units[0])


class Forgetful(Subclassed):
    def get_config(self):
        return {}


@pytest.mark.parametrize(
    "kind",
    slow_but(
        ["functional", "subclassed"],
        ["functional", "subclassed", "configured", "wrapped"],
    ),
)
def test_fresh_weights_and_the_learned_rho(kind):
    model = {
        "functional": make_model,
        "subclassed": lambda: Subclassed(5),
        "configured": lambda: Configured(units=5),
        "wrapped": lambda: kcr.wrap(keras.Sequential(make_model().layers[1:])),
    }[kind]()
    fitted(model)
    before = values(model.weights)
    still = refit(model, epochs=0)
    assert_same(values(model.rho_variables), values(still.rho_variables))
    kernels = [v for v in model.theta_variables if "kernel" in v.path]
    fresh = [v for v in still.theta_variables if "kernel" in v.path]
    assert all(moved(values(kernels), fresh))

    final = refit(model, epochs=2)
    assert type(final) is type(model)
    assert_same(values(model.rho_variables), values(final.rho_variables))
    assert int(final.rho_optimizer.iterations) == 0
    assert int(final.optimizer.iterations) == 8
    assert len(final.history.history["loss"]) == 2
    # The model itself stays as it was.
    assert_same(before, values(model.weights))


def test_the_noise_stays_on():
    model = fitted(make_model())
    model.set_rho({"noise/scale": 50.0})
    final = refit(model)
    samples = final.predict_samples(X, verbose=0)
    assert samples.std(0).max() > 0.1


def test_optimizers_are_as_they_were_at_compile():
    model = compile_model(
        make_model(),
        optimizer=keras.optimizers.SGD(0.125, momentum=0.5),
    )
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, lr: lr / 2)
    fit(model, epochs=2, callbacks=[halve])
    assert float(model.optimizer.learning_rate) == 0.125 / 4
    final = refit(model)
    assert float(final.optimizer.learning_rate) == 0.125
    assert final.optimizer.momentum == 0.5
    assert final.rho_optimizer is not model.rho_optimizer


def test_compile_settings_go_along_even_without_registration():
    def own_loss(y, y_pred):
        return keras.losses.sparse_categorical_crossentropy(y, y_pred)

    model = fitted(
        make_model(),
        loss=own_loss,
        metrics=["accuracy"],
        num_samples=3,
        averaging=lambda samples: keras.ops.mean(samples, axis=0),
    )
    final = refit(model)
    assert set(final.history.history) == {"loss", "accuracy"}
    assert len(final.predict_samples(X, verbose=0)) == 3


def test_what_training_does_not_set_is_kept():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    normalization = keras.layers.Normalization()
    normalization.adapt(100 + 10 * X)
    x = keras.layers.Dense(4, trainable=False, name="frozen")(
        normalization(inputs)
    )
    x = kcr.layers.GaussianNoiseScale(relative=True)(x)
    x = keras.layers.Dense(2, activation="softmax", name="free")(x)
    model = fitted(kcr.CrossRegModel(inputs, x))
    final = refit(model)
    for index in (1, 2):
        assert_same(
            values(model.layers[index].weights),
            values(final.layers[index].weights),
        )
    given, kept = normalization(X), final.layers[1](X)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(kept), keras.ops.convert_to_numpy(given)
    )
    assert not final.get_layer("frozen").trainable


def test_frozen_rho_can_learn_again():
    final = refit(fitted_model())
    final.unfreeze_rho()
    with pytest.raises(ValueError, match="no regularization set"):
        final.fit(X, Y, verbose=0)


@pytest.mark.parametrize(
    ("model", "arguments", "match"),
    [
        (lambda: keras.Sequential(), {}, "compiled and fitted.*Received"),
        (lambda: make_model(), {}, "compiled and fitted.*Received: model="),
        (
            fitted_model,
            dict(reg_split=0.1),
            "Received: reg_split=0.1$",
        ),
        (
            fitted_model,
            dict(merge_epochs=1),
            "Received: merge_epochs=1$",
        ),
        (
            fitted_model,
            dict(reg_data=None),
            "Received: reg_data=None$",
        ),
        (
            lambda: fitted(Uncopyable(5)),
            {},
            r"get_config.*freeze_rho\(\).*Received: model=",
        ),
    ],
)
def test_errors(model, arguments, match):
    with pytest.raises(ValueError, match=match):
        refit(model(), **arguments)


def test_a_config_that_gives_another_model_is_refused():
    with pytest.raises(ValueError, match="cannot be copied"):
        refit(fitted(Forgetful(5)))


class Seen(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.scales = []

    def on_train_batch_end(self, batch, logs=None):
        self.scales.append(self.model.get_rho()["noise/scale"])


@pytest.mark.slow
def test_a_schedule_is_replayed():
    model = compile_model(make_model())
    record, seen = kcr.callbacks.RhoHistory(), Seen()
    fit(model, epochs=4, callbacks=[record])
    curve = [record.start["noise/scale"], *record.history["noise/scale"]]
    two_steps = dict(batch_size=16, schedule=record)
    # As long, so that each epoch is one of the record, at its start.
    final = refit(model, epochs=4, callbacks=[seen], **two_steps)
    np.testing.assert_allclose(seen.scales[::2], curve[:4], rtol=1e-5)
    assert final.get_rho() == pytest.approx(model.get_rho())
    # Half as long: every second one. One callback need not be in a list.
    refit(model, epochs=2, callbacks=seen, **two_steps)
    np.testing.assert_allclose(seen.scales[::2], curve[:4:2], rtol=1e-5)
    # Twice as long: half way between.
    refit(model, epochs=8, callbacks=[seen], **two_steps)
    middle = (curve[0] + curve[1]) / 2
    np.testing.assert_allclose(seen.scales[2], middle, rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"noise/scale": [1.0]}, "`schedule` expects the `kcr.callbacks"),
        (kcr.callbacks.RhoHistory(), "with an epoch at least"),
    ],
)
def test_schedules_that_cannot_be(schedule, message):
    with pytest.raises(ValueError, match=message):
        refit(fitted_model(), schedule=schedule)


def test_a_schedule_of_another_model():
    record = kcr.callbacks.RhoHistory()
    other = compile_model(Subclassed())
    fit(other, callbacks=[record])
    with pytest.raises(ValueError, match="has no record of the rho"):
        refit(fitted_model(), schedule=record)


# ---- A warm start ------------------------------------------------------------


class First(keras.callbacks.Callback):
    """The weights before the first step, and learning rates."""

    def __init__(self):
        super().__init__()
        self.rates = []

    def on_train_batch_begin(self, batch, logs=None):
        if not self.rates:
            self.weights = values(self.model.weights)
        self.rates.append(float(self.model.optimizer.learning_rate))


def test_a_warm_start_is_shrunk_and_perturbed():
    model = fitted_model()
    first = First()
    final = refit(model, warm=True, epochs=1, callbacks=[first])
    theta = {id(v) for v in final.theta_variables}
    for variable, old, seen in zip(
        final.weights, values(model.weights), first.weights, strict=True
    ):
        if id(variable) not in theta:
            continue
        if old.ndim == 1:
            # The start of a bias is 0.
            np.testing.assert_allclose(seen, old / 2, rtol=1e-6)
            continue
        fresh = (seen - old / 2) / 0.1
        # Glorot's limit, and a draw of the copy's own.
        limit = (6 / sum(old.shape)) ** 0.5
        assert limit / 3 < np.abs(fresh).max() < 1.001 * limit
    assert final.get_rho() == model.get_rho()
    # The model itself stays as it is.
    assert_same(values(fitted_model().weights), values(model.weights))


def test_averages_of_a_warm_start_are_measured():
    first = First()
    final = refit(
        fitted_model(), warm=True, epochs=1, batch_size=32, callbacks=[first]
    )
    kernel, mean = (
        next(
            value
            for variable, value in zip(
                final.weights, first.weights, strict=True
            )
            if variable.name == name
        )
        for name in ("kernel", "moving_mean")
    )
    np.testing.assert_allclose(mean, (X @ kernel).mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "run_eagerly", [pytest.param(True, marks=pytest.mark.slow), False]
)
def test_a_schedule_goes_as_far_as_it_came(run_eagerly):
    """Twelve steps of it in a run of four."""
    schedule = keras.optimizers.schedules.PolynomialDecay(1.0, 12, 0.0)
    model = compile_model(
        make_model(),
        optimizer=keras.optimizers.SGD(schedule),
        run_eagerly=run_eagerly,
    )
    fit(model, epochs=4)
    first = First()
    final = refit(model, warm=True, epochs=1, callbacks=[first])
    np.testing.assert_allclose(first.rates, [1, 0.75, 0.5, 0.25], rtol=1e-5)
    assert int(final.optimizer.iterations) == 12
    # A cold one has the schedule as it is.
    first = First()
    refit(model, epochs=1, callbacks=[first])
    np.testing.assert_allclose(
        first.rates, [1 - i / 12 for i in range(4)], rtol=1e-5
    )


def test_a_warm_start_and_the_schedule_of_rho():
    record = kcr.callbacks.RhoHistory()
    model = compile_model(make_model())
    fit(model, epochs=2, callbacks=[record])
    final = refit(model, warm=True, schedule=record, epochs=2)
    assert final.get_rho() == pytest.approx(model.get_rho(), rel=1e-5)


def batches(dataset):
    while True:
        yield from dataset


def test_a_warm_start_refuses_a_generator():
    message = "expects data that can be read again.*Received: x=generator"
    with pytest.raises(ValueError, match=message):
        kcr.refit(
            fitted_model(), batches([(X, Y)]), warm=True, steps_per_epoch=2
        )
