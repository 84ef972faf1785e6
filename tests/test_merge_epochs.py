"""The last epochs train on all the data, with rho frozen."""

import keras
import numpy as np
import pytest
from form_checks import check_merged_arrays
from forms import FORMS
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model

import keras_crossreg as kcr


class Log(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.events = []
        self.rho = []

    def on_train_begin(self, logs=None):
        self.events.append("begin")

    def on_train_end(self, logs=None):
        self.events.append("end")

    def on_epoch_end(self, epoch, logs=None):
        self.events.append(epoch)
        self.rho.append(self.model.get_rho()["noise/scale"])


def test_rho_learn_first_and_are_frozen_then():
    model = compile_model(make_model())
    log = Log()
    history = fit(model, epochs=4, merge_epochs=2, callbacks=[log])
    assert log.events == ["begin", 0, 1, 2, 3, "end"]
    assert log.rho[0] != log.rho[1] == log.rho[2] == log.rho[3]
    assert history.epoch == [0, 1, 2, 3]
    assert len(history.history["loss"]) == 4
    # There is no regularization set any more in the last two.
    missing = np.isnan(history.history["reg_loss"])
    assert missing.tolist() == [False, False, True, True]
    # The optimizer begins again: 3 steps of 24 rows, then 5 of 36.
    assert int(model.optimizer.iterations) == 2 * 5
    assert int(model.rho_optimizer.iterations) == 6
    assert history is model.history


def trained_on(x, reg_x, **arguments):
    """What theta learned from, by epoch: a weight for each example."""
    rows = len(x) + len(reg_x)
    inputs = keras.Input((rows,))
    noise = kcr.layers.GaussianNoiseScale(0.0)
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = kcr.CrossRegModel(inputs, dense(noise(inputs)))
    compile_model(
        model,
        loss="mse",
        rho_optimizer=keras.optimizers.SGD(0.0),
        run_eagerly=True,
    )
    x, reg_x = (np.eye(rows)[list(i)] for i in (x, reg_x))
    data = (x, np.ones((len(x), 1)))
    reg = (reg_x, np.ones((len(reg_x), 1)))
    seen = []
    each = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(
            # The start value 0 of sigma is 1e-8.
            set(np.flatnonzero(dense.kernel.numpy() > 1e-3).tolist())
        )
    )
    model.fit(
        *data,
        reg_data=reg,
        callbacks=[each],
        verbose=0,
        batch_size=4,
        **arguments,
    )
    return seen


def test_theta_learns_from_the_regularization_set_in_the_last_epochs_alone():
    seen = trained_on(range(5), range(5, 16), epochs=3, merge_epochs=1)
    assert seen == [set(range(5)), set(range(5)), set(range(16))]


def test_all_epochs_can_be_merged():
    seen = trained_on(range(3), range(3, 14), epochs=1, merge_epochs=1)
    assert seen == [set(range(14))]


@pytest.mark.parametrize("weighted", ["training", "regularization"])
def test_examples_without_a_weight_weigh_one(weighted):
    model = compile_model(
        make_model(),
        run_eagerly=True,
        optimizer=keras.optimizers.SGD(0.0),
        rho_optimizer=keras.optimizers.SGD(0.0),
    )
    x, y = make_data()
    reg = make_data(12, seed=1)
    model.set_rho({"noise/scale": 0.0})
    next(la for la in model.layers if "norm" in la.name).momentum = 1.0
    weight = np.full(24, 0.0)
    if weighted == "regularization":
        reg, weight = (*reg, np.full(12, 0.0)), None
    history = fit(
        model,
        reg_data=reg,
        sample_weight=weight,
        merge_epochs=1,
        batch_size=36,
    ).history
    # One of the two sets weighs nothing. In training mode, BatchNormalization
    # sees all the rows.
    p = keras.ops.convert_to_numpy(
        model(np.concatenate([x, reg[0]]), training=True)
    )
    losses = -np.log(p[np.arange(36), np.concatenate([y, reg[1]])])
    counted = losses[24:] if weighted == "training" else losses[:24]
    assert history["loss"][0] == pytest.approx(counted.sum() / 36, rel=1e-4)


@pytest.mark.parametrize(
    ("form", "reg_form"),
    [
        ("float64 arrays", "arrays"),
        ("tensors", "torch tensors"),
        ("arrays", "pandas"),
        ("pandas", "arrays"),
        ("SciPy matrices", "SciPy matrices"),
    ],
)
def test_forms_of_arrays(form, reg_form):
    check_merged_arrays(FORMS[form], FORMS[reg_form])


def test_a_run_that_stops_early_has_no_merged_epochs():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    log = Log()
    model = compile_model(make_model())
    fit(model, epochs=5, merge_epochs=2, callbacks=[Stop(), log])
    assert log.events == ["begin", 0, 1, "end"]


def test_early_stopping_over_both_parts():
    model = compile_model(
        make_model(), run_eagerly=True, optimizer=keras.optimizers.SGD(0.0)
    )
    stop = keras.callbacks.EarlyStopping("val_loss", patience=3, mode="max")
    log = Log()
    # Validation never gets better than at first, but for what rho do.
    model.set_rho({"noise/scale": 0.0})
    model.rho_optimizer.learning_rate = 0.0
    next(la for la in model.layers if "norm" in la.name).momentum = 1.0
    fit(
        model,
        epochs=8,
        merge_epochs=6,
        validation_data=make_data(12, seed=2),
        callbacks=[stop, log],
    )
    assert log.events == ["begin", 0, 1, 2, 3, "end"]


def test_reg_split_and_validation_split():
    model = compile_model(make_model())
    history = fit(
        model,
        reg_data=None,
        reg_split=0.5,
        validation_split=1 / 6,
        batch_size=5,
        epochs=2,
        merge_epochs=1,
    ).history
    # 24 rows: 4 to validate, 10 to regularize, 10 to train.
    assert int(model.optimizer.iterations) == 4
    assert len(history["val_loss"]) == 2


def test_initial_epoch():
    log = Log()
    model = compile_model(make_model())
    fit(model, epochs=4, initial_epoch=1, merge_epochs=2, callbacks=[log])
    assert log.events == ["begin", 1, 2, 3, "end"]
    fit(model, epochs=4, initial_epoch=3, merge_epochs=2, callbacks=[log])
    assert log.events[5:] == ["begin", 3, "end"]
