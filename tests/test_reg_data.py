"""Every form of data as training data and as regularization set.

The names of the grid read as a table: `pytest -v tests/test_reg_data.py`.
`docs/compatibility.md` is checked against it, in
`tests/backend/tensorflow/test_tensorflow_data.py`, which has the forms of
TensorFlow.
"""

import itertools

import keras
import numpy as np
import pytest
from form_checks import REG
from form_checks import SEQUENCES
from form_checks import SIZE
from form_checks import STEPS
from form_checks import TRAIN
from form_checks import check_axes_of_unknown_size
from form_checks import check_class_weight
from form_checks import check_model_without_targets
from form_checks import check_reg_split
from form_checks import check_several_inputs_and_outputs
from form_checks import check_training_data_of_unknown_length
from form_checks import check_training_data_without_examples
from form_checks import check_x_and_reg_data
from form_checks import make_reg_data
from form_checks import quiet
from form_checks import sequences
from form_checks import train
from form_checks import types_seen
from form_checks import weights_after
from form_checks import weights_after_arrays
from form_checks import with_weights
from forms import BATCH_FORMS
from forms import FORMS
from forms import Batches
from forms import against_arrays
from forms import batches
from forms import generator
from forms import pair
from helpers import assert_same
from helpers import compile_model

import keras_crossreg as kcr

pytestmark = quiet

# Every form meets arrays, both ways; those that come in batches of different
# kinds meet one another.
PAIRS = [
    *against_arrays(FORMS),
    ("PyDataset", "generator"),
    ("generator", "torch DataLoader"),
]
MORE_PAIRS = [
    names
    for names in itertools.product(BATCH_FORMS, BATCH_FORMS)
    if names not in PAIRS
]


@pytest.mark.parametrize(
    ("x", "reg_data"),
    [pair(*names) for names in PAIRS]
    + [pair(*names, pytest.mark.slow) for names in MORE_PAIRS],
)
def test_x_and_reg_data(x, reg_data):
    check_x_and_reg_data(FORMS[x], FORMS[reg_data])


@pytest.mark.parametrize(
    "form", ["pandas", "PyDataset", "generator", "torch DataLoader"]
)
def test_sample_weights(form):
    data = FORMS[form](with_weights(TRAIN), SIZE)
    reg_data = make_reg_data(FORMS[form], with_weights(REG))
    assert_same(weights_after(data, reg_data), weights_after_arrays(True, True))


def test_sample_weights_of_one_and_not_of_the_other():
    pairs = [(x, reg) for x in (False, True) for reg in (False, True)]
    results = [weights_after_arrays(*pair) for pair in pairs]
    # All four are different, or the test above would find nothing.
    assert len({b"".join(w.tobytes() for w in ws) for ws in results}) == 4


STRUCTURED = {
    "dict": ("arrays", "SciPy matrices", "torch DataLoader"),
    "tuple": ("arrays", "generator"),
    "list": ("arrays",),
}


@pytest.mark.parametrize("role", ["x", "reg_data"])
@pytest.mark.parametrize(
    ("structure", "form"),
    [(name, form) for name, forms in STRUCTURED.items() for form in forms],
)
def test_several_inputs_and_outputs(structure, form, role):
    # Keras takes one weight for all outputs with arrays alone.
    check_several_inputs_and_outputs(
        structure, FORMS[form], role, weighted=form == "arrays"
    )


@pytest.mark.parametrize(
    "form",
    [
        "arrays",
        "pandas",
        "SciPy matrices",
        "PyDataset",
        "generator",
        "torch DataLoader",
    ],
)
def test_a_model_that_is_not_built(form):
    form = FORMS[form]
    types = types_seen(form(TRAIN, SIZE), make_reg_data(form, REG))
    # Sparse matrices stay sparse, or not, in every pass alike.
    kind = type(keras.ops.zeros(())).__name__
    if form is FORMS["SciPy matrices"]:
        kind = types[0]
    assert types == [kind] * (STEPS + 2)


# What stands beside the data in `fit`.


@pytest.mark.parametrize(
    "form", ["arrays", "tensors", "torch tensors", "pandas", "SciPy matrices"]
)
def test_reg_split_after_validation_split(form):
    check_reg_split(FORMS[form])


@pytest.mark.parametrize("structure", ["dict", "tuple", "list"])
def test_reg_split_of_several_inputs_and_outputs(structure):
    check_reg_split(FORMS["arrays"], structure)


@pytest.mark.parametrize("form", ["arrays", "PyDataset"])
def test_class_weight(form):
    check_class_weight(FORMS[form])


@pytest.mark.parametrize("form", ["generator", "torch DataLoader"])
def test_class_weight_of_what_keras_cannot_weight(form):
    data = FORMS[form](TRAIN, SIZE)
    with pytest.raises(ValueError, match="class_weight.*not supported"):
        weights_after(data, REG, class_weight={0: 0.5, 1: 3.0})


def test_training_data_of_unknown_length():
    check_training_data_of_unknown_length(
        FORMS["torch DataLoader of unknown length"]
    )


def test_training_data_without_examples():
    x, y = TRAIN
    check_training_data_without_examples((x[:0], y[:0]))


# What the data are made of.


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
        compile_model(model, loss=Broadcasting(), reg_freq=STEPS)
        train_x, reg_x = TRAIN[0][:, :1], REG[0][:, :1]
        data, reg = (train_x, 2 * train_x), (reg_x, 2 * reg_x)
        if x_rank == 1:
            data = tuple(a[:, 0] for a in data)
        if reg_rank == 1:
            reg = tuple(a[:, 0] for a in reg)
        return train(model, data, reg)

    # As many axes as the training data have.
    assert_same(result(rank, 1), result(rank, 2))


LENGTHS = {
    "arrays": lambda: sequences(5, 12),
    "longer arrays": lambda: sequences(8, 12, seed=1),
    "PyDataset": lambda: Batches(SEQUENCES),
    "generator": lambda: generator(SEQUENCES),
}


@pytest.mark.parametrize(
    ("x", "reg_data"),
    [
        ("arrays", "longer arrays"),
        ("PyDataset", "PyDataset"),
        ("generator", "arrays"),
    ],
)
def test_axes_of_unknown_size(x, reg_data):
    check_axes_of_unknown_size(LENGTHS[x](), LENGTHS[reg_data]())


def test_integers():
    def integers(data, dtype):
        x = (50 * np.abs(data[0])).astype("uint8")
        return x.astype(dtype), data[1]

    results = [
        weights_after(integers(TRAIN, dtype), integers(REG, dtype))
        for dtype in ("float32", "uint8")
    ]
    assert_same(*results)


def no_weights(batches):
    """As some generators say that there are none."""
    return ((*batch, None) for batch in batches)


@pytest.mark.parametrize("role", ["x", "reg_data"])
def test_a_generator_whose_sample_weights_are_none(role):
    form = FORMS["generator"]
    data, reg = form(TRAIN, SIZE), make_reg_data(form, REG)
    if role == "x":
        data = no_weights(data)
    else:
        reg = no_weights(reg)
    assert_same(weights_after(data, reg), weights_after_arrays())


WITHOUT_TARGETS = {
    "an array": lambda x, size: x,
    "a tuple": lambda x, size: (x,),
    "a dict": lambda x, size: {"features": x},
    "PyDataset": lambda x, size: Batches([(b,) for b in batches(x, size)]),
    "generator": lambda x, size: generator([(b,) for b in batches(x, size)]),
}


@pytest.mark.parametrize("form", WITHOUT_TARGETS)
def test_a_model_without_targets(form):
    check_model_without_targets(
        WITHOUT_TARGETS[form],
        in_batches=form in BATCH_FORMS,
        is_dict=form == "a dict",
    )
