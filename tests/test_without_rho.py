"""A model without rho is a `keras.Model`, number for number."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_same
from helpers import make_data
from helpers import make_model
from helpers import values

import keras_crossreg as kcr


def numbers(build, data, compile_arguments=None, **fit_arguments):
    """Everything that a run gives."""
    model = build()
    model.compile(
        **{
            "optimizer": "adam",
            "loss": "sparse_categorical_crossentropy",
            "metrics": ["accuracy"],
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


def functional(cls):
    # Dropout and shuffling: the random state has to be the same as well.
    return make_model(rho=False, cls=cls, dropout=0.5)


def arrays():
    return *make_data(), True


def shuffled_dataset():
    dataset = tf.data.Dataset.from_tensor_slices(make_data())
    return dataset.shuffle(24, seed=1).batch(5), None, False


def generator():
    x, y = make_data()
    return ((x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16)), None, False


CASES = {
    "validation_split, class_weight": (
        arrays,
        dict(
            validation_split=0.25, class_weight={0: 1.0, 1: 3.0}, batch_size=8
        ),
    ),
    "sample_weight, steps_per_execution": (
        arrays,
        dict(
            compile_arguments=dict(
                steps_per_execution=3, weighted_metrics=["accuracy"]
            ),
            sample_weight=np.linspace(0, 2, 24),
            batch_size=5,
        ),
    ),
    "dataset, validation_data": (
        shuffled_dataset,
        dict(validation_data=make_data(10, seed=4)),
    ),
    "generator, steps_per_epoch": (
        generator,
        dict(steps_per_epoch=1),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_keras_model(case):
    data, arguments = CASES[case]
    ours = numbers(lambda: functional(kcr.CrossRegModel), data, **arguments)
    keras_own = numbers(lambda: functional(keras.Model), data, **arguments)
    assert ours[:2] == keras_own[:2]
    assert_same(ours[2], keras_own[2])
    assert_same(ours[3], keras_own[3])


@pytest.mark.parametrize("wrapped", [False, True])
def test_subclassed_equals_keras_model(wrapped):
    def call(self, inputs, training=None):
        return self.classes(self.drop(self.hidden(inputs), training=training))

    def build(base):
        keras.utils.set_random_seed(0)

        def __init__(self):
            base.__init__(self)
            self.hidden = keras.layers.Dense(4, activation="relu")
            self.drop = keras.layers.Dropout(0.5)
            self.classes = keras.layers.Dense(2, activation="softmax")

        return type("Net", (base,), {"__init__": __init__, "call": call})()

    def ours():
        if wrapped:
            return kcr.wrap(build(keras.Model))
        return build(kcr.CrossRegModel)

    one = numbers(ours, arrays, batch_size=8, validation_split=0.25)
    other = numbers(
        lambda: build(keras.Model), arrays, batch_size=8, validation_split=0.25
    )
    assert one[:2] == other[:2]
    assert_same(one[2], other[2])
    assert_same(one[3], other[3])


def test_train_on_batch_equals_keras_model():
    results = []
    for cls in (kcr.CrossRegModel, keras.Model):
        model = functional(cls)
        model.compile(
            "adam", "sparse_categorical_crossentropy", metrics=["accuracy"]
        )
        x, y = make_data()
        logs = [model.train_on_batch(x, y, return_dict=True) for _ in range(2)]
        results.append((logs, values(model.weights)))
    assert results[0][0] == results[1][0]
    assert_same(results[0][1], results[1][1])


def test_reg_data_without_rho_warn():
    model = make_model(rho=False)
    model.compile("adam", "sparse_categorical_crossentropy")
    x, y = make_data()
    with pytest.warns(UserWarning, match="has no rho"):
        history = model.fit(x, y, reg_data=(x, y), verbose=0)
    assert set(history.history) == {"loss"}
