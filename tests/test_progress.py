"""What `fit`, `refit` and `predict_samples` show while they run."""

import re

import keras
import numpy as np
import pytest
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model

import keras_crossreg as kcr

pytestmark = pytest.mark.backend

WAITING = "Rho wait for {} training steps, until epoch {} (reg_warmup).\n"
FINISHING = (
    "Finishing: {} on training and regularization data together, with rho "
    "frozen.\n"
)


def learned(**options):
    """Three steps an epoch, of which a few let rho wait."""
    return compile_model(make_model(), **options)


def parts(output):
    """The lines of each epoch, and what came before the first one."""
    return re.split(r"^Epoch \d+/\d+\n", output, flags=re.MULTILINE)


@pytest.mark.parametrize("verbose", ["auto", 1, 2])
def test_no_bar_shows_what_is_not_a_number(capsys, verbose):
    history = fit(
        learned(reg_warmup=4, metrics=["accuracy"]),
        epochs=4,
        merge_epochs=2,
        verbose=verbose,
    )
    # The log keeps its keys.
    missing = np.isnan(history.history["reg_loss"]).tolist()
    assert missing == [False, False, True, True]
    output = capsys.readouterr().out
    assert "nan" not in output
    before, *epochs = parts(output)
    assert before == WAITING.format(4, 2)
    # The first is measured at its end, the second has a step of rho.
    assert ["reg_loss: " in e for e in epochs] == [True, True, False, False]
    assert ["reg_accuracy: " in e for e in epochs] == [True, True, False, False]
    assert all(" loss: " in epoch for epoch in epochs)
    assert epochs[1].endswith(FINISHING.format("2 epochs"))
    assert output.count("Finishing") == 1


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_bar_shows_a_loss_that_is_not_a_number(capsys):
    model = learned()
    fit(model)
    classes = model.get_layer("classes")
    classes.set_weights([np.nan * w for w in classes.get_weights()])
    fit(model, verbose=2)
    assert "reg_loss: nan" in capsys.readouterr().out


def test_a_silent_run_prints_nothing(capsys):
    model = learned(reg_warmup=4)
    x, y = make_data()
    fit(model, epochs=4, merge_epochs=2, verbose=0)
    kcr.refit(model, x, y, verbose=0)
    model.predict_samples(x, 3, verbose=0)
    assert capsys.readouterr().out == ""


def test_what_rho_do_not_wait_for_is_not_told(capsys):
    model = learned()
    fit(model, epochs=2, verbose=2)
    assert "Rho wait" not in capsys.readouterr().out
    # Steps of an earlier `fit` count.
    model = learned(reg_warmup=4)
    fit(model, epochs=2, verbose=2)
    assert WAITING.format(4, 2) in capsys.readouterr().out
    fit(model, epochs=2, verbose=2)
    assert "Rho wait" not in capsys.readouterr().out


def test_frozen_rho_wait_for_nothing(capsys):
    model = learned(reg_warmup=4)
    model.freeze_rho()
    fit(model, epochs=2, reg_data=None, verbose=2)
    assert "Rho" not in capsys.readouterr().out


def test_a_run_of_finishing_epochs_alone(capsys):
    fit(learned(reg_warmup=4), epochs=1, merge_epochs=1, verbose=2)
    output = capsys.readouterr().out
    assert output.startswith(FINISHING.format("1 epoch"))
    assert "nan" not in output and "Rho wait" not in output


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "Refitting: 1 epoch from new weights, with rho frozen.\n"),
        (
            {"epochs": 3, "initial_epoch": 1, "warm": True},
            "Refitting: 2 epochs from the trained weights, with rho frozen.\n",
        ),
    ],
)
def test_refit_names_what_it_does(capsys, arguments, message):
    model = learned()
    fit(model)
    kcr.refit(model, *make_data(36), verbose=2, **arguments)
    output = capsys.readouterr().out
    assert output.startswith(message)
    assert "reg_loss" not in output


def test_a_refit_that_replays_says_so(capsys):
    model, record = learned(), kcr.callbacks.RhoHistory()
    fit(model, callbacks=[record])
    kcr.refit(model, *make_data(36), schedule=record, verbose=2)
    assert "with rho replayed.\n" in capsys.readouterr().out


def test_bars_of_the_user_are_left_alone(capsys):
    class Bar(keras.callbacks.ProgbarLogger):
        pass

    bars = []

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            bars.append(self)

    fit(learned(), callbacks=[Bar(), Look()], verbose=2)
    assert capsys.readouterr().out.count("reg_loss") == 1
    callbacks = keras.callbacks.CallbackList([Look()], add_history=True)
    model = learned()
    callbacks.set_model(model)
    fit(model, callbacks=callbacks, verbose=2)
    assert "reg_loss" not in capsys.readouterr().out
    assert len(bars) == 2


def test_many_samples_have_a_bar(capsys):
    model = learned()
    fit(model)
    x, _ = make_data()
    model.predict_samples(x, 20, batch_size=8)
    # A line for each batch, where the output is no terminal.
    assert "3/3" in capsys.readouterr().out
    model.predict(x, batch_size=8, verbose=2)
    assert "3/3" in capsys.readouterr().out


def test_messages_go_to_the_log_with_those_of_keras(capsys):
    keras.config.disable_interactive_logging()
    try:
        fit(learned(reg_warmup=2), epochs=2, merge_epochs=1, verbose=2)
    finally:
        keras.config.enable_interactive_logging()
    assert capsys.readouterr().out == ""
