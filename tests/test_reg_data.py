"""Every form of data as training data and as regularization set.

The names of the grid read as a table: `pytest -v tests/test_reg_data.py`.
`docs/compatibility.md` is checked against it.
"""

import functools
import itertools
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from forms import FORMS
from forms import Batches
from forms import batches
from forms import generator
from forms import is_array_form
from forms import training_arguments
from helpers import Subclassed
from helpers import assert_same
from helpers import compile_model
from helpers import make_data
from helpers import make_model
from helpers import recording_model
from helpers import values
from keras import tree

import keras_crossreg as kcr

# Two training batches, the last one partial, and then one regularization
# batch: what is learned from it depends on both.
SIZE, REG_SIZE, STEPS = 14, 8, 2
TRAIN = make_data(24)
REG = make_data(REG_SIZE, seed=1)


def with_weights(data):
    """Sample weights that are not all alike."""
    rows = len(tree.flatten(data)[0])
    return (*data, np.linspace(0.5, 1.5, rows, dtype="float32"))


@functools.cache
def shuffled_rows():
    """The order in which the first pass meets the rows of arrays."""
    model, recorder = recording_model()
    rows = np.arange(float(REG_SIZE))[:, None]
    with pytest.warns(UserWarning, match="1 rho learn from 8"):
        model.fit(
            rows + 0.5,
            rows,
            reg_data=(rows, rows),
            reg_batch_size=REG_SIZE,
            verbose=0,
        )
    return recorder.sampled[-1]


def make_reg_data(form, data):
    """The regularization batch with its rows in the same places."""
    reg_data = FORMS[form](data, REG_SIZE)
    if is_array_form(reg_data):
        return reg_data
    data = tree.map_structure(lambda a: a[shuffled_rows()], data)
    return FORMS[form](data, REG_SIZE)


def states(model):
    """Everything that training moves."""
    return [
        *model.variables,
        *model.optimizer.variables,
        *model.rho_optimizer.variables,
    ]


@functools.cache
def model_and_start(structure=None):
    model = two_by_two_model(structure) if structure else make_model()
    compile_model(model, loss=LOSSES.get(structure), reg_freq=STEPS)
    model.optimizer.build(model.theta_variables)
    model.rho_optimizer.build(model.rho_variables)
    return model, values(states(model))


def model_from_start(structure=None):
    """A model that is always the same, made once."""
    model, start = model_and_start(structure)
    for variable, value in zip(states(model), start, strict=True):
        variable.assign(value)
    return model


def train(model, data, reg_data, **arguments):
    """The weights after two steps of theta and one of rho."""
    model.fit(
        **training_arguments(data),
        reg_data=reg_data,
        batch_size=SIZE,
        reg_batch_size=REG_SIZE,
        steps_per_epoch=STEPS,
        shuffle=False,
        verbose=0,
        **arguments,
    )
    assert int(model.rho_optimizer.iterations) == 1
    return values(model.weights)


def weights_after(data, reg_data, **arguments):
    return train(model_from_start(), data, reg_data, **arguments)


@functools.cache
def weights_after_arrays(weighted=False, reg_weighted=False):
    data = with_weights(TRAIN) if weighted else TRAIN
    reg_data = with_weights(REG) if reg_weighted else REG
    return weights_after(data, reg_data)


# A test of few examples in which there is nothing to find but the numbers.
quiet = pytest.mark.filterwarnings("ignore:1 rho learn from")

# Every form meets arrays, both ways; those that come in batches of different
# kinds meet one another.
BATCH_FORMS = [
    "dataset",
    "dataset of unknown length",
    "PyDataset",
    "generator",
    "torch DataLoader",
]
NEXT_FORMS = [*BATCH_FORMS[1:], *BATCH_FORMS[:1]]


def pairs():
    for x, reg_data in itertools.product(FORMS, FORMS):
        known = "arrays" in (x, reg_data)
        known = known or (x, reg_data) in zip(
            BATCH_FORMS, NEXT_FORMS, strict=True
        )
        if known or {x, reg_data} <= set(BATCH_FORMS):
            yield pytest.param(
                x,
                reg_data,
                id=f"{x} | {reg_data}",
                marks=[] if known else pytest.mark.slow,
            )


@quiet
@pytest.mark.parametrize(("x", "reg_data"), pairs())
def test_x_and_reg_data(x, reg_data):
    result = weights_after(FORMS[x](TRAIN, SIZE), make_reg_data(reg_data, REG))
    # The same batches give the same weights, to the last bit.
    assert_same(result, weights_after_arrays())


@quiet
@pytest.mark.parametrize(
    "form", ["pandas", "PyDataset", "generator", "torch DataLoader"]
)
def test_sample_weights(form):
    data = FORMS[form](with_weights(TRAIN), SIZE)
    reg_data = make_reg_data(form, with_weights(REG))
    assert_same(weights_after(data, reg_data), weights_after_arrays(True, True))


@quiet
def test_sample_weights_of_one_and_not_of_the_other():
    pairs = [(x, reg) for x in (False, True) for reg in (False, True)]
    results = [weights_after_arrays(*pair) for pair in pairs]
    # All four are different, or the test above would find nothing.
    assert len({b"".join(w.tobytes() for w in ws) for ws in results}) == 4


# Several inputs and outputs.


def two_by_two(structure, rows, seed=0):
    """Data `(x, y)`, each a structure of two arrays."""
    x, _ = make_data(rows, seed=seed)
    inputs, targets = (x[:, :2], x[:, 1:]), (x[:, :1], x[:, 1:2])
    if structure == "dict":
        # Not in the order of the model's own.
        inputs = dict(zip("ba", reversed(inputs), strict=True))
        targets = dict(zip("qp", reversed(targets), strict=True))
        return inputs, targets
    if structure == "list":
        return list(inputs), list(targets)
    return inputs, targets


LOSSES = {
    None: "sparse_categorical_crossentropy",
    "dict": {"p": "mse", "q": "mae"},
    "tuple": ["mse", "mae"],
    "list": ["mse", "mae"],
}


def two_by_two_model(structure):
    keras.utils.set_random_seed(0)
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    hidden = keras.layers.Dense(4)(a) - keras.layers.Dense(4)(b)
    hidden = kcr.layers.GaussianNoiseScale(0.5, seed=1)(hidden)
    p = keras.layers.Dense(1, name="p")(hidden)
    q = keras.layers.Dense(1, name="q")(hidden)
    if structure == "dict":
        return kcr.CrossRegModel({"a": a, "b": b}, {"p": p, "q": q})
    return kcr.CrossRegModel([a, b], [p, q])


@functools.cache
def weights_after_two_by_two(weighted):
    data, reg = two_by_two("tuple", 24), two_by_two("tuple", REG_SIZE, 1)
    if weighted:
        data, reg = with_weights(data), with_weights(reg)
    return train(model_from_start("tuple"), data, reg)


# Keras reads these as tensors for TensorFlow, which takes no lists for
# structures; a `DataLoader` makes lists of tuples.
NO_LISTS = ["PyDataset", "generator", "torch DataLoader"]


STRUCTURED = {
    "dict": ("arrays", "SciPy matrices", "dataset", "torch DataLoader"),
    "tuple": ("arrays", "generator", "torch DataLoader"),
    "list": ("arrays", "PyDataset"),
}


@quiet
@pytest.mark.parametrize("role", ["x", "reg_data"])
@pytest.mark.parametrize(
    ("structure", "form"),
    [(name, form) for name, forms in STRUCTURED.items() for form in forms],
)
def test_several_inputs_and_outputs(structure, form, role):
    data, reg = two_by_two(structure, 24), two_by_two(structure, REG_SIZE, 1)
    # Keras takes one weight for all outputs with arrays alone.
    if weighted := form == "arrays":
        data, reg = with_weights(data), with_weights(reg)
    if role == "x":
        data = FORMS[form](data, SIZE)
    else:
        reg = make_reg_data(form, reg)
    model = model_from_start(structure)
    if form in NO_LISTS and (
        structure == "list"
        or (form == "torch DataLoader" and structure == "tuple")
    ):
        error = TypeError if role == "x" else ValueError
        with pytest.raises(error, match="must contain objects that are"):
            train(model, data, reg)
        return
    result = train(model, data, reg)
    assert_same(result, weights_after_two_by_two(weighted))


# Models that the first batch builds.


class Typed(Subclassed):
    """Notes what it is called with."""

    def __init__(self):
        super().__init__()
        self.types = []

    def call(self, inputs, training=None):
        self.types.append(type(inputs).__name__)
        if isinstance(inputs, tf.RaggedTensor):
            inputs = inputs.to_tensor(shape=(None, 3))
        return super().call(inputs, training=training)


@quiet
@pytest.mark.parametrize(
    "form",
    [
        "arrays",
        "pandas",
        "SciPy matrices",
        "ragged tensors",
        "dataset",
        "dataset of unknown shapes",
        "dataset of sparse tensors",
        "PyDataset",
        "generator",
        "torch DataLoader",
    ],
)
def test_a_model_that_is_not_built(form):
    model = compile_model(Typed(), reg_freq=STEPS)
    train(model, FORMS[form](TRAIN, SIZE), make_reg_data(form, REG))
    # Sparse and ragged tensors stay what they are, in every pass.
    kinds = {"SciPy": "SparseTensor", "sparse": "SparseTensor"}
    kinds["ragged"] = "RaggedTensor"
    kind = [kinds[word] for word in kinds if word in form] or ["EagerTensor"]
    # Two steps, the check of a regularization batch, the step of rho.
    assert model.types[-STEPS - 2 :] == kind * (STEPS + 2)


@quiet
@pytest.mark.parametrize("form", ["tensors", "dataset"])
def test_rows_of_different_lengths(form):
    model = compile_model(Typed(), reg_freq=STEPS)
    data, reg = (
        (tf.ragged.constant([row[: 1 + i % 3] for i, row in enumerate(x)]), y)
        for x, y in (TRAIN, REG)
    )
    if form == "dataset":
        data, reg = (
            tf.data.Dataset.from_tensor_slices(part).batch(SIZE)
            for part in (data, reg)
        )
    train(model, data, reg)
    assert model.types[-STEPS - 2 :] == ["RaggedTensor"] * (STEPS + 2)


# What stands beside the data in `fit`.

ARRAY_FORMS = [
    "arrays",
    "tensors",
    "torch tensors",
    "pandas",
    "SciPy matrices",
    "sparse tensors",
    "ragged tensors",
]


def data_to_split(structure=None):
    if structure:
        return with_weights(two_by_two(structure, 40))
    return with_weights(make_data(40))


@functools.cache
def weights_and_loss_of_parts(structure=None):
    """As one would cut 40 rows, the validation part first."""
    train_part, reg_part, validation_part = (
        tree.map_structure(lambda a, i=i, j=j: a[i:j], data_to_split(structure))
        for i, j in ((0, 24), (24, 32), (32, 40))
    )
    model = model_from_start(structure)
    weights = train(
        model, train_part, reg_part, validation_data=validation_part
    )
    return weights, model.history.history["val_loss"]


def check_splits(data, structure=None):
    weights, loss = weights_and_loss_of_parts(structure)
    model = model_from_start(structure)
    arguments = dict(reg_split=0.25, validation_split=0.2)
    assert_same(train(model, data, None, **arguments), weights)
    assert model.history.history["val_loss"] == loss


@quiet
@pytest.mark.parametrize("form", ARRAY_FORMS)
def test_reg_split_after_validation_split(form):
    check_splits(FORMS[form](data_to_split(), SIZE))


@quiet
@pytest.mark.parametrize("structure", ["dict", "tuple", "list"])
def test_reg_split_of_several_inputs_and_outputs(structure):
    check_splits(data_to_split(structure), structure)


@quiet
@pytest.mark.parametrize("form", ["arrays", "dataset", "PyDataset"])
def test_class_weight(form):
    # For the training batches alone.
    weights = {0: 0.5, 1: 3.0}
    expected = np.array([weights[y] for y in TRAIN[1]])
    assert_same(
        weights_after(FORMS[form](TRAIN, SIZE), REG, class_weight=weights),
        weights_after((*TRAIN, expected), REG),
    )


@quiet
@pytest.mark.parametrize("form", ["generator", "torch DataLoader"])
def test_class_weight_of_what_keras_cannot_weight(form):
    data = FORMS[form](TRAIN, SIZE)
    with pytest.raises(ValueError, match="class_weight.*not supported"):
        weights_after(data, REG, class_weight={0: 0.5, 1: 3.0})


@quiet
def test_training_data_of_unknown_length():
    model = model_from_start()
    data = FORMS["dataset of unknown length"](TRAIN, SIZE)
    with pytest.warns(UserWarning, match="ran out of data"):
        model.fit(data, reg_data=REG, epochs=2, shuffle=False, verbose=0)
    assert int(model.optimizer.iterations) == 2 * STEPS
    assert int(model.rho_optimizer.iterations) == 2


def test_training_data_without_examples():
    # As for `keras.Model`: nothing to do.
    model = compile_model(make_model())
    before = values(model.weights)
    x, y = TRAIN
    empty_dataset = FORMS["dataset"](TRAIN, SIZE).take(0)
    for data in ((x[:0], y[:0]), empty_dataset):
        with pytest.warns(UserWarning, match="ran out of data"):
            model.fit(
                **training_arguments(data),
                reg_data=make_data(12, seed=1),
                shuffle=False,
                verbose=0,
            )
    assert_same(before, values(model.weights))


# What the data are made of.


@quiet
@pytest.mark.parametrize("rank", [1, 2])
def test_a_last_axis_of_size_one_may_be_missing(rank):
    # A loss of one's own may broadcast `(n,)` against `(n, 1)`, and be wrong.
    class Broadcasting(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)

    def result(x_rank, reg_rank):
        inputs = keras.Input((1,))
        hidden = kcr.layers.GaussianNoiseScale(0.5, seed=1)(inputs)
        dense = keras.layers.Dense(1, kernel_initializer="ones")
        model = kcr.CrossRegModel(inputs, dense(hidden))
        compile_model(
            model,
            loss=Broadcasting(),
            reg_freq=STEPS,
        )
        train_x, reg_x = TRAIN[0][:, :1], REG[0][:, :1]
        data, reg = (train_x, 2 * train_x), (reg_x, 2 * reg_x)
        if x_rank == 1:
            data = tuple(a[:, 0] for a in data)
        if reg_rank == 1:
            reg = tuple(a[:, 0] for a in reg)
        return train(model, data, reg)

    # As many axes as the training data have.
    assert_same(result(rank, 1), result(rank, 2))


def sequences(length, rows=4, seed=0):
    x = np.random.default_rng(seed).normal(size=(rows, length, 2))
    return x.astype("float32"), x[..., 0].astype("float32")


LENGTHS = {
    "arrays": lambda: sequences(5, 12),
    "longer arrays": lambda: sequences(8, 12, seed=1),
    "PyDataset": lambda: Batches([sequences(n) for n in (3, 2, 6)]),
    "generator": lambda: generator([sequences(n) for n in (3, 2, 6)]),
    "dataset": lambda: tf.data.Dataset.from_generator(
        lambda: generator([sequences(n) for n in (3, 2, 6)]),
        output_signature=(
            tf.TensorSpec((None, None, 2)),
            tf.TensorSpec((None, None)),
        ),
    ),
}


@quiet
@pytest.mark.parametrize(
    ("x", "reg_data"),
    [
        ("arrays", "longer arrays"),
        ("arrays", "dataset"),
        ("PyDataset", "PyDataset"),
        ("dataset", "generator"),
        ("generator", "arrays"),
    ],
)
def test_axes_of_unknown_size(x, reg_data):
    inputs = keras.Input((None, 2))
    outputs = keras.layers.Dense(1)(kcr.layers.GaussianNoiseScale()(inputs))
    model = kcr.CrossRegModel(inputs, keras.ops.squeeze(outputs, -1))
    compile_model(model, loss="mse")
    model.fit(
        **training_arguments(LENGTHS[x]()),
        reg_data=LENGTHS[reg_data](),
        batch_size=4,
        steps_per_epoch=3,
        shuffle=False,
        verbose=0,
    )
    assert int(model.rho_optimizer.iterations) == 3


@quiet
def test_integers():
    def integers(data, dtype):
        x = (50 * np.abs(data[0])).astype("uint8")
        return x.astype(dtype), data[1]

    results = [
        weights_after(integers(TRAIN, dtype), integers(REG, dtype))
        for dtype in ("float32", "uint8")
    ]
    assert_same(*results)


@quiet
def test_strings():
    lookup = keras.layers.StringLookup(vocabulary=["a", "b"])
    inputs = keras.Input((1,), dtype="string")
    x = keras.layers.Flatten()(keras.layers.Embedding(4, 3)(lookup(inputs)))
    outputs = keras.layers.Dense(1)(kcr.layers.GaussianNoiseScale()(x))
    model = compile_model(kcr.CrossRegModel(inputs, outputs), loss="mse")
    x, y = tf.constant([["a"], ["b"]] * 5), tf.constant([[0.0], [1.0]] * 5)
    model.fit(x, y, reg_data=(x, 1 - y), verbose=0)
    x, y = x[:, 0], tf.range(10.0)
    model.fit(x, y, reg_split=0.4, verbose=0)
    assert int(model.rho_optimizer.iterations) == 2


def no_weights(batches):
    """As some generators say that there are none."""
    return ((*batch, None) for batch in batches)


@quiet
@pytest.mark.parametrize("role", ["x", "reg_data"])
def test_a_generator_whose_sample_weights_are_none(role):
    form = FORMS["generator"]
    data, reg = form(TRAIN, SIZE), make_reg_data("generator", REG)
    if role == "x":
        data = no_weights(data)
    else:
        reg = no_weights(reg)
    assert_same(weights_after(data, reg), weights_after_arrays())


WITHOUT_TARGETS = {
    "an array": lambda x, size: x,
    "a tuple": lambda x, size: (x,),
    "a dict": lambda x, size: {"features": x},
    "dataset": lambda x, size: tf.data.Dataset.from_tensor_slices(x).batch(
        size
    ),
    "PyDataset": lambda x, size: Batches([(b,) for b in batches(x, size)]),
    "generator": lambda x, size: generator([(b,) for b in batches(x, size)]),
}


def model_without_targets(form):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,), name="features")
    x = kcr.layers.GaussianNoiseScale(0.5, seed=1)(inputs)
    outputs = keras.layers.Dense(2, activity_regularizer="l2")(x)
    if form == "a dict":
        inputs = {"features": inputs}
    model = kcr.CrossRegModel(inputs, outputs)
    return compile_model(model, loss=None, reg_freq=STEPS)


@functools.cache
def weights_without_targets():
    model = model_without_targets("an array")
    return train(model, (TRAIN[0],), (REG[0],))


@quiet
@pytest.mark.parametrize("form", WITHOUT_TARGETS)
def test_a_model_without_targets(form):
    model = model_without_targets(form)
    make, reg = WITHOUT_TARGETS[form], REG[0]
    if not form.startswith("a"):
        reg = reg[shuffled_rows()]
    result = train(model, make(TRAIN[0], SIZE), make(reg, REG_SIZE))
    assert_same(result, weights_without_targets())


# The table in the documentation.


def test_the_table_of_the_documentation():
    root = pathlib.Path(__file__).parents[1]
    text = (root / "docs" / "compatibility.md").read_text()
    section = re.search(r"(?ms)^## Data$(.*?)(^## |\Z)", text).group(1)
    rows = re.findall(r"(?m)^\| ([^|]+) \| ([^|]+) \|", section)
    names = [name.strip("` ") for name, as_x in rows if as_x.strip() == "works"]
    assert sorted(names) == sorted(FORMS)
