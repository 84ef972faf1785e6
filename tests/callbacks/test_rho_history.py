"""The learned values in the logs, epoch by epoch."""

import csv
import dataclasses
import pathlib

import keras
import numpy as np
import pytest
from helpers import HAS_TENSORFLOW
from helpers import NEEDS_TENSORFLOW
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model

import keras_crossreg as kcr


def make_model_of_shapes():
    """One sigma, and one for each of three features."""
    inputs = keras.Input((3,))
    x = kcr.layers.GaussianNoiseScale(0.5, name="one")(inputs)
    x = kcr.layers.GaussianNoiseScale(0.2, axis=-1, name="each")(x)
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    return compile_model(kcr.CrossRegModel(inputs, outputs))


class Collect(keras.callbacks.Callback):
    """What a callback sees that comes after."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.rho = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(dict(logs))
        self.rho.append(self.model.get_rho())


@dataclasses.dataclass
class Run:
    """What a run of two epochs leaves behind."""

    start: dict
    recorded: kcr.callbacks.RhoHistory
    after: Collect
    logs: dict
    folder: pathlib.Path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model = make_model_of_shapes()
    start = model.get_rho()
    recorded, after = kcr.callbacks.RhoHistory(), Collect()
    callbacks = [
        recorded,
        after,
        keras.callbacks.CSVLogger(folder / "log.csv"),
    ]
    if HAS_TENSORFLOW:
        callbacks.append(keras.callbacks.TensorBoard(folder, write_graph=False))
    reg_data = make_data(40, seed=1)
    history = fit(model, epochs=2, reg_data=reg_data, callbacks=callbacks)
    return Run(start, recorded, after, history.history, folder)


def test_every_value_of_every_epoch(run):
    recorded = run.recorded
    assert list(recorded.history) == ["one/scale", "each/scale"]
    assert recorded.history["one/scale"].shape == (2,)
    assert recorded.history["each/scale"].shape == (2, 3)
    for path, values in recorded.history.items():
        expected = [rho[path] for rho in run.after.rho]
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(recorded.start[path], run.start[path])
    assert (recorded.history["one/scale"] != run.start["one/scale"]).all()
    assert recorded.meanings == dict.fromkeys(run.start, "noise sigma")
    assert recorded.epochs.tolist() == [0, 1]
    # An epoch has 24 rows in batches of 8.
    assert recorded.steps.tolist() == [3, 6]


def test_logs_hold_numbers(run):
    each = run.recorded.history["each/scale"]
    expected = {
        "rho/one/scale": run.recorded.history["one/scale"],
        "rho/each/scale/mean": each.mean(axis=1),
        "rho/each/scale/min": each.min(axis=1),
        "rho/each/scale/max": each.max(axis=1),
    }
    assert {k for k in run.logs if k.startswith("rho/")} == set(expected)
    for key, values in expected.items():
        np.testing.assert_allclose(run.logs[key], values)
        assert [seen[key] for seen in run.after.seen] == run.logs[key]
        assert all(type(value) is float for value in run.logs[key])


def test_csv(run):
    with open(run.folder / "log.csv") as file:
        rows = list(csv.DictReader(file))
    history = run.recorded.history
    found = [float(row["rho/one/scale"]) for row in rows]
    assert found == history["one/scale"].tolist()
    assert float(rows[1]["rho/each/scale/max"]) == pytest.approx(
        history["each/scale"][1].max()
    )


@NEEDS_TENSORFLOW
def test_tensorboard(run):
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    events = event_accumulator.EventAccumulator(str(run.folder / "train"))
    events.Reload()
    found = [
        float(tensor_util.make_ndarray(event.tensor_proto))
        for event in events.Tensors("epoch_rho/one/scale")
    ]
    np.testing.assert_allclose(found, run.recorded.history["one/scale"])
    assert len(events.Tensors("epoch_rho/each/scale/min")) == 2


def test_frozen_rho_are_recorded_in_merged_epochs():
    model = compile_model(make_model())
    recorded = kcr.callbacks.RhoHistory()
    history = fit(model, epochs=4, merge_epochs=2, callbacks=[recorded])
    values = recorded.history["noise/scale"]
    assert values[0] != values[1] == values[2] == values[3]
    assert history.history["rho/noise/scale"] == values.tolist()
    assert recorded.epochs.tolist() == [0, 1, 2, 3]
    # An epoch has 3 batches of 24 rows, and merged 5 of 36.
    assert recorded.steps.tolist() == [3, 6, 11, 16]


def test_the_next_fit_starts_anew():
    model = compile_model(make_model())
    recorded = kcr.callbacks.RhoHistory()
    fit(model, epochs=2, callbacks=[recorded])
    last = recorded.history["noise/scale"][-1]
    fit(model, epochs=3, initial_epoch=2, callbacks=[recorded])
    assert recorded.start == {"noise/scale": last}
    assert recorded.epochs.tolist() == [2]
    assert recorded.steps.tolist() == [9]


@pytest.mark.parametrize("frozen", [False, True])
def test_without_anything_to_learn(frozen):
    model = compile_model(make_model(rho=frozen))
    model.freeze_rho()
    recorded = kcr.callbacks.RhoHistory()
    history = fit(model, reg_data=None, callbacks=[recorded]).history
    if frozen:
        assert history["rho/noise/scale"] == pytest.approx([0.5])
    else:
        assert set(history) == {"loss"}
        assert recorded.history == recorded.start == {}
        assert recorded.steps.tolist() == [3]


def test_before_any_fit():
    recorded = kcr.callbacks.RhoHistory()
    assert recorded.history == recorded.start == {}
    assert recorded.steps.shape == recorded.epochs.shape == (0,)


def test_a_plain_keras_model():
    model = make_model(cls=keras.Model)
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    recorded = kcr.callbacks.RhoHistory()
    model.fit(*make_data(), callbacks=[recorded], verbose=0)
    assert recorded.history["noise/scale"] == pytest.approx([0.5])


def test_the_progress_bar(capsys):
    model = compile_model(make_model(), metrics=["accuracy"])
    validation_data = make_data(12, seed=2)
    recorded = kcr.callbacks.RhoHistory()
    fit(
        model,
        verbose=2,
        validation_data=validation_data,
        callbacks=[recorded],
    )
    line = capsys.readouterr().out.splitlines()[-1]
    names = [part.split(":")[0] for part in line.split(" - ") if ":" in part]
    assert names == [
        "accuracy",
        "loss",
        "reg_accuracy",
        "reg_loss",
        "val_accuracy",
        "val_loss",
        "rho/noise/scale",
    ]
