"""What every form of data must do, for the forms of every backend.

A `form` is a function `form(data, size)`, as in `forms.FORMS`.
"""

import contextlib
import functools

import keras
import numpy as np
import pytest
from forms import is_array_form
from forms import training_arguments
from helpers import IS_JAX
from helpers import Subclassed
from helpers import assert_same
from helpers import compile_model
from helpers import fit
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

# A mark of tests of few examples in which there is nothing to find but the
# numbers.
quiet = pytest.mark.filterwarnings("ignore:1 rho learn from")


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
    reg_data = form(data, REG_SIZE)
    if is_array_form(reg_data):
        return reg_data
    data = tree.map_structure(lambda a: a[shuffled_rows()], data)
    return form(data, REG_SIZE)


def rho_steps(model):
    return int(model.rho_optimizer.iterations.numpy())


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
    assert rho_steps(model) == 1
    return values(model.weights)


def weights_after(data, reg_data, **arguments):
    return train(model_from_start(), data, reg_data, **arguments)


@functools.cache
def weights_after_arrays(weighted=False, reg_weighted=False):
    data = with_weights(TRAIN) if weighted else TRAIN
    reg_data = with_weights(REG) if reg_weighted else REG
    return weights_after(data, reg_data)


# ---- As x and as `reg_data` --------------------------------------------------


def check_x_and_reg_data(form, reg_form):
    result = weights_after(form(TRAIN, SIZE), make_reg_data(reg_form, REG))
    # The same batches give the same weights, to the last bit.
    assert_same(result, weights_after_arrays())


def check_training_data_of_unknown_length(form):
    model = model_from_start()
    data = form(TRAIN, SIZE)
    with pytest.warns(UserWarning, match="ran out of data"):
        model.fit(data, reg_data=REG, epochs=2, shuffle=False, verbose=0)
    assert int(model.optimizer.iterations) == 2 * STEPS
    assert rho_steps(model) == 2


def check_training_data_without_examples(data):
    """As for `keras.Model`: nothing to do."""
    model = model_from_start()
    before = values(model.weights)
    arguments = dict(
        **training_arguments(data),
        reg_data=make_data(12, seed=1),
        shuffle=False,
        verbose=0,
    )
    with pytest.warns(UserWarning, match="ran out of data"):
        if IS_JAX:
            # So `keras.Model` ends there.
            with pytest.raises(UnboundLocalError):
                model.fit(**arguments)
        else:
            model.fit(**arguments)
    assert_same(before, values(model.weights))


def check_class_weight(form):
    """They are for the training batches alone."""
    weights = {0: 0.5, 1: 3.0}
    expected = np.array([weights[y] for y in TRAIN[1]])
    assert_same(
        weights_after(form(TRAIN, SIZE), REG, class_weight=weights),
        weights_after((*TRAIN, expected), REG),
    )


# ---- Several inputs and outputs ----------------------------------------------


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


def two_by_two_data(structure, form, role, weighted=False):
    """Data and `reg_data`, of which one is in a form, the other arrays."""
    data, reg = two_by_two(structure, 24), two_by_two(structure, REG_SIZE, 1)
    if weighted:
        data, reg = with_weights(data), with_weights(reg)
    if role == "x":
        return form(data, SIZE), reg
    return data, make_reg_data(form, reg)


def check_several_inputs_and_outputs(structure, form, role, weighted=False):
    data, reg = two_by_two_data(structure, form, role, weighted)
    result = train(model_from_start(structure), data, reg)
    assert_same(result, weights_after_two_by_two(weighted))


# ---- Models that the first batch builds --------------------------------------


class Typed(Subclassed):
    """Notes what it is called with."""

    def __init__(self):
        super().__init__()
        self.types = []

    def call(self, inputs, training=None):
        self.types.append(type(inputs).__name__)
        return super().call(inputs, training=training)


def types_seen(data, reg_data, cls=Typed):
    """What the first `fit` calls a model with.

    Two steps, the check of a regularization batch, the step of rho.
    """
    model = compile_model(cls(), reg_freq=STEPS, run_eagerly=True)
    train(model, data, reg_data)
    return model.types[-STEPS - 2 :]


# ---- `reg_split` -------------------------------------------------------------


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


def check_reg_split(form, structure=None):
    weights, loss = weights_and_loss_of_parts(structure)
    model = model_from_start(structure)
    arguments = dict(reg_split=0.25, validation_split=0.2)
    data = form(data_to_split(structure), SIZE)
    assert_same(train(model, data, None, **arguments), weights)
    assert model.history.history["val_loss"] == loss


# ---- What the examples are ---------------------------------------------------


def sequences(length, rows=4, seed=0):
    x = np.random.default_rng(seed).normal(size=(rows, length, 2))
    return x.astype("float32"), x[..., 0].astype("float32")


# The batches of a data set of sequences.
SEQUENCES = [sequences(n) for n in (3, 2, 6)]


def check_axes_of_unknown_size(data, reg_data):
    inputs = keras.Input((None, 2))
    outputs = keras.layers.Dense(1)(kcr.layers.GaussianNoiseScale()(inputs))
    model = kcr.CrossRegModel(inputs, keras.ops.squeeze(outputs, -1))
    compile_model(model, loss="mse")
    model.fit(
        **training_arguments(data),
        reg_data=reg_data,
        batch_size=4,
        steps_per_epoch=3,
        shuffle=False,
        verbose=0,
    )
    assert rho_steps(model) == 3


def model_without_targets(is_dict=False):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,), name="features")
    x = kcr.layers.GaussianNoiseScale(0.5, seed=1)(inputs)
    outputs = keras.layers.Dense(2, activity_regularizer="l2")(x)
    if is_dict:
        inputs = {"features": inputs}
    model = kcr.CrossRegModel(inputs, outputs)
    return compile_model(model, loss=None, reg_freq=STEPS)


@functools.cache
def weights_without_targets():
    return train(model_without_targets(), (TRAIN[0],), (REG[0],))


def check_model_without_targets(make, in_batches, is_dict=False):
    """`make(x, size)` makes data of inputs alone."""
    reg = REG[0][shuffled_rows()] if in_batches else REG[0]
    model = model_without_targets(is_dict)
    result = train(model, make(TRAIN[0], SIZE), make(reg, REG_SIZE))
    assert_same(result, weights_without_targets())


# ---- Which examples rho meet -------------------------------------------------


def numbers(rows):
    """`(x, y)` whose examples are numbered, told apart by their value."""
    x = np.arange(float(rows), dtype="float32")[:, None]
    return x, x


def see(reg_data, steps, fits=1, **arguments):
    """The examples of each rho step in runs of so many training steps."""
    model, recorder = recording_model()
    x = np.full((steps, 1), -1.0)
    seen = []
    for _ in range(fits):
        recorder.sampled.clear()
        model.fit(x, x, batch_size=1, reg_data=reg_data, verbose=0, **arguments)
        seen += recorder.sampled[-steps * arguments.get("epochs", 1) :]
    return seen


def check_order_of_batches(form):
    # Shorter than an epoch, and with a last partial batch.
    seen = see(form(numbers(10), 4), 5)
    batches = [list(range(4)), list(range(4, 8)), [8, 9]]
    assert seen == batches + batches[:2]


def check_a_second_fit_goes_on(form, in_order=True):
    # Longer than an epoch: four batches, of which each `fit` takes two.
    seen = see(form(numbers(8), 2), 2, fits=3, reg_batch_size=2)
    assert sorted(sum(seen[:4], [])) == list(range(8))
    if in_order:
        assert seen[4:] == seen[:2]


# ---- `train_on_batch`, `merge_epochs`, the warm-up ---------------------------


def result_of_one_batch(reg_data):
    model = compile_model(make_model())
    model.train_on_batch(*TRAIN, reg_data=reg_data)
    return values(model.weights)


@functools.cache
def result_of_one_batch_of_arrays():
    return result_of_one_batch(make_data(12, seed=1))


def check_train_on_batch(form):
    result = result_of_one_batch(form(make_data(12, seed=1), 12))
    assert_same(result, result_of_one_batch_of_arrays())


@functools.cache
def weights_of_merged_arrays():
    return weights_of_merged(make_data(), make_data(12, seed=1))


def weights_of_merged(data, reg_data):
    model = compile_model(make_model())
    fit(
        model,
        x=data[0],
        y=data[1],
        reg_data=reg_data,
        merge_epochs=1,
        batch_size=36,
    )
    return values(model.weights)


def check_merged_arrays(form, reg_form):
    data = form(make_data(), None)
    reg_data = reg_form(make_data(12, seed=1), None)
    assert_same(weights_of_merged(data, reg_data), weights_of_merged_arrays())


def check_default_warmup(x, expected):
    """Of an epoch of 12 batches, whose number may be known or not."""
    model = make_model()
    model.layers[2].momentum = 0.8
    compile_model(model, reg_warmup=None)
    # A quarter of 12 steps, where it is known that there are 12.
    warning = contextlib.nullcontext()
    if expected == 10:
        warning = pytest.warns(UserWarning, match="ran out of data")
    with warning:
        fit(model, x=x, y=None, batch_size=None)
    assert rho_steps(model) == 12 - expected


# ---- Without rho -------------------------------------------------------------


def without_rho(cls):
    # Dropout and shuffling: the random state has to be the same as well.
    return make_model(rho=False, cls=cls, dropout=0.5)


def run_without_rho(build, data, compile_arguments=None, **fit_arguments):
    """Everything that a run gives."""
    model = build()
    model.compile(
        **{
            "optimizer": "adam",
            "loss": "sparse_categorical_crossentropy",
            "metrics": ["accuracy"],
            "run_eagerly": True,
            **(compile_arguments or {}),
        }
    )
    x, y, shuffle = data()
    history = model.fit(
        x, y, epochs=2, verbose=0, shuffle=shuffle, **fit_arguments
    )
    test_x, test_y = make_data(10, seed=4)
    return (
        history.history,
        model.evaluate(test_x, test_y, verbose=0),
        values(model.weights),
        [model.predict(test_x, verbose=0)],
    )


def check_equals_keras(ours, keras_own, data, **arguments):
    """Two models, made by functions, give the same numbers to the last bit.

    `data()` makes `(x, y, shuffle)`.
    """
    one = run_without_rho(ours, data, **arguments)
    other = run_without_rho(keras_own, data, **arguments)
    assert one[:2] == other[:2]
    assert_same(one[2], other[2])
    assert_same(one[3], other[3])


def check_equals_keras_model(data, **arguments):
    check_equals_keras(
        lambda: without_rho(kcr.CrossRegModel),
        lambda: without_rho(keras.Model),
        data,
        **arguments,
    )


# ---- What is refused ---------------------------------------------------------


def check_fit_refuses(model, match, **arguments):
    """`fit` raises, and no weight has moved."""
    before = values(model.weights)
    x, y = make_data()
    defaults = dict(x=x, y=y, verbose=0)
    with pytest.raises(ValueError, match=match):
        model.fit(**{**defaults, **arguments})
    assert_same(before, values(model.weights))
    assert int(model.optimizer.iterations) == 0


def check_train_on_batch_refuses(model, match, reg_data):
    """`train_on_batch` raises, and no weight has moved."""
    before = values(model.weights)
    with pytest.raises(ValueError, match=match):
        model.train_on_batch(*make_data(), reg_data=reg_data)
    assert_same(before, values(model.weights))


@functools.cache
def refusing_model(cls=kcr.CrossRegModel):
    """One for many tests, since what is refused leaves it as it was."""
    model = make_model(cls=cls)
    if cls is kcr.CrossRegModel:
        return compile_model(model)
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    return model


def check_refused_as_reg_data(reg_data):
    """`fit` refuses what Keras refuses as x."""
    # What Keras says of it leads the message.
    match = r"(?s)^.+\nThis came up with `reg_data`.*Received: reg_data="
    check_fit_refuses(refusing_model(), match, reg_data=reg_data)


def check_refused_as_x(data, cls):
    """What is raised is for Keras to say."""
    x, y = data if isinstance(data, tuple) else (data, None)
    reg_data = {} if cls is keras.Model else dict(reg_data=make_data(12, 1))
    with pytest.raises((ValueError, IndexError)):
        refusing_model(cls).fit(x, y, shuffle=False, verbose=0, **reg_data)
