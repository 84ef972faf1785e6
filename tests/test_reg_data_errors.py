"""Regularization data that do not fit, and what Keras itself refuses."""

import keras
import numpy as np
import pytest
from form_checks import check_fit_refuses
from form_checks import check_refused_as_reg_data
from form_checks import check_refused_as_x
from form_checks import check_train_on_batch
from form_checks import check_train_on_batch_refuses
from form_checks import refusing_model
from forms import FORMS
from forms import Batches
from forms import batches
from helpers import assert_same
from helpers import compile_model
from helpers import make_data
from helpers import make_model
from helpers import values

import keras_crossreg as kcr

X, Y = make_data()
REG_X, REG_Y = make_data(12, seed=1)
REG = REG_X, REG_Y
# With `batch_size=8` in `fit`, of the last batch.
NOT_A_NUMBER = REG_X.copy()
NOT_A_NUMBER[7, 2] = np.nan
INFINITE = REG_X.copy()
INFINITE[[3, 5], 0] = np.inf


def loader(*data):
    return FORMS["torch DataLoader"](data, 8)


# Refused as x, by Keras, and as `reg_data`, by us.
REFUSED = {
    "lists of numbers": lambda: (X.tolist(), Y.tolist()),
    "targets in a list": lambda: (X, Y.tolist()),
    "an iterator": lambda: iter(batches((X, Y), 8)),
    "a generator of lists": lambda: (list(b) for b in batches((X, Y), 8)),
    "a PyDataset and targets": lambda: (FORMS["PyDataset"]((X, Y), 8), Y),
    "arrays of different lengths": lambda: (X, Y[:-1]),
    "numbers": lambda: (np.float32(1.0), np.float32(1.0)),
    "a string": lambda: "data",
    "an empty generator": lambda: iter_nothing(),
}
# On TensorFlow, Keras looks into these before it trains.
EMPTY = {
    "an empty PyDataset": lambda: Batches([]),
    "an empty torch DataLoader": lambda: loader(X[:0], Y[:0]),
}
if keras.backend.backend() == "tensorflow":
    REFUSED |= EMPTY


def iter_nothing():
    yield from ()


@pytest.mark.parametrize("case", REFUSED)
def test_refused_as_reg_data(case):
    check_refused_as_reg_data(REFUSED[case]())


@pytest.mark.parametrize("case", EMPTY)
def test_empty_reg_data_in_batches(case):
    match = "at least one example|This came up with `reg_data`"
    check_fit_refuses(refusing_model(), match, reg_data=EMPTY[case]())


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("cls", [keras.Model, kcr.CrossRegModel])
def test_refused_as_x(case, cls):
    check_refused_as_x(REFUSED[case](), cls)


REG_DATA_ERRORS = {
    # Of a model that takes either structure.
    "dict for an array": (
        dict(reg_data=({"features": REG_X}, REG_Y)),
        r"Expected x like \(3,\).*Received: x={'features': '\(3,\)'}$",
    ),
    "array for a dict": (
        dict(x={"features": X}, reg_data=REG),
        r"Expected x like {'features': '\(3,\)'}.*Received: x=\(3,\)$",
    ),
    "tuple for an array": (
        dict(reg_data=((REG_X,), REG_Y)),
        r"Expected x like \(3,\).*Received: x=\('\(3,\)',\)$",
    ),
    "missing key": (
        dict(x={"features": X, "b": X}, reg_data=({"features": REG_X}, REG_Y)),
        # PyTorch has the keys in another order.
        r"x like {(?=.*'features')(?=.*'b').*"
        r"Received: x={'features': '\(3,\)'}$",
    ),
    "extra key": (
        dict(
            x={"features": X},
            reg_data=({"features": REG_X, "b": REG_X}, REG_Y),
        ),
        r"Received: x={(?=.*'features': '\(3,\)')(?=.*'b': '\(3,\)').{31}}$",
    ),
    "another key": (
        dict(x={"features": X}, reg_data=({"inputs": REG_X}, REG_Y)),
        r"Expected x like {'features'.*Received: x={'inputs': '\(3,\)'}$",
    ),
    "structure of y": (
        dict(reg_data=(REG_X, {"classes": REG_Y})),
        r"Expected y like \(\).*Received: y={'classes': '\(\)'}$",
    ),
    "columns of y": (
        dict(y=Y[:, None], reg_data=(REG_X, np.stack([REG_Y] * 2, 1))),
        r"Expected y like \(1,\).*Received: y=\(2,\)$",
    ),
    "targets in a PyDataset, but none in training": (
        dict(y=None, reg_data=FORMS["PyDataset"](REG, 8)),
        r"Expected y like None.*Received: y=\(\)$",
    ),
    "no targets for a loss that needs them": (
        dict(y=None, reg_data=REG_X),
        "came up in the regularization pass.*Received: reg_data=",
    ),
    "four parts": (
        dict(reg_data=(*REG, REG_Y, REG_Y)),
        r"\(x, y, sample_weight\).*Received: reg_data=\(ndarray of shape "
        r"\(12, 3\), ndarray of shape \(12,\), nd",
    ),
    "nothing": (dict(reg_data=()), r"Received: reg_data=\(\)$"),
    "NaN in x": (
        dict(reg_data=(NOT_A_NUMBER, REG_Y)),
        r"There are NaN .*Received: rows of reg_data=\[7\]$",
    ),
    "infinities in x": (
        dict(reg_data=(INFINITE, REG_Y), reg_batch_size=1),
        r"There are NaN .*Received: rows of reg_data=\[3\]$",
    ),
    "NaN in the weights": (
        dict(reg_data=(*REG, NOT_A_NUMBER[:, 2])),
        r"There are NaN .*Received: rows of reg_data=\[7\]$",
    ),
    "NaN in the part that reg_split cuts": (
        dict(x=np.concatenate([X, NOT_A_NUMBER]), y=np.r_[Y, REG_Y])
        | dict(reg_split=1 / 3),
        r"There are NaN .*Received: rows of reg_data=\[7\]$",
    ),
    "reg_split of a list": (
        dict(x=X.tolist(), reg_split=0.5),
        "cut other data yourself.*Received: reg_split=0.5",
    ),
    "reg_split of arrays of different lengths": (
        dict(y=np.r_[Y, Y], reg_split=0.5),
        r"same number of rows. Received: x, y, sample_weight=\(ndarray of "
        r"shape \(24, 3\), ndarray of shape \(48,\), None\)$",
    ),
}


@pytest.mark.parametrize("case", REG_DATA_ERRORS)
def test_fit_refuses(case):
    arguments, match = REG_DATA_ERRORS[case]
    check_fit_refuses(refusing_model(), "(?s)" + match, **arguments)


def test_targets_that_the_loss_would_broadcast():
    inputs = keras.Input((3,))
    outputs = keras.layers.Dense(1)(kcr.layers.GaussianNoiseScale()(inputs))
    model = compile_model(kcr.CrossRegModel(inputs, outputs), loss="mse")
    check_fit_refuses(
        model,
        r"Expected y like \(1,\).*Received: y=\(2,\)$",
        y=X[:, :1],
        reg_data=(REG_X, REG_X[:, :2]),
    )


# NaN that do no harm, and NaN that cannot be known beforehand.


def masking_model():
    inputs = keras.Input((3,))
    x = keras.ops.where(keras.ops.isnan(inputs), 0.0, inputs)
    x = kcr.layers.GaussianNoiseScale(0.5, seed=1)(keras.layers.Dense(4)(x))
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    return compile_model(kcr.CrossRegModel(inputs, outputs))


def test_nan_that_the_model_masks():
    filled = np.nan_to_num(NOT_A_NUMBER)
    results = []
    for reg_x in (NOT_A_NUMBER, filled):
        keras.utils.set_random_seed(0)
        model = masking_model()
        model.fit(X, Y, reg_data=(reg_x, REG_Y), shuffle=False, verbose=0)
        results.append(values(model.weights))
    # Nor does the check draw noise that training would have drawn.
    assert_same(*results)


def test_nan_in_training_data_are_for_keras():
    model = compile_model(make_model())
    x = X.copy()
    x[7] = np.nan
    history = model.fit(x, Y, reg_data=REG, verbose=0).history
    assert np.isnan(history["loss"]).all()


def test_nan_in_batches_end_in_a_loss_that_is_not_a_number():
    # As NaN in training batches do. `TerminateOnNaN` looks at `loss`, which
    # is NaN at the step after.
    model = compile_model(make_model())
    data = FORMS["PyDataset"]((NOT_A_NUMBER, REG_Y), 12)
    model.fit(
        X,
        Y,
        batch_size=6,
        epochs=2,
        reg_data=data,
        callbacks=[keras.callbacks.TerminateOnNaN()],
        verbose=0,
    )
    assert int(model.optimizer.iterations) == 2
    assert np.isnan(model.history.history["reg_loss"]).all()
    assert np.isnan(model.history.history["loss"]).all()


# One batch at a time.


@pytest.mark.filterwarnings("ignore:1 rho learn from 12")
def test_train_on_batch_is_a_step_of_fit():
    results = []
    for one_at_a_time in (False, True):
        model = compile_model(make_model())
        # Of one batch in a fixed order.
        if one_at_a_time:
            for x, y in batches((X, Y), 8):
                model.train_on_batch(x, y, reg_data=REG)
        else:
            data = FORMS["PyDataset"](REG, 12)
            model.fit(
                X, Y, batch_size=8, reg_data=data, shuffle=False, verbose=0
            )
        results.append(values(model.weights))
    assert_same(*results)


@pytest.mark.parametrize(
    "form",
    [
        "float64 arrays",
        "tensors",
        "torch tensors",
        "pandas",
        "polars",
        "SciPy matrices",
    ],
)
def test_train_on_batch_of_each_form(form):
    check_train_on_batch(FORMS[form])


BATCH_ERRORS = {
    "a PyDataset": (FORMS["PyDataset"](REG, 8), "Received: reg_data=Batches"),
    "lists": ((REG_X.tolist(), REG_Y), r"=\(list, ndarray of shape \(12,\)\)$"),
    "no examples": ((X[:0], Y[:0]), r"one example. Received: reg_data="),
    "different lengths": ((X, REG_Y), "sizes: 24.*sizes: 12.*Received"),
    "four parts": ((*REG, REG_Y, REG_Y), "one batch.*Received: reg_data="),
    "no targets": (REG_X, r"Expected y like \(\).*Received: y=None$"),
    "columns": ((REG_X[:, :2], REG_Y), r"x like \(3,\).*Received: x=\(2,\)$"),
    "structure": (({"a": REG_X}, REG_Y), "x like.*Received: x={'a'"),
}


@pytest.mark.parametrize("case", BATCH_ERRORS)
def test_train_on_batch_refuses(case):
    reg_data, match = BATCH_ERRORS[case]
    check_train_on_batch_refuses(refusing_model(), "(?s)" + match, reg_data)


SPARSE = "sparse_categorical_crossentropy"


def with_two_outputs(outputs):
    """Of two and of three classes, in a list or a dictionary, or the first."""
    inputs = keras.Input((3,))
    x = kcr.layers.GaussianNoiseScale()(keras.layers.Dense(4)(inputs))
    a = keras.layers.Dense(2, activation="softmax", name="a")(x)
    b = keras.layers.Dense(3, activation="softmax", name="b")(x)
    given = {"one": a, "list": [a, b], "dict": {"a": a, "b": b}}[outputs]
    return kcr.CrossRegModel(inputs, given)


@pytest.mark.backend
@pytest.mark.parametrize("how", ["fit", "train_on_batch"])
@pytest.mark.parametrize(
    ("outputs", "loss"),
    [
        ("one", SPARSE),
        ("list", [SPARSE, SPARSE]),
        ("list", {"a": SPARSE, "b": SPARSE}),
        ("dict", {"a": SPARSE, "b": SPARSE}),
        ("dict", SPARSE),
    ],
    ids=["one", "lists", "list and names", "names", "one loss"],
)
def test_a_label_beyond_the_classes_of_its_output(outputs, loss, how):
    # It is no first row: `fit` has to look for it. On JAX Keras's loss gives
    # a number for it.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)).astype("float32")
    a, b = rng.integers(0, 2, 40), rng.integers(0, 3, 40)
    wrong = a.copy()
    wrong[30] = 2

    def targets(first):
        return {"one": first, "list": [first, b], "dict": {"a": first, "b": b}}[
            outputs
        ]

    model = with_two_outputs(outputs)
    model.compile("adam", loss)
    before = [np.array(v) for v in model.get_weights()]
    reg_data = x + 1, targets(wrong)
    with pytest.raises(ValueError, match="regularization"):
        if how == "fit":
            model.fit(x, targets(a), reg_data=reg_data, verbose=0)
        else:
            model.train_on_batch(x, targets(a), reg_data=reg_data)
    for value, at_first in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, at_first)


@pytest.mark.backend
def test_labels_where_the_number_of_classes_is_open():
    inputs = keras.Input((None, 3))
    x = kcr.layers.GaussianNoiseScale()(keras.layers.Dense(3)(inputs))
    # As many classes as there are rows.
    outputs = keras.layers.Lambda(
        lambda x: keras.ops.softmax(keras.ops.mean(x, axis=-1)),
        output_shape=(None,),
    )(x)
    model = kcr.CrossRegModel(inputs, outputs)
    model.compile("adam", SPARSE)
    rng = np.random.default_rng(0)
    x, reg_x = rng.normal(size=(2, 40, 4, 3)).astype("float32")
    y = np.arange(40) % 4
    model.fit(x, y, reg_data=(reg_x, y), verbose=0)
    with pytest.raises(ValueError, match="regularization"):
        model.fit(x, y, reg_data=(reg_x, y + 1), verbose=0)


@pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="Keras takes the last axis alone",
)
def test_classes_on_another_axis_than_the_last():
    inputs = keras.Input((2, 3))
    x = kcr.layers.GaussianNoiseScale()(inputs)
    x = keras.layers.Dense(4, activation="softmax")(x)
    model = kcr.CrossRegModel(inputs, keras.layers.Permute((2, 1))(x))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(axis=1))
    rng = np.random.default_rng(0)
    x, reg_x = rng.normal(size=(2, 40, 2, 3)).astype("float32")
    y = np.arange(80).reshape(40, 2) % 4
    model.fit(x, y, reg_data=(reg_x, y), verbose=0)
    with pytest.raises(ValueError, match="regularization"):
        model.fit(x, y, reg_data=(reg_x, y + 1), verbose=0)
