"""The last epochs train on all the data, with rho frozen."""

import itertools

import keras
import numpy as np
import pytest
from form_checks import check_merged_arrays
from forms import FORMS
from helpers import assert_same
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from helpers import values

import keras_crossreg as kcr
from keras_crossreg.trainers import batch_statistics


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
        # One example has a weight: where none has, rho would learn nothing.
        reg, weight = (*reg, np.eye(12)[0]), None
    history = fit(
        model,
        reg_data=reg,
        sample_weight=weight,
        merge_epochs=1,
        batch_size=36,
    ).history
    # In training mode, BatchNormalization sees all the rows.
    p = keras.ops.convert_to_numpy(
        model(np.concatenate([x, reg[0]]), training=True)
    )
    losses = -np.log(p[np.arange(36), np.concatenate([y, reg[1]])])
    counted = losses[24:] if weighted == "training" else losses[:25]
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


# ---- How the last epochs begin -----------------------------------------------


class AtTheSwitch(keras.callbacks.Callback):
    """Theta, averages and the optimizer where the last epochs begin."""

    def __init__(self, switch):
        super().__init__()
        self.switch = switch

    def on_train_begin(self, logs=None):
        self.start = values(self.model.theta_variables)
        self.optimizer = values(self.model.optimizer.variables)

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.switch - 1:
            self.end = values(self.model.theta_variables)

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.switch:
            self.theta = values(self.model.theta_variables)
            self.fresh = values(self.model.optimizer.variables)

    def on_train_batch_begin(self, batch, logs=None):
        if not hasattr(self, "averages") and hasattr(self, "theta"):
            norm = norm_of(self.model)
            self.averages = norm and values(norm.non_trainable_variables)


def norm_of(model):
    return next((la for la in model.layers if "norm" in la.name), None)


def expected_at_the_switch(start, end):
    """Kernels are shrunk and perturbed, biases go half way back."""
    if start.ndim > 1:
        return 0.5 * end + 0.1 * start
    return (start + end) / 2


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_theta_are_shrunk_and_the_optimizer_begins_again(optimizer):
    model = make_model()
    compile_model(model, optimizer=optimizer)
    seen = AtTheSwitch(2)
    fit(model, epochs=3, merge_epochs=1, callbacks=[seen])
    for start, end, theta in zip(seen.start, seen.end, seen.theta, strict=True):
        assert not np.array_equal(start, end)
        expected = expected_at_the_switch(start, end)
        np.testing.assert_allclose(theta, expected, rtol=1e-5, atol=1e-7)
    assert_same(seen.optimizer, seen.fresh)


def test_without_batch_normalization_theta_go_half_way_back():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = keras.layers.LayerNormalization()(keras.layers.Dense(4)(inputs))
    x = kcr.layers.GaussianNoiseScale(seed=1)(x)
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    model = compile_model(kcr.CrossRegModel(inputs, outputs))
    seen = AtTheSwitch(1)
    fit(model, epochs=2, merge_epochs=1, callbacks=[seen])
    for start, end, theta in zip(seen.start, seen.end, seen.theta, strict=True):
        np.testing.assert_allclose(theta, (start + end) / 2, rtol=1e-5)


@pytest.mark.parametrize("trained", ["scale", "tails"])
def test_a_pretrained_kernel_goes_half_way_back(trained):
    """Its scale, or its tails, are not those of a draw."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(400)
    x = keras.layers.BatchNormalization()(hidden(inputs))
    x = kcr.layers.GaussianNoiseScale(seed=1)(x)
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    model = kcr.CrossRegModel(inputs, outputs)
    kernel = hidden.kernel.numpy()
    if trained == "scale":
        kernel *= 1.5
    else:
        kernel[0, :4] *= 3
    hidden.kernel.assign(kernel)
    compile_model(model)
    seen = AtTheSwitch(1)
    fit(model, epochs=2, merge_epochs=1, callbacks=[seen])
    np.testing.assert_allclose(
        seen.theta[0], (seen.start[0] + seen.end[0]) / 2, rtol=1e-5, atol=1e-7
    )
    # The new head is shrunk and perturbed.
    np.testing.assert_allclose(
        seen.theta[4],
        expected_at_the_switch(seen.start[4], seen.end[4]),
        rtol=1e-5,
        atol=1e-7,
    )


def test_averages_are_measured_on_all_the_data():
    model = compile_model(make_model())
    seen = AtTheSwitch(1)
    fit(model, epochs=2, merge_epochs=1, batch_size=36, callbacks=[seen])
    # One batch has all the rows.
    x = np.concatenate([make_data()[0], make_data(12, seed=1)[0]])
    hidden = x @ seen.theta[0]
    mean, variance = seen.averages
    np.testing.assert_allclose(mean, hidden.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(variance, hidden.var(0), rtol=1e-4)


@pytest.mark.parametrize("held", ["trainable", "momentum"])
def test_averages_that_do_not_move_are_not_measured(held):
    model = make_model()
    norm = norm_of(model)
    norm.trainable, norm.momentum = (
        (False, 0.99) if held == "trainable" else (True, 1.0)
    )
    before = values(norm.non_trainable_variables)
    fit(compile_model(model), epochs=2, merge_epochs=1)
    assert_same(before, values(norm.non_trainable_variables))


def test_nothing_but_averages_is_measured():
    """Two runs that differ in the batches that are measured alone."""
    runs = []
    for count in (1, 5):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batch_statistics, "NUM_BATCHES", count)
            model = compile_model(make_model(dropout=0.5))
            fit(model, epochs=2, merge_epochs=1)
        norm = norm_of(model)
        averages = {id(v) for v in norm.non_trainable_variables}
        others = [v for v in model.variables if id(v) not in averages]
        runs.append((values(others), values(norm.non_trainable_variables)))
    assert_same(runs[0][0], runs[1][0])
    assert not np.array_equal(runs[0][1][0], runs[1][1][0])


class Rates(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        self.seen.append(float(self.model.optimizer.learning_rate))


@pytest.mark.parametrize(
    "run_eagerly", [pytest.param(True, marks=pytest.mark.slow), False]
)
def test_a_schedule_runs_through_the_last_epochs_once_more(run_eagerly):
    schedule = keras.optimizers.schedules.PolynomialDecay(1.0, 24, 0.0)
    model = compile_model(
        make_model(),
        optimizer=keras.optimizers.SGD(schedule),
        run_eagerly=run_eagerly,
    )
    rates, seen = Rates(), AtTheSwitch(6)
    before = values(model.theta_variables)
    # 6 epochs of 3 steps, and 2 of 5 where 24 would have been left.
    fit(model, epochs=8, merge_epochs=2, callbacks=[rates, seen])
    expected = [1 - i / 24 for i in range(18)]
    expected += [1 - round(2.4 * i) / 24 for i in range(10)]
    np.testing.assert_allclose(rates.seen, expected, rtol=1e-5)
    assert not np.array_equal(before[0], values(model.theta_variables)[0])
    # The compiled step follows it too: at a rate of 0, theta would rest.
    config = model.optimizer.get_config()["learning_rate"]
    assert config["class_name"] == "PolynomialDecay"
    # What comes next goes on where the schedule is.
    assert int(model.optimizer.iterations) == 24
    fit(model, callbacks=[rates])
    assert rates.seen[28:] == [0.0, 0.0, 0.0]


def test_a_compiled_step_follows_the_schedule():
    """A rate of 1 at the first twelve steps of 24, and 0 behind."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [11], [1.0, 0.0]
    )
    model = compile_model(
        make_model(),
        optimizer=keras.optimizers.SGD(schedule),
        run_eagerly=False,
    )
    seen = AtTheSwitch(6)
    steps = []

    class Steps(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            steps.append(values(self.model.theta_variables)[0])

    fit(model, epochs=8, merge_epochs=2, callbacks=[seen, Steps()])
    still = [np.array_equal(a, b) for a, b in itertools.pairwise(steps)]
    # 12 of 18 steps; then 5 of 10, of 2.4 steps each.
    assert still == 11 * [False] + 6 * [True] + 5 * [False] + 5 * [True]


def test_a_learning_rate_that_was_lowered_begins_again():
    class Lower(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.learning_rate *= 0.5

    model = compile_model(make_model(), optimizer=keras.optimizers.SGD(0.1))
    rates = Rates()
    fit(model, epochs=4, merge_epochs=2, callbacks=[Lower(), rates])
    np.testing.assert_allclose(
        rates.seen, [0.1] * 3 + [0.05] * 3 + [0.1] * 5 + [0.05] * 5
    )


def test_a_callback_that_sets_learning_rates_goes_on():
    rates = Rates()
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: 0.5**epoch)
    model = compile_model(make_model())
    fit(model, epochs=3, merge_epochs=1, callbacks=[schedule, rates])
    np.testing.assert_allclose(rates.seen, [1.0] * 3 + [0.5] * 3 + [0.25] * 5)


def test_weights_with_a_learned_regularizer_stay_where_they_are():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    dense = keras.layers.Dense(
        4, kernel_regularizer=kcr.regularizers.LearnedL2()
    )
    outputs = keras.layers.Dense(2, activation="softmax")(dense(inputs))
    model = compile_model(kcr.CrossRegModel(inputs, outputs))
    seen = AtTheSwitch(1)
    fit(model, epochs=2, merge_epochs=1, callbacks=[seen])
    np.testing.assert_array_equal(seen.theta[0], seen.end[0])
    np.testing.assert_allclose(
        seen.theta[2], (seen.start[2] + seen.end[2]) / 2, rtol=1e-6
    )


def test_constraints_hold_where_theta_go_back():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    dense = keras.layers.Dense(4, kernel_constraint="unit_norm")
    x = kcr.layers.GaussianNoiseScale(seed=1)(dense(inputs))
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    model = compile_model(kcr.CrossRegModel(inputs, outputs))
    seen = AtTheSwitch(1)
    fit(model, epochs=2, merge_epochs=1, callbacks=[seen])
    norms = np.linalg.norm(seen.theta[0], axis=0)
    np.testing.assert_allclose(norms, 1.0, rtol=1e-5)


def test_where_all_epochs_are_merged_nothing_goes_back():
    model = compile_model(make_model())
    seen = AtTheSwitch(0)
    fit(model, epochs=2, merge_epochs=2, callbacks=[seen])
    assert_same(seen.start, seen.theta)
