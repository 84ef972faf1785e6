"""Sample weights with other keys than the targets; complex numbers."""

import keras
import numpy as np
import pytest
from helpers import assert_same
from helpers import compile_model
from helpers import make_data
from helpers import make_model
from helpers import values

import keras_crossreg as kcr

X, Y = make_data()
REG_X, REG_Y = make_data(12, seed=1)
BOTH = {"a": X[:, :1], "b": X[:, 1:2]}
REG_BOTH = {"a": REG_X[:, :1], "b": REG_X[:, 1:2]}


def two_outputs():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = kcr.layers.GaussianNoiseScale()(inputs)
    outputs = {name: keras.layers.Dense(1, name=name)(x) for name in BOTH}
    model = kcr.CrossRegModel(inputs, outputs)
    return compile_model(model, loss=dict.fromkeys(BOTH, "mse"))


def refuses(model, call, *parts):
    before = values(model.variables)
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert "array(" not in message and len(message) < 400
    assert_same(before, values(model.variables))


@pytest.mark.parametrize(
    "keys", [["a", "wrong"], ["a"], ["a", "b", "c"]], ids=str
)
def test_sample_weights_with_other_keys(keys):
    model = two_outputs()
    of_reg = {key: np.ones(12) for key in keys}
    of_training = {key: np.ones(24) for key in keys}
    received = f"Received: sample_weight with keys {sorted(keys)}"
    expected = "the keys of the targets, ['a', 'b']"
    data = (REG_X, REG_BOTH, of_reg)
    refuses(
        model,
        lambda: model.fit(X, BOTH, reg_data=data, verbose=0),
        "Sample weights of `reg_data`",
        expected,
        received,
    )
    refuses(
        model,
        lambda: model.train_on_batch(X, BOTH, reg_data=data),
        "Sample weights of `reg_data`",
        expected,
        received,
    )
    refuses(
        model,
        lambda: model.fit(
            X,
            BOTH,
            sample_weight=of_training,
            reg_data=(REG_X, REG_BOTH),
            verbose=0,
        ),
        "Sample weights of the training data",
        expected,
        received,
    )


def test_keys_for_a_single_output():
    model = compile_model(make_model())
    weights = {"classes": np.ones(12)}
    refuses(
        model,
        lambda: model.fit(X, Y, reg_data=(REG_X, REG_Y, weights), verbose=0),
        "Expected one array",
        "Received: sample_weight with keys ['classes']",
    )


def test_a_list_of_weights_for_targets_by_name():
    model = two_outputs()
    weights = [np.ones(12), np.ones(12)]
    refuses(
        model,
        lambda: model.fit(
            X, BOTH, reg_data=(REG_X, REG_BOTH, weights), verbose=0
        ),
        "Expected the keys ['a', 'b']",
        "Received: sample_weight=list of 2 parts",
    )


def test_the_right_keys_work():
    model = two_outputs()
    weights = {name: np.ones(12) for name in ("b", "a")}
    model.fit(X, BOTH, reg_data=(REG_X, REG_BOTH, weights), verbose=0)


def complex_of(array):
    return array.astype("complex64")


@pytest.mark.parametrize(
    "x, reg_x, received",
    [
        (X, complex_of(REG_X), "`reg_data` of dtype complex64"),
        (complex_of(X), REG_X, "the training data of dtype complex64"),
        (complex_of(X), complex_of(REG_X), "training data of dtype complex64"),
    ],
    ids=["reg", "training", "both"],
)
def test_complex_inputs(x, reg_x, received):
    model = compile_model(make_model())
    refuses(
        model,
        lambda: model.fit(x, Y, reg_data=(reg_x, REG_Y), verbose=0),
        "imaginary part would be lost",
        f"Received: x of {'`reg_data`'}",
        received,
    )


def test_complex_targets():
    model = two_outputs()
    wrong = {**REG_BOTH, "b": complex_of(REG_BOTH["b"])}
    refuses(
        model,
        lambda: model.fit(X, BOTH, reg_data=(REG_X, wrong), verbose=0),
        "Received: y of `reg_data` of dtype complex64",
    )
    refuses(
        model,
        lambda: model.train_on_batch(X, BOTH, reg_data=(REG_X, wrong)),
        "Received: y of `reg_data` of dtype complex64",
    )


@pytest.mark.filterwarnings("ignore:The samples of a prediction")
def test_a_model_of_complex_numbers():
    inputs = keras.Input((3,), dtype="complex64")
    x = keras.layers.Lambda(lambda z: keras.ops.abs(z), dtype="float32")(inputs)
    outputs = keras.layers.Dense(1)(kcr.layers.GaussianNoiseScale()(x))
    model = compile_model(kcr.CrossRegModel(inputs, outputs), loss="mse")
    data = complex_of(REG_X), REG_X[:, :1]
    model.fit(complex_of(X), X[:, :1], reg_data=data, verbose=0)
