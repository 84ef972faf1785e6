"""A model without rho is a `keras.Model`, number for number."""

import keras
import numpy as np
import pytest
from form_checks import check_equals_keras
from form_checks import check_equals_keras_model
from form_checks import without_rho
from forms import Batches
from forms import batches
from helpers import assert_same
from helpers import executions_of
from helpers import make_data
from helpers import make_model
from helpers import slow_but
from helpers import values

import keras_crossreg as kcr


def arrays():
    return *make_data(), True


def pydataset():
    return Batches(batches(make_data(), 5)), None, True


def generator():
    return (batch for batch in batches(make_data(), 8)), None, False


CASES = {
    "validation_split, class_weight": (
        arrays,
        dict(
            validation_split=0.25, class_weight={0: 1.0, 1: 3.0}, batch_size=8
        ),
    ),
    "compiled, sample_weight, steps_per_execution": (
        arrays,
        dict(
            compile_arguments=dict(
                run_eagerly=False,
                **executions_of(3),
                weighted_metrics=["accuracy"],
            ),
            sample_weight=np.linspace(0, 2, 24),
            batch_size=5,
        ),
    ),
    "PyDataset, validation_data": (
        pydataset,
        dict(validation_data=make_data(10, seed=4)),
    ),
    "generator, steps_per_epoch": (
        generator,
        dict(steps_per_epoch=1),
    ),
}


@pytest.mark.parametrize(
    "case",
    slow_but(
        [
            "validation_split, class_weight",
            "compiled, sample_weight, steps_per_execution",
        ],
        CASES,
    ),
)
def test_equals_keras_model(case):
    data, arguments = CASES[case]
    check_equals_keras_model(data, **arguments)


@pytest.mark.parametrize(
    "wrapped", [pytest.param(False, marks=pytest.mark.slow), True]
)
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

    check_equals_keras(
        ours,
        lambda: build(keras.Model),
        arrays,
        compile_arguments=dict(run_eagerly=wrapped),
        batch_size=8,
        validation_split=0.25,
    )


def test_train_on_batch_equals_keras_model():
    results = []
    for cls in (kcr.CrossRegModel, keras.Model):
        model = without_rho(cls)
        model.compile(
            "adam",
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
            run_eagerly=True,
        )
        x, y = make_data()
        logs = [model.train_on_batch(x, y, return_dict=True) for _ in range(2)]
        results.append((logs, values(model.weights)))
    assert results[0][0] == results[1][0]
    assert_same(results[0][1], results[1][1])


def test_reg_data_without_rho_warn():
    model = make_model(rho=False)
    model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    x, y = make_data()
    with pytest.warns(UserWarning, match="has no rho"):
        history = model.fit(x, y, reg_data=(x, y), verbose=0)
    assert set(history.history) == {"loss"}
