"""Regularization sets that teach rho something else than they seem to."""

import keras
import numpy as np
import pytest
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model

import keras_crossreg as kcr


def by_class(rows):
    """Features and labels, sorted by class."""
    x, y = make_data(rows)
    order = np.argsort(y, kind="stable")
    return x[order], y[order]


def test_a_split_of_data_that_are_sorted_by_class():
    x, y = by_class(200)
    model = compile_model(make_model())
    with pytest.warns(UserWarning, match=r"no example of the classes \[0\]"):
        fit(model, x=x, y=y, batch_size=40, reg_data=None, reg_split=0.2)


def test_one_hot_labels_of_a_single_class():
    x, y = make_data(100)
    x_reg, y_reg = make_data(100, seed=1)
    model = compile_model(make_model(), loss="categorical_crossentropy")
    one_hot = np.eye(2, dtype="float32")
    reg_data = x_reg[y_reg == 1], one_hot[y_reg[y_reg == 1]]
    with pytest.warns(UserWarning, match=r"no example of the classes \[0\]"):
        fit(model, x=x, y=one_hot[y], batch_size=50, reg_data=reg_data)


def test_a_rare_class_may_be_missing(recwarn):
    x, y = make_data(100)
    y[:] = 0
    y[:5] = 1
    x_reg, y_reg = make_data(40, seed=1)
    y_reg[:] = 0
    fit(
        compile_model(make_model()),
        x=x,
        y=y,
        batch_size=50,
        reg_data=(x_reg, y_reg),
    )
    assert not [w for w in recwarn if "classes" in str(w.message)]


def test_layers_that_are_held():
    model = compile_model(make_model())
    model.get_layer("noise").trainable = False
    message = r"`trainable=False`.*Received: rho=\['noise/scale'\]"
    with pytest.warns(UserWarning, match=message):
        fit(model)
    assert model.get_rho()["noise/scale"] == pytest.approx(0.5)


def test_frozen_rho_are_meant(recwarn):
    model = compile_model(make_model())
    model.freeze_rho()
    fit(model)
    assert not [w for w in recwarn if "trainable" in str(w.message)]


def test_one_optimizer_for_both():
    adam = keras.optimizers.Adam()
    with pytest.raises(ValueError, match="are one object$"):
        make_model().compile(adam, "mse", rho_optimizer=adam)
    # Names make two.
    make_model().compile("adam", "mse", rho_optimizer="adam")


@pytest.mark.parametrize(
    "run_eagerly", [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_data_of_another_kind_in_a_later_fit(run_eagerly):
    pandas = pytest.importorskip("pandas")
    x, y = make_data(24, seed=1)
    kinds = (x, y), (pandas.DataFrame(x), pandas.Series(y))
    for order in (kinds, kinds[::-1]):
        model = compile_model(
            make_model(), metrics=["accuracy"], run_eagerly=run_eagerly
        )
        for reg_data in order:
            history = fit(model, reg_data=reg_data).history
        assert np.isfinite(history["reg_loss"]).all()
        assert int(model.rho_optimizer.iterations) == 6


def test_the_cause_leads_the_message():
    class Failing(keras.losses.Loss):
        def call(self, y_true, y_pred):
            raise ValueError("The moon is full.")

    model = compile_model(make_model(), loss=Failing())
    message = "^The moon is full.(?s:.*)regularization pass.*Received: reg_"
    with pytest.raises(ValueError, match=message):
        fit(model)
    model = compile_model(make_model(), loss=Failing(), run_eagerly=False)
    with pytest.raises(ValueError, match=message):
        fit(model)


def test_a_batch_in_a_callback_leaves_the_fit_as_it_is():
    class Extra(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.train_on_batch(
                *make_data(8, seed=3), reg_data=make_data(12, seed=4)
            )

    model = compile_model(make_model())
    history = fit(model, epochs=2, callbacks=[Extra()]).history
    # Three steps an epoch, and one of the callback.
    assert int(model.rho_optimizer.iterations) == 2 * (3 + 1)
    assert np.isfinite(history["reg_loss"]).all()
    assert kcr.is_rho(model.rho_variables[0])
