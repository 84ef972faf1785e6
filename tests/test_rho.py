"""Marking, reading, setting, freezing and printing rho."""

import builtins
import re
import sys
import types

import keras
import numpy as np
import pytest
from helpers import assert_same
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from helpers import moved
from helpers import values
from keras import ops

import keras_crossreg as kcr


class Shift(keras.layers.Layer):
    """A layer of the user's own with a rho."""

    def build(self, input_shape):
        self.shift = kcr.mark_rho(
            self.add_weight(
                shape=(input_shape[-1],),
                initializer="zeros",
                dtype="float32",
                autocast=False,
                trainable=False,
            ),
            meaning="shift of a feature",
        )

    def call(self, inputs):
        return inputs + ops.cast(self.shift, inputs.dtype)


def model_of(*layers):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((3,))
    for layer in layers:
        x = layer(x)
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    return kcr.CrossRegModel(inputs, outputs)


# Marking.


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "float64"])
def test_a_layer_of_ones_own_learns(policy):
    model = compile_model(model_of(Shift(dtype=policy)))
    (rho,) = model.rho_variables
    assert rho.dtype == "float32"
    assert kcr.is_rho(rho)
    assert not any(map(kcr.is_rho, model.theta_variables))
    before = values([rho])
    fit(model, reg_data=make_data(40, seed=1))
    assert all(moved(before, [rho]))


def test_mark_rho_refuses_other_dtypes_and_things():
    with pytest.raises(ValueError, match="float32.*Received: .*float16"):
        kcr.mark_rho(keras.Variable(1.0, dtype="float16"))
    with pytest.raises(ValueError, match="Received: variable=3$"):
        kcr.mark_rho(3)


def test_mark_rho_takes_a_variable_out_of_training():
    variable = keras.Variable(1.0)
    assert not kcr.is_rho(variable)
    assert kcr.mark_rho(variable) is variable
    assert kcr.is_rho(variable)
    assert not variable.trainable


def test_rho_stay_rho_when_a_model_is_made_trainable_again():
    class Careless(keras.layers.Layer):
        def build(self, input_shape):
            self.shift = kcr.mark_rho(
                self.add_weight(dtype="float32", autocast=False)
            )

        def call(self, inputs):
            return inputs + self.shift

    model = model_of(Careless())
    model.trainable = False
    model.trainable = True
    for variables in (
        model.trainable_variables,
        model.trainable_weights,
        model.theta_variables,
    ):
        assert [v.name for v in variables] == ["kernel", "bias"]
    assert len(model.rho_variables) == 1


# Reading and setting.


def test_get_and_set_in_human_units():
    model = model_of(
        kcr.layers.GaussianNoiseScale(0.5, name="one"),
        kcr.layers.GaussianNoiseScale(0.25, axis=-1, name="each"),
        Shift(name="own"),
    )
    rho = model.get_rho()
    path = next(p for p in rho if p.startswith("own"))
    assert list(rho) == ["one/scale", "each/scale", path]
    assert rho["one/scale"] == pytest.approx(0.5)
    np.testing.assert_allclose(rho["each/scale"], [0.25] * 3, rtol=1e-6)
    np.testing.assert_array_equal(rho[path], [0.0] * 3)
    new = {"one/scale": 13.0, "each/scale": [0.1, 1.0, 0.0], path: -2.0}
    model.set_rho(new)
    again = model.get_rho()
    assert again["one/scale"] == pytest.approx(13.0)
    np.testing.assert_allclose(
        again["each/scale"], new["each/scale"], rtol=1e-5, atol=1e-7
    )
    np.testing.assert_array_equal(again[path], [-2.0] * 3)
    model.set_rho(again)
    assert model.get_rho()["one/scale"] == pytest.approx(13.0)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("nowhere", 1.0, "Received: path=nowhere$"),
        ("b/scale", -0.1, "Received: b/scale=-0.1$"),
        ("b/scale", float("nan"), "Received: b/scale=nan$"),
        ("b/scale", float("inf"), "Received: b/scale=inf$"),
        ("b/scale", [1.0, 2.0], r"shape \(\).*Received: value="),
    ],
)
def test_set_rho_sets_all_or_nothing(name, value, match):
    model = model_of(*(kcr.layers.GaussianNoiseScale(name=n) for n in "ab"))
    before = values(model.rho_variables)
    with pytest.raises(ValueError, match=match):
        model.set_rho({"a/scale": 3.0, name: value})
    assert_same(before, values(model.rho_variables))


# Freezing.


def test_freeze_and_unfreeze():
    model = compile_model(make_model(), run_eagerly=False)
    model.freeze_rho()
    before = values(model.rho_variables)
    fit(model)
    assert not any(moved(before, model.rho_variables))
    model.unfreeze_rho()
    fit(model)
    assert all(moved(before, model.rho_variables))


def test_a_callback_freezes_during_training():
    class Freeze(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.freeze_rho()
            if epoch == 3:
                self.model.unfreeze_rho()

    model = compile_model(make_model())
    seen = []
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(model.get_rho())
    )
    fit(model, epochs=4, callbacks=[Freeze(), record])
    assert seen[0] == seen[1] == seen[2] != seen[3]
    assert int(model.rho_optimizer.iterations) == 6


def test_a_layer_that_is_not_trainable_keeps_its_rho():
    model = model_of(
        kcr.layers.GaussianNoiseScale(name="held"),
        kcr.layers.GaussianNoiseScale(name="free"),
    )
    model.get_layer("held").trainable = False
    compile_model(model)
    before = values(model.rho_variables)
    fit(model)
    assert moved(before, model.rho_variables) == [False, True]


def test_a_model_that_is_not_trainable_needs_no_reg_data():
    model = make_model()
    for layer in model.layers:
        layer.trainable = "noise" not in layer.name
    compile_model(model)
    history = fit(model, reg_data=None).history
    assert set(history) == {"loss"}


# The table.


def summary(model, **kwargs):
    lines = []
    model.rho_summary(print_fn=lines.append, **kwargs)
    return "\n".join(lines)


def test_summary_shows_layer_meaning_start_and_now():
    model = model_of(
        kcr.layers.GaussianNoiseScale(0.5, name="one"),
        kcr.layers.GaussianNoiseScale(0.25, axis=-1, name="each"),
        Shift(name="own"),
    )
    model.set_rho({"one/scale": 13.0, "each/scale": [1.0, 2.0, 3.0]})
    text = summary(model, line_length=120)
    rows = {
        name: next(line for line in text.splitlines() if f" {name} (" in line)
        for name in ("one", "each", "own")
    }
    for name, parts in {
        "one": ("GaussianNoiseScale", "noise sigma", " 0.5 ", " 13 "),
        "each": ("noise sigma", " 0.25 ", "2 (1 to 3, 3 values)"),
        "own": ("Shift", "shift of a feature", " - ", "0 (0 to 0, 3 values)"),
    }.items():
        assert all(part in rows[name] for part in parts), rows[name]
    assert max(map(len, text.splitlines())) <= 120


def row_of(model, name):
    """The lines of a row, what is in its columns in one line each."""
    text = summary(model, line_length=140)
    (row,) = [r for r in re.split("[├└┡]", text) if f" {name} (" in r]
    lines = [re.split("│", r) for r in row.splitlines() if "│" in r]
    columns = zip(*lines, strict=True)
    return " | ".join(" ".join(" ".join(c).split()) for c in columns)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (kcr.layers.GaussianNoiseScale(0.01), "next to no noise"),
        (kcr.layers.GaussianNoiseScale(0.5), "0.5 times the signal"),
        (kcr.layers.GaussianNoiseScale(1.1), "as large as the signal"),
        (kcr.layers.LearnedDropout(0.25), "drops 25%"),
        # Its variance is rate / (1 - rate).
        (kcr.layers.LearnedGaussianDropout(0.2), "noise 0.5 times each input"),
        (kcr.layers.Temperature(2.0), "predictions less sure"),
        (kcr.layers.Temperature(0.5), "predictions surer"),
    ],
)
def test_summary_says_what_a_value_means(layer, words):
    assert words in row_of(model_of(layer), layer.name)


def test_summary_draws_the_course_that_rho_history_saw():
    model = model_of(kcr.layers.GaussianNoiseScale(0.5, name="one"))
    assert "Course" not in summary(model)
    record = kcr.callbacks.RhoHistory()
    record.set_model(model)
    compile_model(model)
    record.on_train_begin()
    for epoch, value in enumerate([1.0, 2.0, 4.0]):
        model.set_rho({"one/scale": value})
        record.on_epoch_end(epoch)
    assert "Course" in summary(model)
    # From 0.5 on; the highest bar is the largest value, and no bar is 0.
    assert "| ▂▃▅█ |" in row_of(model, "one")
    # It says nothing of a value that came about otherwise.
    model.set_rho({"one/scale": 3.0})
    assert "Course" not in summary(model)


@pytest.mark.slow
def test_summary_draws_long_courses_in_short():
    model = model_of(kcr.layers.GaussianNoiseScale(0.5, name="one"))
    compile_model(model)
    record = kcr.callbacks.RhoHistory()
    fit(model, epochs=30, callbacks=[record])
    bars = [c for c in row_of(model, "one") if c in "▁▂▃▄▅▆▇█"]
    assert len(bars) == 12


def test_summary_without_rho():
    assert "No rho in this model." in summary(make_model(rho=False))


def test_summary_prints(capsys):
    make_model().rho_summary()
    assert "noise (GaussianNoiseScale)" in capsys.readouterr().out


def test_summary_in_a_notebook(capsys, monkeypatch):
    class ZMQInteractiveShell:
        pass

    shown = []
    display = types.SimpleNamespace(display=shown.append)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(
        builtins, "get_ipython", ZMQInteractiveShell, raising=False
    )
    make_model().rho_summary()
    html = shown[0]._repr_mimebundle_((), ())["text/html"]
    assert "noise (GaussianNoiseScale)" in html and "font-weight: bold" in html
    # A function gets plain text, also there.
    assert "noise (GaussianNoiseScale)" in summary(make_model())
    assert len(shown) == 1
    assert not capsys.readouterr().out


def test_summary_shows_brackets():
    model = model_of(kcr.layers.GaussianNoiseScale(name="a[b]"))
    assert "a[b] (GaussianNoiseScale)" in summary(model)
