"""Bad input is refused before a weight moves, and says what was received."""

import keras
import numpy as np
import pytest
from form_checks import check_fit_refuses
from form_checks import refusing_model
from forms import Batches
from forms import batches
from forms import generator
from helpers import compile_model
from helpers import make_data
from helpers import make_model

import keras_crossreg as kcr

X, Y = make_data()
REG_X, REG_Y = make_data(12, seed=1)


def pydataset(x=X, y=Y):
    return Batches(batches((x, y), 8))


FIT_ERRORS = {
    "no reg_data": (
        {},
        r"no regularization set.*reg_split=0.1.*Received: reg_data=None",
    ),
    "columns": (
        dict(reg_data=(REG_X[:, :2], REG_Y)),
        r"Expected x like \(3,\).*Received: x=\(2,\)",
    ),
    "rank of x": (
        dict(reg_data=(REG_X[:, None], REG_Y)),
        r"Expected x like \(3,\).*Received: x=\(1, 3\)",
    ),
    "rank of y": (
        dict(reg_data=(REG_X, np.eye(2)[REG_Y])),
        r"Expected y like \(\).*Received: y=\(2,\)",
    ),
    "no y": (dict(reg_data=(REG_X,)), "Expected y like .*Received: y=None"),
    "structure of x": (
        dict(reg_data=({"features": REG_X}, REG_Y)),
        "Expected x like .*Received: x={'features'",
    ),
    "rows of y": (dict(reg_data=(REG_X, REG_Y[:-1])), "sizes: 12.*sizes: 11"),
    "PyDataset of another shape": (
        dict(reg_data=pydataset(X[:, :2])),
        r"Expected x like \(3,\).*Received: x=\(2,\)",
    ),
    "empty arrays": (
        dict(reg_data=(REG_X[:0], REG_Y[:0])),
        "at least one example.*Received: reg_data=",
    ),
    "empty generator": (
        dict(reg_data=(batch for batch in [])),
        "at least one batch",
    ),
    "reg_batch_size of 0": (
        dict(reg_data=(REG_X, REG_Y), reg_batch_size=0),
        "1 or more. Received: reg_batch_size=0$",
    ),
    "fractional reg_batch_size": (
        dict(reg_data=(REG_X, REG_Y), reg_batch_size=2.5),
        "1 or more. Received: reg_batch_size=2.5$",
    ),
    "reg_split of 1": (dict(reg_split=1.0), "Received: reg_split=1.0$"),
    "reg_split above 1": (dict(reg_split=8), "Received: reg_split=8$"),
    "negative reg_split": (dict(reg_split=-0.1), "Received: reg_split=-0.1$"),
    "reg_split of no number": (
        dict(reg_split=float("nan")),
        "Received: reg_split=nan$",
    ),
    "reg_split and reg_data": (
        dict(reg_split=0.1, reg_data=(REG_X, REG_Y)),
        "not both. Received: reg_split=0.1",
    ),
    "reg_split of a PyDataset": (
        dict(x=pydataset(), y=None, reg_split=0.1),
        "cut other data yourself.*Received: reg_split=0.1",
    ),
    "reg_split of a generator": (
        dict(x=generator(batches((X, Y), 8)), y=None, reg_split=0.1),
        "cut other data yourself.*Received: reg_split=0.1",
    ),
    "reg_split of one row": (
        dict(x=X[:1], y=Y[:1], reg_split=0.5),
        "1 examples cannot be cut.*Received: reg_split=0.5$",
    ),
    "negative merge_epochs": (
        dict(reg_data=(REG_X, REG_Y), merge_epochs=-1),
        "Received: merge_epochs=-1$",
    ),
    "more merge_epochs than epochs": (
        dict(reg_data=(REG_X, REG_Y), merge_epochs=3, epochs=2),
        "`epochs=2`. Received: merge_epochs=3$",
    ),
    "merge_epochs of nothing": (
        dict(merge_epochs=1),
        "pass `reg_data` or `reg_split`. Received: merge_epochs=1$",
    ),
    "merge_epochs of a PyDataset and arrays": (
        dict(x=pydataset(), y=None, reg_data=(REG_X, REG_Y), merge_epochs=1),
        "both.*arrays.*Received: x of type",
    ),
}


@pytest.mark.parametrize("case", FIT_ERRORS)
def test_fit_refuses(case):
    arguments, match = FIT_ERRORS[case]
    check_fit_refuses(refusing_model(), "(?s)" + match, **arguments)


def test_a_failed_fit_leaves_a_model_that_trains():
    model = compile_model(make_model())
    check_fit_refuses(model, "Received", reg_data=(REG_X[:, :2], REG_Y))
    model.fit(X, Y, reg_data=(REG_X, REG_Y), verbose=0)
    assert int(model.rho_optimizer.iterations) == 1


def test_fit_says_when_the_loss_does_not_take_the_targets():
    model = compile_model(make_model(), loss="categorical_crossentropy")
    check_fit_refuses(
        model,
        "(?s)^.+\nThis came up in the regularization pass.*Received: reg_data=",
        reg_data=(REG_X, REG_Y),
    )


COMPILE_ERRORS = {
    "num_samples": (0, -1, 1.5, "4", True),
    "reg_freq": (0, 2.0),
    "reg_warmup": (-1, 0.5),
    "eval_num_samples": (0,),
    "samples_per_pass": (0, 2.5),
    "averaging": ("mean", 3),
    "hypergradient": ("none", None),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, vs in COMPILE_ERRORS.items() for value in vs],
)
def test_compile_refuses(name, value):
    with pytest.raises(ValueError, match=f"{name}.*Received: {name}={value}$"):
        compile_model(make_model(), **{name: value})


def test_numpy_numbers_are_numbers():
    model = compile_model(
        make_model(), num_samples=np.int64(2), reg_freq=np.int32(1)
    )
    model.fit(
        X, Y, reg_split=np.float32(0.5), reg_batch_size=np.int64(4), verbose=0
    )
    assert int(model.rho_optimizer.iterations) == 1


def test_one_sample_warns():
    with pytest.warns(UserWarning, match="num_samples=1"):
        compile_model(make_model(), num_samples=1)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "a", None])
def test_a_start_value_is_finite_and_not_negative(value):
    match = f"not negative. Received: initial_scale={value}$"
    with pytest.raises(ValueError, match=match):
        kcr.layers.GaussianNoiseScale(initial_scale=value)


class Blocked(kcr.layers.RhoLayer):
    """Stops the gradient of its rho."""

    def build(self, input_shape):
        self.rho = self.add_rho("blocked", start=0.1)

    def call(self, inputs, training=False, sampling=None):
        return inputs * self.rho_value(self.rho, None)


def test_a_rho_without_gradient_is_named():
    inputs = keras.Input((3,))
    x = Blocked(name="stop")(kcr.layers.GaussianNoiseScale()(inputs))
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    model = compile_model(kcr.CrossRegModel(inputs, outputs))
    check_fit_refuses(
        model,
        r"No gradient.*Received: rho=\['stop/blocked'\]$",
        reg_data=(REG_X, REG_Y),
    )


def test_uncompiled_models_are_refused_as_by_keras():
    model = make_model()
    methods = [model.fit, model.train_on_batch]
    if keras.backend.backend() != "torch":
        # There Keras asks nothing, and fails with an `AttributeError`.
        methods.append(model.evaluate)
    for method in methods:
        with pytest.raises(ValueError, match="You must call `compile"):
            method(X, Y)


def test_without_reg_data_frozen_rho_train():
    model = compile_model(make_model())
    model.freeze_rho()
    history = model.fit(X, Y, verbose=0).history
    assert set(history) == {"loss"}
    assert model.get_rho()["noise/scale"] == pytest.approx(0.5)
