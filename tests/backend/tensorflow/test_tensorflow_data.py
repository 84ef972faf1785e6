"""The forms of data that are TensorFlow's own, as x and as `reg_data`.

The names of the grid read as a table:
`pytest -v tests/backend/tensorflow/test_tensorflow_data.py`.
"""

import itertools
import pathlib
import re
import warnings

import keras
import pytest
import tensorflow as tf
from form_checks import REG
from form_checks import SEQUENCES
from form_checks import SIZE
from form_checks import STEPS
from form_checks import TRAIN
from form_checks import Typed
from form_checks import check_a_second_fit_goes_on
from form_checks import check_axes_of_unknown_size
from form_checks import check_class_weight
from form_checks import check_default_warmup
from form_checks import check_equals_keras_model
from form_checks import check_fit_refuses
from form_checks import check_merged_arrays
from form_checks import check_model_without_targets
from form_checks import check_order_of_batches
from form_checks import check_refused_as_reg_data
from form_checks import check_refused_as_x
from form_checks import check_reg_split
from form_checks import check_several_inputs_and_outputs
from form_checks import check_train_on_batch
from form_checks import check_train_on_batch_refuses
from form_checks import check_training_data_of_unknown_length
from form_checks import check_training_data_without_examples
from form_checks import check_x_and_reg_data
from form_checks import make_reg_data
from form_checks import model_from_start
from form_checks import quiet
from form_checks import refusing_model
from form_checks import sequences
from form_checks import train
from form_checks import two_by_two_data
from form_checks import types_seen
from forms import BATCH_FORMS
from forms import FORMS as NEUTRAL_FORMS
from forms import against_arrays
from forms import generator
from forms import pair
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from tensorflow_forms import TENSORFLOW_FORMS
from tensorflow_forms import dataset

import keras_crossreg as kcr

pytestmark = quiet

FORMS = {**NEUTRAL_FORMS, **TENSORFLOW_FORMS}
X, Y = make_data()
REG_X, REG_Y = make_data(12, seed=1)
ROOT = pathlib.Path(__file__).parents[3]

# Every form meets arrays, both ways; datasets meet the other forms that come
# in batches.
PAIRS = [
    *against_arrays(TENSORFLOW_FORMS),
    ("dataset", "dataset of unknown length"),
    ("dataset of unknown length", "PyDataset"),
    ("torch DataLoader", "dataset"),
]
DATASETS = ["dataset", "dataset of unknown length"]
MORE_PAIRS = [
    names
    for names in itertools.product(DATASETS + BATCH_FORMS, repeat=2)
    if not {*names} <= {*BATCH_FORMS} and names not in PAIRS
]


@pytest.mark.parametrize(
    ("x", "reg_data"),
    [pair(*names) for names in PAIRS]
    + [pair(*names, pytest.mark.slow) for names in MORE_PAIRS],
)
def test_x_and_reg_data(x, reg_data):
    check_x_and_reg_data(FORMS[x], FORMS[reg_data])


def test_the_table_of_the_documentation():
    text = (ROOT / "docs" / "compatibility.md").read_text()
    section = re.search(r"(?ms)^## Data$(.*?)(^## |\Z)", text).group(1)
    rows = re.findall(r"(?m)^\| ([^|]+) \| ([^|]+) \|", section)
    names = [name.strip("` ") for name, as_x in rows if as_x.strip() == "works"]
    assert sorted(names) == sorted(FORMS)


def test_a_dataset_of_several_inputs_and_outputs():
    for role in ("x", "reg_data"):
        check_several_inputs_and_outputs("dict", dataset, role)


# Keras reads these as tensors for TensorFlow, which takes no lists for
# structures; a `DataLoader` makes lists of tuples.
@pytest.mark.parametrize(
    ("structure", "form"),
    [("list", "PyDataset"), ("tuple", "torch DataLoader")],
)
@pytest.mark.parametrize("role", ["x", "reg_data"])
def test_lists_in_batches_are_refused(structure, form, role):
    data, reg = two_by_two_data(structure, FORMS[form], role)
    error = TypeError if role == "x" else ValueError
    with pytest.raises(error, match="must contain objects that are"):
        train(model_from_start(structure), data, reg)


# Models that the first batch builds.


class TypedOrRagged(Typed):
    def call(self, inputs, training=None):
        if not isinstance(inputs, tf.RaggedTensor):
            return super().call(inputs, training=training)
        outputs = super().call(
            inputs.to_tensor(shape=(None, 3)), training=training
        )
        self.types[-1] = type(inputs).__name__
        return outputs


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("dataset", "EagerTensor"),
        ("dataset of unknown shapes", "EagerTensor"),
        # Sparse and ragged tensors stay what they are, in every pass.
        ("SciPy matrices", "SparseTensor"),
        ("dataset of sparse tensors", "SparseTensor"),
        ("ragged tensors", "RaggedTensor"),
    ],
)
def test_a_model_that_is_not_built(form, kind):
    form = FORMS[form]
    types = types_seen(
        form(TRAIN, SIZE), make_reg_data(form, REG), TypedOrRagged
    )
    assert types == [kind] * (STEPS + 2)


@pytest.mark.parametrize("form", ["tensors", "dataset"])
def test_rows_of_different_lengths(form):
    data, reg = (
        (tf.ragged.constant([row[: 1 + i % 3] for i, row in enumerate(x)]), y)
        for x, y in (TRAIN, REG)
    )
    if form == "dataset":
        data, reg = dataset(data, SIZE), dataset(reg, SIZE)
    types = types_seen(data, reg, TypedOrRagged)
    assert types == ["RaggedTensor"] * (STEPS + 2)


# What stands beside the data in `fit`.


@pytest.mark.parametrize("form", ["sparse tensors", "ragged tensors"])
def test_reg_split_after_validation_split(form):
    check_reg_split(FORMS[form])


def test_class_weight():
    check_class_weight(dataset)


def test_training_data_of_unknown_length():
    check_training_data_of_unknown_length(FORMS["dataset of unknown length"])


def test_training_data_without_examples():
    check_training_data_without_examples(dataset(TRAIN, SIZE).take(0))


@pytest.mark.parametrize(
    ("form", "expected"), [("dataset", 3), ("dataset of unknown length", 10)]
)
def test_the_default_warmup(form, expected):
    check_default_warmup(FORMS[form](make_data(), 2), expected)


def test_without_rho_a_model_equals_that_of_keras():
    def shuffled():
        data = tf.data.Dataset.from_tensor_slices(make_data())
        return data.shuffle(24, seed=1).batch(5), None, False

    check_equals_keras_model(shuffled, validation_data=make_data(10, seed=4))


# `merge_epochs`.


@pytest.mark.parametrize(
    ("form", "reg_form"),
    [
        ("sparse tensors", "arrays"),
        ("ragged tensors", "ragged tensors"),
    ],
)
def test_merged_arrays(form, reg_form):
    check_merged_arrays(FORMS[form], FORMS[reg_form])


def test_merged_datasets():
    model = compile_model(make_model())
    model.fit(
        dataset(make_data(), 8),
        reg_data=dataset(make_data(12, seed=1), 8),
        epochs=2,
        merge_epochs=1,
        shuffle=False,
        verbose=0,
    )
    # The last epoch begins with a fresh optimizer.
    assert int(model.optimizer.iterations) == 5
    assert int(model.rho_optimizer.iterations) == 3


# What the data are made of.


def dataset_of_sequences():
    return tf.data.Dataset.from_generator(
        lambda: generator(SEQUENCES),
        output_signature=(
            tf.TensorSpec((None, None, 2)),
            tf.TensorSpec((None, None)),
        ),
    )


def test_axes_of_unknown_size():
    check_axes_of_unknown_size(sequences(5, 12), dataset_of_sequences())
    check_axes_of_unknown_size(dataset_of_sequences(), generator(SEQUENCES))


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


def test_a_model_without_targets():
    check_model_without_targets(dataset, in_batches=True)


# Which examples rho meet.


@pytest.mark.parametrize(
    "form", [*DATASETS, "dataset of unknown shapes", "endless dataset"]
)
def test_batches_come_in_their_order_again_and_again(form):
    check_order_of_batches(FORMS[form])


@pytest.mark.parametrize("form", DATASETS)
def test_a_second_fit_goes_on_in_the_set(form):
    check_a_second_fit_goes_on(FORMS[form])


def test_a_dataset_is_read_once_an_epoch():
    # To look at it before would move on the random state of its shuffling. In
    # the end, `fit` looks for examples that are in `reg_data`, too.
    starts = []

    def batches():
        starts.append(1)
        yield make_data()

    signature = (
        tf.TensorSpec((None, 3), "float32"),
        tf.TensorSpec((None,), "int32"),
    )
    data = tf.data.Dataset.from_generator(batches, output_signature=signature)
    data = data.apply(tf.data.experimental.assert_cardinality(1))
    model = compile_model(make_model())
    seen = []
    each = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: seen.append(len(starts))
    )
    fit(model, x=data, y=None, batch_size=None, epochs=2, callbacks=[each])
    assert seen[1] - seen[0] == 1
    assert len(starts) == 3


# What is refused.


@pytest.mark.parametrize(
    "data",
    [iter(dataset((X, Y), 8)), (dataset((X, Y), 8), Y)],
    ids=["an iterator", "a dataset and targets"],
)
def test_what_keras_refuses(data):
    check_refused_as_reg_data(data)
    for cls in (keras.Model, kcr.CrossRegModel):
        check_refused_as_x(data, cls)


REG_DATA = (REG_X, REG_Y)
FIT_ERRORS = {
    "dataset of another shape": (
        dict(reg_data=dataset((X[:, :2], Y), 8)),
        r"Expected x like \(3,\).*Received: x=\(2,\)",
    ),
    "empty dataset": (
        dict(reg_data=dataset((X, Y), 8).take(0)),
        "at least one example.*Received: reg_data=",
    ),
    "targets in a dataset, but none in training": (
        dict(y=None, reg_data=dataset(REG_DATA, 8)),
        r"Expected y like None.*Received: y=\(\)$",
    ),
    "reg_split of a dataset": (
        dict(x=dataset((X, Y), 8), y=None, reg_split=0.1),
        "cut other data yourself.*Received: reg_split=0.1",
    ),
    "merge_epochs of a dataset and arrays": (
        dict(x=dataset((X, Y), 8), y=None, reg_data=REG_DATA, merge_epochs=1),
        "both.*arrays.*Received: x of type",
    ),
}


@pytest.mark.parametrize("case", FIT_ERRORS)
def test_fit_refuses(case):
    arguments, match = FIT_ERRORS[case]
    check_fit_refuses(refusing_model(), "(?s)" + match, **arguments)


# `train_on_batch`.


@pytest.mark.parametrize("form", ["sparse tensors", "ragged tensors"])
def test_train_on_batch(form):
    check_train_on_batch(FORMS[form])


def test_train_on_batch_refuses_a_dataset():
    match = "(?s)Received: reg_data=_BatchDataset"
    data = dataset(REG_DATA, 8)
    check_train_on_batch_refuses(refusing_model(), match, data)


@pytest.mark.parametrize("shared", [True, False])
def test_a_dataset_that_shares_examples_with_the_regularization_set(shared):
    x, y = make_data(24)
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(24).batch(8)
    reg_data = (x[:20], y[:20]) if shared else make_data(20, seed=1)
    model = compile_model(make_model())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(data, reg_data=reg_data, verbose=0)
    found = [w for w in caught if "that were looked at" in str(w.message)]
    assert len(found) == shared
    if shared:
        assert str(found[0].message).startswith("20 of 20 regularization")
