"""Bad arguments and bad data get a clear error before a weight moves.

Hypothesis draws them; `test_so_many_were_tried` says how many were different.
"""

import warnings

import keras
import numpy as np
import pytest
from helpers import compile_model
from helpers import make_data
from helpers import make_model
from helpers import values
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

import keras_crossreg as kcr

L = keras.layers
X, Y = make_data()
REG_X, REG_Y = make_data(12, seed=1)
ROWS = len(REG_X)
SETTINGS = dict(
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TRIED = set()


def make():
    model = compile_model(make_model())
    model.predict(X, verbose=0)
    return model


MODEL = make()
PLAIN = make_model(rho=False, cls=keras.Model)


def refused(name, function, ours=True):
    """A clear error, after which all weights and states are what they were.

    `ours`: whether it is the library that refuses, and says what it got;
    Keras's own error is fine where `keras.Model` would raise the same.
    """
    TRIED.add(name)
    variables = [
        *MODEL.weights,
        *MODEL.optimizer.variables,
        *MODEL.rho_optimizer.variables,
    ]
    before = values(variables)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((ImportError, TypeError, ValueError)) as error:
            function()
    for a, b in zip(before, values(variables), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    message = str(error.value)
    assert len(message) > 20, name
    if ours:
        assert "Received: " in message, (name, message)


# ---- Numbers and words -------------------------------------------------------

WORDS = st.text("abcxyz", min_size=1, max_size=3)
NO_NUMBERS = WORDS | st.just([1]) | st.just({}) | st.just(1j)
FRACTIONS = st.sampled_from([0.5, 1.5, 2.0, float("nan"), float("inf")])


def no_integers(least):
    return NO_NUMBERS | FRACTIONS | st.integers(-9, least - 1) | st.booleans()


def no_starts(zero, below):
    """What a start value may not be."""
    numbers = [-1.0, float("nan"), float("inf"), -float("inf"), True]
    if not zero:
        numbers.append(0.0)
    if below:
        numbers += [1.0, 2.5]
    return NO_NUMBERS | st.none() | st.sampled_from(numbers)


NO_BOOLEANS = WORDS | st.none() | st.integers(0, 3) | st.just([True])

COMPILE = {
    "num_samples": no_integers(1) | st.none(),
    "samples_per_pass": no_integers(1) | st.none(),
    "reg_freq": no_integers(1),
    "reg_warmup": no_integers(0),
    "eval_num_samples": no_integers(1),
    "averaging": WORDS | st.none() | st.integers() | st.just([]),
    "hypergradient": WORDS | st.none() | st.integers() | st.just([]),
    "rho": st.sampled_from(["(", ["a", "("], [3], 3, "*"]),
}
FIT = {
    "reg_batch_size": no_integers(1),
    "merge_epochs": no_integers(0) | st.integers(3, 9) | st.none(),
    "epochs": no_integers(0) | st.none(),
    "batch_size": no_integers(0),
    "steps_per_epoch": no_integers(0),
    "initial_epoch": no_integers(0),
    "reg_split": NO_NUMBERS
    | st.sampled_from([1.0, 1.5, -0.1, float("nan"), True]),
}


def pairs(table):
    """A name of a table, and a bad value for it."""
    return st.sampled_from(sorted(table)).flatmap(
        lambda name: st.tuples(st.just(name), table[name])
    )


@settings(**SETTINGS, max_examples=60)
@given(pairs(COMPILE))
def test_compile(case):
    name, value = case
    refused(
        f"compile {name}={value!r}",
        lambda: compile_model(make_model(), **{name: value}),
    )


def fit(**arguments):
    defaults = dict(
        x=X, y=Y, batch_size=8, verbose=0, epochs=2, reg_data=(REG_X, REG_Y)
    )
    return MODEL.fit(**{**defaults, **arguments})


@settings(**SETTINGS, max_examples=80)
@given(pairs(FIT))
def test_arguments_of_fit(case):
    name, value = case
    other = {"reg_data": None} if name == "reg_split" else {}
    refused(f"fit {name}={value!r}", lambda: fit(**{name: value}, **other))


@settings(**SETTINGS, max_examples=30)
@given(no_integers(1))
def test_numbers_of_samples(value):
    refused(f"averaged K={value!r}", lambda: kcr.averaged(MODEL, value))
    refused(
        f"predict_samples K={value!r}",
        lambda: MODEL.predict_samples(X, value, verbose=0),
    )


@settings(**SETTINGS, max_examples=10)
@given(WORDS | st.none() | st.integers() | st.just([]))
def test_noise_of_an_averaged_model(value):
    refused(f"noise={value!r}", lambda: kcr.averaged(MODEL, 2, noise=value))


# ---- Layers, regularizers, metrics -------------------------------------------

AXES = WORDS | st.sampled_from([0, 2, 9, -3, 1.5, [0], ["a"], {}, (1, "a")])
NOISE_SHAPES = WORDS | st.sampled_from([3, (2,), (3, None), (None, 2), [[]]])
LAYERS = {
    ("GaussianNoiseScale", "initial_scale"): no_starts(True, False),
    ("GaussianNoiseScale", "axis"): AXES,
    ("GaussianNoiseScale", "relative"): NO_BOOLEANS,
    ("LearnedDropout", "initial_rate"): no_starts(False, True),
    ("LearnedDropout", "axis"): AXES,
    ("LearnedDropout", "noise_shape"): NOISE_SHAPES,
    ("LearnedGaussianDropout", "initial_rate"): no_starts(False, True),
    ("LearnedGaussianDropout", "axis"): AXES,
    ("Temperature", "initial_temperature"): no_starts(False, False),
    ("LearnedAugmentation", "rotation"): no_starts(True, False).filter(
        lambda value: value is not None
    ),
    ("LearnedAugmentation", "fill_mode"): WORDS | st.none() | st.just([]),
    ("LearnedAugmentation", "data_format"): WORDS | st.just([]) | st.just(3),
}


@settings(**SETTINGS, max_examples=150)
@given(pairs(LAYERS))
def test_layers(case):
    (name, argument), value = case
    shape = (2, 4, 4, 1) if name == "LearnedAugmentation" else (2, 3)

    def make_and_call():
        layer = getattr(kcr.layers, name)(**{argument: value})
        layer(np.ones(shape, "float32"), training=True)

    refused(f"{name} {argument}={value!r}", make_and_call)


@settings(**SETTINGS, max_examples=12)
@given(
    st.sampled_from(
        ["GaussianNoiseScale", "LearnedDropout", "LearnedGaussianDropout"]
    ),
    st.sampled_from(["complex64", "str", "object"]),
)
def test_inputs_of_layers(name, dtype):
    layer = getattr(kcr.layers, name)()
    refused(
        f"{name} of {dtype}",
        lambda: layer(np.ones((2, 3)).astype(dtype), training=True),
    )


REGULARIZERS = {
    ("LearnedSmoothness", "order"): no_integers(1) | st.none(),
    ("LearnedGroupL1", "axis"): WORDS | st.sampled_from([None, 1.5, ["a"], {}]),
}


@settings(**SETTINGS, max_examples=25)
@given(pairs(REGULARIZERS))
def test_regularizers(case):
    (name, argument), value = case
    refused(
        f"{name} {argument}={value!r}",
        lambda: getattr(kcr.regularizers, name)(**{argument: value}),
    )


@pytest.mark.parametrize(
    "regularizer",
    [
        kcr.regularizers.LearnedSmoothness(order=9),
        kcr.regularizers.LearnedGroupL1(axis=5),
    ],
)
def test_regularizers_that_do_not_fit_their_weight(regularizer):
    inputs = keras.Input((3,))
    dense = L.Dense(2, activation="softmax", kernel_regularizer=regularizer)
    model = compile_model(kcr.CrossRegModel(inputs, dense(inputs)))
    before = values(model.weights)
    with pytest.raises(ValueError, match="Received: "):
        model.fit(X, Y, reg_data=(REG_X, REG_Y), verbose=0)
    for a, b in zip(before, values(model.weights), strict=True):
        np.testing.assert_array_equal(a, b)


METRICS = {
    ("ExpectedCalibrationError", "num_bins"): no_integers(1) | st.none(),
    ("ExpectedCalibrationError", "equal_mass"): NO_BOOLEANS,
    ("ExpectedCalibrationError", "class_wise"): NO_BOOLEANS,
    ("ExpectedCalibrationError", "from_logits"): NO_BOOLEANS,
    ("BrierScore", "from_logits"): NO_BOOLEANS,
    ("NegativeLogLikelihood", "from_logits"): NO_BOOLEANS,
}
P = np.full((4, 2), 0.5, "float32")
T = np.array([0, 1, 0, 1])
BAD_PREDICTIONS = {
    "rows": (T[:3], P),
    "classes": (T + 5, P),
    "negative labels": (T - 3, P),
    "fractions": (T + 0.3, P),
    "words": (T.astype(str), P),
    "no labels": (None, P),
    "rank": (T, P[:, None, None]),
    "one-hot of three": (np.eye(3)[T], P),
    "logits": (T, P * 9),
    "words as probabilities": (T, P.astype(str)),
    "no classes": (T, P[:, :0]),
    "weights": (T, P, np.ones(3)),
}


@settings(**SETTINGS, max_examples=60)
@given(pairs(METRICS))
def test_metrics(case):
    (name, argument), value = case
    refused(
        f"{name} {argument}={value!r}",
        lambda: getattr(kcr.metrics, name)(**{argument: value}),
    )


@pytest.mark.parametrize("case", BAD_PREDICTIONS)
@pytest.mark.parametrize("name", sorted({name for name, _ in METRICS}))
def test_what_metrics_are_given(name, case):
    metric = getattr(kcr.metrics, name)()
    refused(f"{name} of {case}", lambda: metric(*BAD_PREDICTIONS[case]))


UNCERTAINTY = {
    "task": WORDS | st.none() | st.just([]),
    "coverage": NO_NUMBERS | st.sampled_from([0.0, 1.0, -1.0, float("nan")]),
    "noise_std": WORDS | st.sampled_from([-1.0, float("nan"), float("inf")]),
    "samples": WORDS
    | st.none()
    | st.sampled_from([3.0, [[1, 2], [3]], [[[np.nan, 1.0]]], [[[-1.0, 2.0]]]]),
}


@settings(**SETTINGS, max_examples=40)
@given(pairs(UNCERTAINTY))
def test_uncertainty(case):
    name, value = case
    arguments = dict(samples=np.full((3, 4, 2), 0.5), task="regression")
    if name in ("samples", "task"):
        arguments["task"] = "classification"
    arguments[name] = value
    refused(
        f"uncertainty {name}={value!r}", lambda: kcr.uncertainty(**arguments)
    )


# ---- Models ------------------------------------------------------------------

NO_MODELS = WORDS | st.sampled_from([None, 3, [], L.ReLU(), keras.Model])
TAKES_A_MODEL = {
    "averaged": lambda model: kcr.averaged(model, 2),
    "wrap": kcr.wrap,
    "add_noise": kcr.add_noise,
    "learn_regularizers": kcr.learn_regularizers,
    "refit": lambda model: kcr.refit(model, X, Y),
    "mark_rho": kcr.mark_rho,
}


@settings(**SETTINGS, max_examples=30)
@given(st.sampled_from(sorted(TAKES_A_MODEL)), NO_MODELS)
def test_no_model(name, value):
    refused(f"{name}({value!r:.20})", lambda: TAKES_A_MODEL[name](value))


ADD_NOISE = {
    "after": st.sampled_from([3, "nope", ["nope"], [3], "(", {}]),
    "initial_scale": no_starts(True, False),
    "axis": WORDS | st.sampled_from([0, 9, 1.5]),
    "relative": WORDS | st.sampled_from([3, [True]]),
}
REFIT = {
    "warm": NO_BOOLEANS,
    "schedule": WORDS | st.integers(0, 3) | st.just([]),
    "reg_split": st.floats(0.1, 0.5),
    "merge_epochs": st.integers(1, 3),
    "reg_data": st.just((REG_X, REG_Y)),
    "epochs": no_integers(0),
}


@settings(**SETTINGS, max_examples=30)
@given(pairs(ADD_NOISE))
def test_add_noise(case):
    name, value = case
    refused(
        f"add_noise {name}={value!r}",
        lambda: kcr.add_noise(PLAIN, **{name: value}),
    )


@settings(**SETTINGS, max_examples=30)
@given(pairs(REFIT))
def test_refit(case):
    name, value = case
    refused(
        f"refit {name}={value!r:.20}",
        lambda: kcr.refit(MODEL, X, Y, verbose=0, **{name: value}),
    )


RHO_VALUES = st.sampled_from(
    [-1.0, float("nan"), float("inf"), "a", None, [1.0, 2.0], {}]
)


@settings(**SETTINGS, max_examples=25)
@given(
    st.dictionaries(st.just("noise/scale"), RHO_VALUES, min_size=1)
    | st.dictionaries(WORDS | st.integers(), st.just(1.0), min_size=1)
    | st.sampled_from([None, 3, "a", [1.0]])
)
def test_set_rho(value):
    refused(f"set_rho({value!r})", lambda: MODEL.set_rho(value))


# ---- Data --------------------------------------------------------------------


@st.composite
def bad_reg_data(draw):
    """Regularization data with one thing wrong, and what that is."""
    row = draw(st.integers(0, ROWS - 1))
    column = draw(st.integers(0, 2))
    count = draw(st.integers(0, ROWS - 1))
    x, y, weight = REG_X.copy(), REG_Y.copy(), np.ones(ROWS, "float32")
    bad = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    kind = draw(st.sampled_from(KINDS))
    if kind == "not finite":
        x[row, column] = bad
        return f"{kind} {row} {column} {bad}", (x, y)
    if kind == "weights not finite":
        weight[row] = np.nan
        return f"{kind} {row}", (x, y, weight)
    if kind == "negative weights":
        weight[row] = -1.0 - column
        return f"{kind} {row} {column}", (x, y, weight)
    if kind == "rows":
        return f"{kind} {count}", (x, y[:count])
    if kind == "rows of weights":
        return f"{kind} {count}", (x, y, weight[:count])
    if kind == "columns":
        return f"{kind} {column}", (x[:, :column], y)
    if kind == "labels":
        y[row] = -1 - count if column else 2 + count
        return f"{kind} {row} {y[row]}", (x, y)
    # Keras takes a last axis of size 1.
    axes = draw(st.integers(0, 1))
    if kind == "rank":
        return f"{kind} {axes}", (np.expand_dims(x, axes), y)
    return kind, {
        "none": (x[:0], y[:0]),
        "one-hot": (x, np.eye(2)[y]),
        "no targets": (x,),
        "words": (x.astype(str), y),
        "words as targets": (x, y.astype(str)),
        "complex": (x.astype("complex64"), y),
        "four": (x, y, weight, weight),
        "other keys": ({"other": x}, y),
        "two inputs": ((x, x), y),
        "no weight": (x, y, 0 * weight),
        "weights by key": (x, y, {"classes": weight}),
        "words as weights": (x, y, np.array(["a"] * ROWS)),
        "numbers": (np.float32(1), np.float32(1)),
        "a word": "abc",
        "a number": 3,
        "a list": [1, 2],
        "a set": {1, 2},
        "a function": len,
        "bytes": b"x",
        "an empty tuple": (),
        "dates": (np.zeros((ROWS, 3), "datetime64[s]"), y),
    }[kind]


KINDS = (
    "not finite, weights not finite, negative weights, rows, rows of weights, "
    "columns, labels, rank, none, one-hot, no targets, words, "
    "words as targets, complex, four, other keys, two inputs, no weight, "
    "weights by key, words as weights, numbers, a word, a number, a list, "
    "a set, a function, bytes, an empty tuple, dates"
).split(", ")


@settings(**SETTINGS, max_examples=120)
@given(bad_reg_data())
def test_reg_data(case):
    name, data = case
    refused(f"fit reg_data: {name}", lambda: fit(reg_data=data))
    refused(
        f"train_on_batch reg_data: {name}",
        lambda: MODEL.train_on_batch(X, Y, reg_data=data),
    )


BAD_X = {
    "a word": "abc",
    "a number": 3,
    "columns": X[:, :2],
    "words": X.astype(str),
    "other keys": {"other": X},
    "rows": X[:5],
}
METHODS = {
    "fit": lambda x: fit(x=x),
    "train_on_batch": lambda x: MODEL.train_on_batch(
        x, Y, reg_data=(REG_X, REG_Y)
    ),
    "evaluate": lambda x: MODEL.evaluate(x, Y, verbose=0),
    "refit": lambda x: kcr.refit(MODEL, x, Y, verbose=0),
    "predict": lambda x: MODEL.predict(x, verbose=0),
    "predict_samples": lambda x: MODEL.predict_samples(x, verbose=0),
}


@pytest.mark.parametrize("case", BAD_X)
@pytest.mark.parametrize("method", METHODS)
def test_x(method, case):
    if case == "rows" and method in ("predict", "predict_samples"):
        pytest.skip("nothing is wrong with fewer rows")
    if case == "rows" and method == "train_on_batch":
        pytest.skip("as of `keras.Model`, averages of batches move before")
    # Keras says the same of `keras.Model`.
    refused(f"{method} {case}", lambda: METHODS[method](BAD_X[case]), False)


def test_so_many_were_tried(request):
    """Where all of this file ran, in one process."""
    if request.session.testscollected < 60:
        pytest.skip("needs the whole file")
    assert len(TRIED) >= 400
