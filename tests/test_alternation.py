"""How often rho learn, and how often the steps are traced."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import Subclassed
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model

import keras_crossreg as kcr


def rho_steps(model):
    return int(model.rho_optimizer.iterations.numpy())


@pytest.mark.parametrize(
    ("reg_freq", "reg_warmup", "steps_per_execution", "expected"),
    [
        # 2 epochs of 5 steps.
        (1, 0, 1, 10),
        (3, 0, 1, 3),
        (2, 4, 1, 3),
        # Executions of 3 and 2 steps.
        (2, 0, 3, 5),
        (4, 1, 3, 2),
    ],
)
def test_number_of_rho_steps(
    reg_freq, reg_warmup, steps_per_execution, expected
):
    model = compile_model(
        make_model(),
        reg_freq=reg_freq,
        reg_warmup=reg_warmup,
        steps_per_execution=steps_per_execution,
        run_eagerly=False,
    )
    fit(model, batch_size=5, epochs=2)
    assert int(model.optimizer.iterations) == 10
    assert rho_steps(model) == expected


@pytest.mark.parametrize(
    ("reg_batch_size", "expected"),
    # r is 6 K B_reg / B, with K of 2 and B of 8; K B_reg / (r B) * 2/3 is
    # 1/9. Of a dataset B is not known beforehand, and B_reg all there is.
    [(None, 2), (2, 3), (4, 6), ("dataset", 18)],
)
@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_by_default_rho_steps_add_a_ninth_of_the_work(
    reg_batch_size, expected, steps_per_execution
):
    model = compile_model(
        make_model(),
        reg_freq=None,
        steps_per_execution=steps_per_execution,
        run_eagerly=steps_per_execution == 1,
    )
    arguments = dict(reg_batch_size=reg_batch_size)
    if reg_batch_size == "dataset":
        x = tf.data.Dataset.from_tensor_slices(make_data()).batch(8)
        arguments = dict(x=x, y=None, batch_size=None)
    fit(model, epochs=8, **arguments)
    assert int(model.optimizer.iterations) == 24
    assert rho_steps(model) == 24 // expected


@pytest.mark.parametrize(
    ("momentum", "epochs", "expected"),
    [
        # 2 / (1 - momentum) steps; but not for averages that never move.
        (0.8, 20, 10),
        (0.9, 40, 20),
        (0.0, 4, 2),
        (1.0, 4, 0),
        # A quarter of the steps there are.
        (0.9, 4, 3),
        (0.99, 8, 6),
    ],
)
def test_by_default_rho_wait_for_moving_averages(momentum, epochs, expected):
    model = make_model()
    (norm,) = (la for la in model.layers if hasattr(la, "momentum"))
    norm.momentum = momentum
    compile_model(model, reg_warmup=None, run_eagerly=False)
    fit(model, epochs=epochs)
    assert rho_steps(model) == 3 * epochs - expected
    # They have come up with theta by then.
    fit(model)
    assert rho_steps(model) == 3 * epochs - expected + 3


class Batches(keras.utils.PyDataset):
    """Twelve batches, or a few of an endless number."""

    endless = False

    @property
    def num_batches(self):
        return None if self.endless else 12

    def __getitem__(self, i):
        return tuple(a[:2] for a in make_data(seed=i))


def batches(kind):
    if kind == "PyDataset":
        return Batches()
    if kind == "generator":
        return (Batches()[i] for i in range(12))
    data = tf.data.Dataset.from_tensor_slices(make_data()).batch(2)
    # It is not known how many batches a filter leaves.
    return data.filter(lambda x, y: True) if kind == "filter" else data


@pytest.mark.parametrize(
    ("kind", "expected"),
    # A quarter of 12 steps, where it is known that there are 12.
    [("PyDataset", 3), ("dataset", 3), ("generator", 10), ("filter", 10)],
)
def test_the_default_warmup_of_data_in_batches(kind, expected):
    model = make_model()
    model.layers[2].momentum = 0.8
    compile_model(model, reg_warmup=None)
    warning = contextlib.nullcontext()
    if expected == 10:
        warning = pytest.warns(UserWarning, match="ran out of data")
    with warning:
        fit(model, x=batches(kind), y=None, batch_size=None)
    assert rho_steps(model) == 12 - expected


def test_the_default_warmup_of_an_endless_dataset():
    model = make_model()
    model.layers[2].momentum = 0.8
    compile_model(model, reg_warmup=None)
    x = Batches()
    x.endless = True
    fit(model, x=x, y=None, batch_size=None, steps_per_epoch=4, epochs=2)
    assert rho_steps(model) == 8 - 2


@pytest.mark.parametrize("kind", ["frozen", "without", "zero"])
def test_without_moving_averages_rho_do_not_wait(kind):
    model = make_model()
    if kind == "frozen":
        model.layers[2].trainable = False
    if kind == "without":
        inputs = keras.Input((3,))
        x = kcr.layers.GaussianNoiseScale()(inputs)
        outputs = keras.layers.Dense(2, activation="softmax")(x)
        model = kcr.CrossRegModel(inputs, outputs)
    compile_model(model, reg_warmup=0 if kind == "zero" else None)
    fit(model)
    assert rho_steps(model) == 3


def test_a_nested_and_a_subclassed_model_wait_too():
    class Nested(kcr.CrossRegModel):
        def __init__(self):
            super().__init__()
            self.inner = make_model(cls=keras.Model)

        def call(self, inputs):
            return self.inner(inputs)

    for model in (Nested(), Subclassed()):
        compile_model(model, reg_warmup=None)
        fit(model, epochs=4)
        assert rho_steps(model) == 12 - 3


def test_counting_goes_on_over_several_fits():
    model = compile_model(make_model(), reg_freq=4, reg_warmup=1)
    with pytest.warns(UserWarning, match="comes after 5 .* there were 3"):
        fit(model)
    assert rho_steps(model) == 0
    for expected in (1, 2, 2, 3):
        fit(model)
        assert rho_steps(model) == expected


def test_gradient_accumulation_does_not_change_the_count():
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)
    model = compile_model(make_model(), optimizer=optimizer, reg_freq=2)
    fit(model, epochs=2)
    assert rho_steps(model) == 3


@pytest.mark.parametrize(
    "mode",
    [
        dict(jit_compile=True),
        dict(run_eagerly=True, steps_per_execution=2),
    ],
    ids=str,
)
def test_every_mode_gives_the_same_numbers(mode):
    results = []
    # The rho steps that are due follow an execution: the same number in both.
    steps = mode.get("steps_per_execution", 1)
    plain = dict(run_eagerly=False, steps_per_execution=steps)
    for arguments in (plain, plain | mode):
        model = compile_model(
            make_model(), **arguments, rho_optimizer=keras.optimizers.SGD(0.0)
        )
        # The noise itself differs where XLA draws it.
        model.set_rho({"noise/scale": 0.0})
        history = fit(model, batch_size=6).history
        assert rho_steps(model) == 4
        results.append(history["loss"] + history["reg_loss"])
    np.testing.assert_allclose(*results, rtol=1e-4)


def test_each_step_is_traced_once():
    traces = []

    class Counter(kcr.layers.RhoLayer):
        def build(self, input_shape):
            self.rho = self.add_rho("scale", start=0.1)

        def call(self, inputs, training=False, sampling=None):
            traces.append("rho" if sampling else "theta")
            return inputs * self.rho_value(self.rho, sampling)

    inputs = keras.Input((3,))
    outputs = keras.layers.Dense(2)(Counter()(inputs))
    model = kcr.CrossRegModel(inputs, outputs)
    compile_model(model, loss="mse", optimizer="adam", run_eagerly=False)
    x, _ = make_data()
    y = np.zeros((len(x), 2))
    traces.clear()
    reg_x, _ = make_data(13, seed=1)
    reg_data = (reg_x, y[:13])
    arguments = dict(x=x, y=y, reg_data=reg_data, reg_batch_size=5)
    fit(model, epochs=10, **arguments)
    # One more of rho: the check that the gradient reaches it.
    assert sorted(traces) == ["rho", "rho", "theta"]
    model.freeze_rho()
    fit(model, **arguments)
    model.unfreeze_rho()
    fit(model, epochs=3, **arguments)
    assert len(traces) == 3


def test_a_rho_step_every_r_of_a_strategy():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
    with strategy.scope():
        model = compile_model(make_model(), reg_freq=2, run_eagerly=False)
    history = fit(model, epochs=2).history
    assert rho_steps(model) == 3
    assert np.isfinite(history["reg_loss"]).all()


def test_train_on_batch_moves_rho_when_asked():
    model = compile_model(
        make_model(), metrics=["accuracy"], reg_freq=7, run_eagerly=False
    )
    x, y = make_data()
    logs = model.train_on_batch(x, y, return_dict=True)
    assert rho_steps(model) == 0
    assert set(logs) == {"loss", "accuracy"}
    reg_data = make_data(12, seed=1)
    logs = model.train_on_batch(x, y, reg_data=reg_data, return_dict=True)
    assert rho_steps(model) == 1
    assert set(logs) == {"loss", "accuracy", "reg_loss", "reg_accuracy"}


# What the logs show.


def test_reg_loss_and_metrics_are_in_history():
    model = compile_model(
        make_model(),
        run_eagerly=False,
        metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy("hits")],
    )
    history = fit(model, epochs=2, validation_data=make_data(12, seed=2))
    assert set(history.history) == {
        f"{prefix}{name}"
        for prefix in ("", "reg_", "val_")
        for name in ("loss", "accuracy", "hits")
    }
    assert all(len(values) == 2 for values in history.history.values())


@pytest.mark.parametrize("run_eagerly", [True, False])
def test_reg_loss_is_nan_until_there_is_one(run_eagerly, tmp_path):
    # Three steps an epoch: the first rho step is in the second epoch, and
    # there is none in the third, which shows the last. Keys that come and go
    # would break a table of the history, and `CSVLogger`.
    model = compile_model(
        make_model(),
        metrics=["accuracy"],
        reg_freq=5,
        run_eagerly=run_eagerly,
    )
    path = str(tmp_path / "log.csv")
    log = keras.callbacks.CSVLogger(path)
    history = fit(model, epochs=3, callbacks=[log]).history
    for name in ("reg_loss", "reg_accuracy"):
        values = history[name]
        assert np.isnan(values).tolist() == [True, False, False]
        assert values[1] == values[2]
    assert all(len(values) == 3 for values in history.values())
    with open(path) as file:
        header, *rows = file.read().split()
    assert "reg_loss" in header.split(",")
    assert len(rows) == 3


def test_history_shows_means_and_not_last_batches():
    # Nothing moves and nothing is random: the epoch's loss is that of all.
    model = compile_model(
        make_model(),
        optimizer=keras.optimizers.SGD(0.0),
        rho_optimizer=keras.optimizers.SGD(0.0),
        metrics=["accuracy"],
    )
    model.set_rho({"noise/scale": 0.0})
    norm = model.layers[2]
    norm.momentum = 1.0
    reg = make_data(12, seed=1)
    # 3 rho steps of 4 rows go once through the set.
    history = fit(model, reg_data=reg, reg_batch_size=4).history
    loss, accuracy = model.evaluate(*reg, verbose=0)
    assert history["reg_loss"][0] == pytest.approx(loss, rel=1e-5)
    assert history["reg_accuracy"][0] == pytest.approx(accuracy)


def test_evaluate_does_not_report_the_regularization_set():
    model = compile_model(make_model())
    fit(model)
    results = model.evaluate(*make_data(), verbose=0, return_dict=True)
    assert set(results) == {"loss"}


def test_metrics_that_cannot_be_copied_leave_reg_loss():
    class Custom(keras.metrics.Mean):
        def __init__(self, factor):
            super().__init__(name="custom")
            self.factor = factor

        def update_state(self, y, y_pred, sample_weight=None):
            super().update_state(self.factor)

    with pytest.warns(UserWarning, match="Only `reg_loss` is measured"):
        model = compile_model(make_model(), metrics=[Custom(3.0)])
    history = fit(model).history
    assert set(history) == {"loss", "custom", "reg_loss"}
    assert history["custom"] == [3.0]
