"""Keras's callbacks see what they see in `keras.Model.fit`, and rho too."""

import csv

import keras
import numpy as np
import pytest
from helpers import EAGER
from helpers import NEEDS_TENSORFLOW
from helpers import assert_same
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from helpers import needs_executions_of
from helpers import values
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.util import tensor_util

import keras_crossreg as kcr

VALIDATION = make_data(12, seed=2)


class Recorder(keras.callbacks.Callback):
    """Every event, with its index and its logs."""

    def __init__(self):
        super().__init__()
        self.events = []

    def keys(self):
        return [(name, index, set(logs)) for name, index, logs in self.events]


def _record(name, has_index):
    def with_index(self, index, logs=None):
        self.events.append((name, index, dict(logs or {})))

    def without(self, logs=None):
        self.events.append((name, None, dict(logs or {})))

    return with_index if has_index else without


for _mode in ("train", "test", "predict"):
    for _when in ("begin", "end"):
        for _name, _has_index in (
            (f"on_{_mode}_{_when}", False),
            (f"on_{_mode}_batch_{_when}", True),
        ):
            setattr(Recorder, _name, _record(_name, _has_index))
for _name in ("on_epoch_begin", "on_epoch_end"):
    setattr(Recorder, _name, _record(_name, True))


class Weights(keras.callbacks.Callback):
    """Copies of all weights at the end of every epoch."""

    def __init__(self):
        super().__init__()
        self.by_epoch = []

    def on_epoch_end(self, epoch, logs=None):
        self.by_epoch.append(values(self.model.weights))


def up_again():
    """Two epochs down the loss, and up from then on."""
    return keras.callbacks.LearningRateScheduler(
        lambda epoch, rate: 0.1 if epoch < 2 else -1.0
    )


def recorded(model, **kwargs):
    recorder = Recorder()
    fit(
        model,
        epochs=2,
        validation_data=VALIDATION,
        callbacks=[recorder],
        **kwargs,
    )
    return recorder


def plain_events(steps_per_execution):
    model = make_model(cls=keras.Model)
    model.compile(
        keras.optimizers.SGD(0.1),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        run_eagerly=EAGER,
        steps_per_execution=steps_per_execution,
    )
    x, y = make_data()
    recorder = Recorder()
    model.fit(
        x,
        y,
        batch_size=8,
        shuffle=False,
        epochs=2,
        verbose=0,
        validation_data=VALIDATION,
        callbacks=[recorder],
    )
    return recorder


# ---- Events and logs ---------------------------------------------------------


@pytest.mark.parametrize(
    "steps_per_execution", [1, pytest.param(2, marks=pytest.mark.slow)]
)
def test_events_and_batch_logs(steps_per_execution):
    needs_executions_of(steps_per_execution)
    plain = plain_events(steps_per_execution)
    settings = dict(
        metrics=["accuracy"], steps_per_execution=steps_per_execution
    )
    model = compile_model(make_model(), **settings)
    learning = recorded(model)
    expected = []
    for name, index, keys in plain.keys():
        if keys and name != "on_test_batch_end" and name != "on_test_end":
            keys = keys | {"reg_loss", "reg_accuracy"}
        expected.append((name, index, keys))
    assert learning.keys() == expected
    # With rho frozen, the numbers of training are those of Keras.
    model = compile_model(make_model(), **settings)
    model.freeze_rho()
    frozen = recorded(model, reg_data=None)
    assert frozen.keys() == plain.keys()
    for (name, _, logs), (_, _, others) in zip(
        frozen.events, plain.events, strict=True
    ):
        if "test" not in name:
            for key in [k for k in logs if not k.startswith("val_")]:
                assert logs[key] == others[key]


def test_progress_bar_over_both_phases(capsys):
    fit(compile_model(make_model()), epochs=2, merge_epochs=1, verbose=1)
    lines = capsys.readouterr().out.replace("\r", "\n").splitlines()
    ends = [line for line in lines if "step" in line and " loss" in line]
    assert any("3/3" in line and "reg_loss" in line for line in ends)
    # The regularization set makes it five batches, and is measured no more.
    assert any("5/5" in line for line in ends)
    assert not any("5/5" in line and "reg_loss" in line for line in ends)
    assert "Epoch 2/2" in lines
    fit(compile_model(make_model()), verbose=2)
    assert "reg_loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        {"merge_epochs": 1},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"validation_data": VALIDATION}, marks=pytest.mark.slow),
    ],
)
def test_csv_logger_has_the_same_columns_in_every_epoch(arguments, tmp_path):
    # The first rho step comes in the second epoch.
    model = compile_model(make_model(), reg_freq=4, metrics=["accuracy"])
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = fit(model, epochs=3, callbacks=[logger], **arguments).history
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    for name, column in history.items():
        np.testing.assert_allclose([float(row[name]) for row in rows], column)
    assert {"reg_loss", "reg_accuracy"} <= set(history)
    assert np.isfinite([float(row["reg_loss"]) for row in rows[:2]]).all()


def tags(folder):
    """Every value that TensorBoard was given: `{tag: [(step, value)]}`."""
    found = {}
    for path in folder.glob("events*"):
        for event in event_file_loader.EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                number = tensor_util.make_ndarray(value.tensor)
                found.setdefault(value.tag, []).append((event.step, number))
    return found


@NEEDS_TENSORFLOW
def test_tensorboard(tmp_path):
    model = compile_model(make_model(), metrics=["accuracy"])
    board = keras.callbacks.TensorBoard(
        tmp_path, histogram_freq=1, update_freq=1, write_images=True
    )
    history = fit(
        model, epochs=2, validation_data=VALIDATION, callbacks=[board]
    ).history
    train = tags(tmp_path / "train")
    for name in ("loss", "accuracy", "reg_loss", "reg_accuracy"):
        np.testing.assert_allclose(
            [float(v) for _, v in train[f"epoch_{name}"]], history[name]
        )
        assert [step for step, _ in train[f"batch_{name}"]] == list(range(1, 7))
    assert [float(v) for _, v in train["epoch_learning_rate"]] == [
        pytest.approx(0.1)
    ] * 2
    # Rho are weights of a layer as all others.
    assert len(train["noise/scale/histogram"]) == 2
    assert set(tags(tmp_path / "validation")) >= {
        "epoch_loss",
        "epoch_accuracy",
    }


@NEEDS_TENSORFLOW
def test_tensorboard_with_loss_scaling_and_merged_epochs(tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = compile_model(make_model())
    finally:
        keras.config.set_dtype_policy(before)
    board = keras.callbacks.TensorBoard(tmp_path, write_steps_per_second=True)
    fit(model, epochs=3, merge_epochs=1, callbacks=[board])
    train = tags(tmp_path / "train")
    for name in ("loss", "reg_loss", "learning_rate", "steps_per_second"):
        assert [step for step, _ in train[f"epoch_{name}"]] == [0, 1, 2]


# ---- Checkpoints -------------------------------------------------------------


def test_model_checkpoint_keeps_the_best(tmp_path):
    model = compile_model(make_model())
    monitors = ("val_loss", "reg_loss")
    checkpoints = [
        keras.callbacks.ModelCheckpoint(
            str(tmp_path / f"{monitor}{suffix}"),
            monitor=monitor,
            mode="min",
            save_best_only=True,
            save_weights_only=suffix == ".weights.h5",
        )
        for monitor in monitors
        for suffix in (".keras", ".weights.h5")
    ]
    weights = Weights()
    history = fit(
        model,
        epochs=3,
        validation_data=VALIDATION,
        callbacks=[up_again(), *checkpoints, weights],
    ).history
    for monitor in monitors:
        assert int(np.argmin(history[monitor])) == 1
        whole = keras.models.load_model(tmp_path / f"{monitor}.keras")
        assert isinstance(whole, kcr.CrossRegModel)
        assert int(whole.rho_optimizer.iterations) == 3 * 2
        other = make_model(seed=9)
        other.load_weights(tmp_path / f"{monitor}.weights.h5")
        for loaded in (whole, other):
            assert_same(values(loaded.weights), weights.by_epoch[1])


def test_model_checkpoint_in_the_middle_of_an_epoch(tmp_path):
    model = compile_model(make_model())
    checkpoint = keras.callbacks.ModelCheckpoint(
        str(tmp_path / "{epoch}-{batch}.keras"), save_freq=2
    )
    fit(model, epochs=2, callbacks=[checkpoint])
    counts = {
        path.stem: [
            int(o.iterations) for o in (model.optimizer, model.rho_optimizer)
        ]
        for path in tmp_path.glob("*.keras")
        for model in [keras.models.load_model(path)]
    }
    # Theta and rho of the same moment.
    assert counts == {"1-2": [2, 2], "2-1": [4, 4], "2-3": [6, 6]}


@pytest.mark.parametrize("monitor", ["val_loss", "reg_loss"])
def test_early_stopping_restores_rho_too(monitor):
    model = compile_model(make_model())
    stop = keras.callbacks.EarlyStopping(
        monitor, patience=1, mode="min", restore_best_weights=True
    )
    weights = Weights()
    history = fit(
        model,
        epochs=9,
        validation_data=VALIDATION,
        callbacks=[up_again(), stop, weights],
    ).history[monitor]
    assert len(history) == 3
    best = int(np.argmin(history))
    assert best == 1
    assert_same(values(model.weights), weights.by_epoch[best])
    # Rho had gone on.
    (rho,) = [i for i, v in enumerate(model.weights) if kcr.is_rho(v)]
    assert weights.by_epoch[best][rho] != weights.by_epoch[-1][rho]


@pytest.mark.slow
def test_early_stopping_where_most_epochs_have_no_rho_step():
    # Rho learn in every fourth epoch, and the loss falls all the time: of so
    # many samples, whatever they are.
    model = compile_model(make_model(), reg_freq=12, num_samples=64)
    stop = keras.callbacks.EarlyStopping("reg_loss", patience=1, mode="min")
    history = fit(
        model,
        epochs=8,
        reg_data=make_data(48, seed=1),
        reg_batch_size=48,
        callbacks=[stop],
    ).history["reg_loss"]
    assert len(set(history)) == len(history)
    fell = np.diff(history[:-1]) < 0
    assert fell.all() and len(history) > 3


def test_the_best_by_reg_loss_is_kept_from_the_first_epoch(tmp_path):
    checkpoint = keras.callbacks.ModelCheckpoint(
        str(tmp_path / "{epoch}.weights.h5"),
        monitor="reg_loss",
        mode="min",
        save_best_only=True,
        save_weights_only=True,
    )
    # The first rho step comes in the second epoch.
    model = compile_model(make_model(), reg_freq=4)
    history = fit(model, epochs=4, callbacks=[checkpoint]).history["reg_loss"]
    saved = sorted(int(path.name[0]) for path in tmp_path.iterdir())
    best = np.minimum.accumulate(history)
    better = [i + 1 for i in range(4) if i == 0 or best[i] < best[i - 1]]
    assert saved == better


# ---- Learning rates ----------------------------------------------------------


def test_learning_rate_callbacks_act_on_theta_alone():
    model = compile_model(make_model())
    schedule = keras.callbacks.LearningRateScheduler(
        lambda epoch, rate: rate * 0.5
    )
    history = fit(model, epochs=2, callbacks=[schedule]).history
    assert history["learning_rate"] == pytest.approx([0.05, 0.025])
    assert float(model.rho_optimizer.learning_rate) == 0.5
    # Theta stands still: no epoch is better than the first.
    model = compile_model(make_model(), optimizer=keras.optimizers.SGD(0.0))
    model.optimizer.learning_rate = 1e-9
    plateau = keras.callbacks.ReduceLROnPlateau(
        "loss", factor=0.1, patience=1, min_delta=10.0, min_lr=0.0
    )
    history = fit(model, epochs=3, callbacks=[plateau]).history
    assert history["learning_rate"] == pytest.approx([1e-9, 1e-9, 1e-10])
    assert float(model.rho_optimizer.learning_rate) == 0.5


def test_a_callback_can_schedule_rho():
    model = compile_model(make_model())
    schedule = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: setattr(
            model.rho_optimizer, "learning_rate", 0.0 if epoch else 0.5
        )
    )
    weights = Weights()
    fit(model, epochs=3, callbacks=[schedule, weights])
    (rho,) = [i for i, v in enumerate(model.weights) if kcr.is_rho(v)]
    first, second, third = [w[rho] for w in weights.by_epoch]
    assert first == second == third


# ---- Averages of theta -------------------------------------------------------


def averaging_run(*callbacks, epochs, merge_epochs):
    model = compile_model(
        make_model(),
        optimizer=keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.9),
    )
    history = fit(
        model,
        epochs=epochs,
        merge_epochs=merge_epochs,
        validation_data=VALIDATION,
        callbacks=list(callbacks),
    )
    return model, history.history


@pytest.mark.parametrize(
    ("epochs", "merge_epochs"),
    [(2, 0), (3, 2)],
)
@pytest.mark.slow
def test_swap_ema_weights(epochs, merge_epochs):
    run = dict(epochs=epochs, merge_epochs=merge_epochs)
    plain = averaging_run(**run)
    for swap_on_epoch in (False, True):
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=swap_on_epoch)
        weights = Weights()
        swapped = averaging_run(swap, weights, **run)
        check_swapped(swapped, plain)
        if swap_on_epoch:
            # A callback that comes after sees the averages, too.
            assert_close(weights.by_epoch[-1], values(swapped[0].weights))


def assert_close(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def check_swapped(swapped, plain):
    (model, swapped), (expected, plain) = swapped, plain
    # Training does not notice, and ends with the averages. Keras swaps by
    # adding and subtracting, which rounds.
    assert_close(values(model.weights), values(expected.weights))
    np.testing.assert_allclose(swapped["loss"], plain["loss"], rtol=1e-4)
    # Validation does: it sees the averages.
    assert swapped["val_loss"] != pytest.approx(plain["val_loss"], rel=1e-3)


# ---- Stopping ----------------------------------------------------------------


@pytest.mark.parametrize("merge_epochs", [0, 1])
def test_terminate_on_nan(merge_epochs):
    x, y = make_data()
    x[20] = np.nan
    model = compile_model(make_model())
    recorder = Recorder()
    history = fit(
        model,
        x=x,
        y=y,
        epochs=3,
        merge_epochs=merge_epochs,
        callbacks=[keras.callbacks.TerminateOnNaN(), recorder],
    )
    assert history.epoch == [0]
    names = [name for name, _, _ in recorder.events]
    assert names.count("on_train_batch_end") == 3
    assert names[-1] == "on_train_end"
    assert names.count("on_train_end") == 1
