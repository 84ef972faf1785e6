"""Every form of data as training data and as regularization set."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import Subclassed
from helpers import assert_same
from helpers import compile_model
from helpers import make_data
from helpers import make_model
from helpers import values

import keras_crossreg as kcr
from keras_crossreg.backend.tensorflow.stream import RegularizationStream


class Batches(keras.utils.PyDataset):
    def __init__(self, data, **kwargs):
        super().__init__(**kwargs)
        self.data = data

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return tuple(a[8 * index : 8 * index + 8] for a in self.data)


class EndlessBatches(Batches):
    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        return super().__getitem__(index % 3)


def generator(data):
    while True:
        for i in range(3):
            yield tuple(a[8 * i : 8 * i + 8] for a in data)


def weighted(data):
    return (*data, np.ones(len(data[1]), "float32"))


FORMS = {
    "arrays": lambda data: data,
    "weighted arrays": weighted,
    "tensors": lambda data: tuple(map(tf.constant, data)),
    "dataset": lambda data: tf.data.Dataset.from_tensor_slices(data).batch(8),
    "weighted dataset": lambda data: tf.data.Dataset.from_tensor_slices(
        weighted(data)
    ).batch(8),
    "dataset of unknown shapes": lambda data: tf.data.Dataset.from_generator(
        lambda: iter([data]), output_types=("float32", "int32")
    ),
    "PyDataset": Batches,
    "PyDataset with workers": lambda data: Batches(data, workers=2),
    "endless PyDataset": EndlessBatches,
    "generator": generator,
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_reg_data(form):
    model = compile_model(make_model())
    x, y = make_data()
    reg_data = FORMS[form](make_data(seed=1))
    model.fit(x, y, reg_data=reg_data, batch_size=6, shuffle=False, verbose=0)
    # More steps than the set has batches.
    assert int(model.rho_optimizer.iterations) == 4


@pytest.mark.parametrize(
    "form", ["dataset", "dataset of unknown shapes", "PyDataset", "generator"]
)
@pytest.mark.parametrize("subclassed", [False, True])
def test_forms_of_training_data(form, subclassed):
    model = Subclassed() if subclassed else make_model()
    compile_model(model)
    data = FORMS[form](make_data())
    # Of unknown length, Keras would warn at the end of the first epoch.
    steps = {"generator": 3, "dataset of unknown shapes": 1}.get(form)
    model.fit(
        data,
        reg_data=make_data(12, seed=1),
        steps_per_epoch=steps,
        shuffle=False,
        verbose=0,
    )
    expected = 1 if form == "dataset of unknown shapes" else 3
    assert int(model.rho_optimizer.iterations) == expected


def test_pandas():
    pd = pytest.importorskip("pandas")
    model = compile_model(Subclassed())
    x, y = map(pd.DataFrame, make_data())
    reg_x, reg_y = map(pd.DataFrame, make_data(12, seed=1))
    model.fit(x, y, reg_data=(reg_x, reg_y), verbose=0)
    assert int(model.rho_optimizer.iterations) == 1


def test_no_batch_of_a_generator_is_lost():
    results = []
    for form in ("arrays", "generator"):
        model = compile_model(make_model())
        data = FORMS[form](make_data())
        arguments = dict(x=data, steps_per_epoch=3)
        if form == "arrays":
            arguments = dict(x=data[0], y=data[1], batch_size=8)
        # The regularization batches are shuffled, so rho have to stand still.
        model.rho_optimizer.learning_rate = 0.0
        reg_data = make_data(12, seed=1)
        model.fit(**arguments, reg_data=reg_data, shuffle=False, verbose=0)
        results.append(values(model.weights))
    assert_same(*results)


def test_a_generator_that_ends_says_so():
    model = compile_model(make_model())
    x, y = make_data()
    reg_data = (make_data(12, seed=i) for i in range(2))
    with pytest.raises(ValueError, match="ran out of batches"):
        model.fit(x, y, batch_size=8, reg_data=reg_data, verbose=0)


def test_strings():
    lookup = keras.layers.StringLookup(vocabulary=["a", "b"])
    inputs = keras.Input((1,), dtype="string")
    x = keras.layers.Flatten()(keras.layers.Embedding(4, 3)(lookup(inputs)))
    outputs = keras.layers.Dense(1)(kcr.layers.GaussianNoiseScale()(x))
    model = compile_model(kcr.CrossRegModel(inputs, outputs), loss="mse")
    x, y = tf.constant([["a"], ["b"]] * 5), tf.constant([[0.0], [1.0]] * 5)
    model.fit(x, y, reg_data=(x, 1 - y), verbose=0)
    assert int(model.rho_optimizer.iterations) == 1


def test_a_dataset_is_read_once_an_epoch():
    # To look at it before would move on the random state of its shuffling.
    starts = []

    def batches():
        starts.append(1)
        yield make_data()

    signature = (
        tf.TensorSpec((None, 3), "float32"),
        tf.TensorSpec((None,), "int32"),
    )
    dataset = tf.data.Dataset.from_generator(
        batches, output_signature=signature
    )
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(1))
    model = compile_model(Subclassed())
    model.fit(
        dataset,
        reg_data=make_data(12, seed=1),
        epochs=2,
        shuffle=False,
        verbose=0,
    )
    assert len(starts) == 2


def test_the_data_of_a_stream_end_with_fit():
    # Not with the next garbage collection, which would wait for the threads
    # of every `fit` since the last.
    stream = RegularizationStream(
        make_data(), 8, tf.distribute.get_strategy(), position=0
    )
    next(stream)
    reference = weakref.ref(stream)
    gc.disable()
    try:
        stream.close()
        del stream
        assert reference() is None
    finally:
        gc.enable()
