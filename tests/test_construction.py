"""Functional, subclassed and wrapped models, side by side in one process."""

import itertools

import keras
import numpy as np
import pytest
from helpers import Subclassed
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from helpers import slow_but

import keras_crossreg as kcr


class Graph(kcr.CrossRegModel):
    """A subclass whose constructor builds a graph."""

    def __init__(self, units=4):
        inputs = keras.Input((3,))
        x = keras.layers.Dense(units)(inputs)
        x = kcr.layers.GaussianNoiseScale(relative=True)(x)
        super().__init__(inputs, keras.layers.Dense(2, "softmax")(x))
        self.units = units

    def describe(self):
        return f"graph of {self.units}"


def wrapped(cls):
    layers = [
        keras.layers.Dense(4),
        kcr.layers.GaussianNoiseScale(relative=True),
        keras.layers.Dense(2, activation="softmax"),
    ]
    if cls == "sequential":
        return kcr.wrap(keras.Sequential([keras.Input((3,)), *layers]))
    if cls == "unbuilt":
        return kcr.wrap(keras.Sequential(layers))

    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.steps = layers

        def call(self, inputs, training=None):
            for layer in self.steps:
                inputs = layer(inputs)
            return inputs

    return kcr.wrap(Plain())


BUILDERS = {
    "functional": make_model,
    "subclassed": Subclassed,
    "graph": Graph,
    "wrapped functional": lambda: kcr.wrap(make_model(cls=keras.Model)),
    "wrapped sequential": lambda: wrapped("sequential"),
    "wrapped unbuilt": lambda: wrapped("unbuilt"),
    "wrapped subclass": lambda: wrapped("subclass"),
}


@pytest.mark.parametrize(
    "kind",
    slow_but(["functional", "subclassed", "wrapped sequential"], BUILDERS),
)
def test_every_kind_trains(kind):
    model = compile_model(BUILDERS[kind](), run_eagerly=False)
    history = fit(model).history
    assert isinstance(model, kcr.CrossRegModel)
    assert len(model.rho_variables) == 1
    assert int(model.rho_optimizer.iterations) == 3
    assert np.isfinite(history["loss"] + history["reg_loss"]).all()


@pytest.mark.parametrize(
    "order", itertools.permutations(["functional", "subclassed", "graph"])
)
def test_kinds_live_side_by_side_in_any_order(order):
    # Fresh classes: Keras rewrites the bases of a class only once.
    class Base(kcr.CrossRegModel):
        pass

    class Called(Base):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, inputs):
            return self.dense(inputs)

    class Built(Base):
        def __init__(self):
            inputs = keras.Input((3,))
            super().__init__(inputs, keras.layers.Dense(2)(inputs))

    def functional():
        inputs = keras.Input((3,))
        return Base(inputs, keras.layers.Dense(2)(inputs))

    build = {"functional": functional, "subclassed": Called, "graph": Built}
    bases = kcr.CrossRegModel.__bases__, Base.__bases__, Built.__bases__
    x, _ = make_data()
    for name in (*order, *order):
        model = build[name]()
        assert isinstance(model, Base)
        assert model(x).shape == (len(x), 2)
    assert bases == (
        kcr.CrossRegModel.__bases__,
        Base.__bases__,
        Built.__bases__,
    )


def test_keras_model_is_unharmed():
    bases = keras.Model.__bases__
    make_model()
    Graph()

    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, inputs):
            return self.dense(inputs)

    x, _ = make_data()
    assert Plain()(x).shape == (len(x), 2)
    assert keras.Model.__bases__ == bases


def test_a_graph_subclass_keeps_its_own_methods_and_name():
    model = Graph(units=5)
    assert model.describe() == "graph of 5"
    assert type(model).__name__ == "Graph"
    assert isinstance(model, Graph)
    assert model.output_shape == (None, 2)


def test_wrap_shares_the_weights():
    plain = make_model(cls=keras.Model)
    model = kcr.wrap(plain)
    assert {id(v) for v in model.weights} == {id(v) for v in plain.weights}


def test_wrap_of_a_cross_reg_model_is_that_model():
    model = make_model()
    assert kcr.wrap(model) is model


def test_wrap_refuses_what_is_not_a_model():
    with pytest.raises(ValueError, match="Received: model="):
        kcr.wrap(keras.layers.Dense(2))


def test_noise_reaches_nested_models():
    inner = make_model(cls=keras.Model)
    inputs = keras.Input((3,))
    outer = kcr.CrossRegModel(inputs, inner(inputs))
    compile_model(outer)
    fit(outer)
    assert outer.get_rho()["noise/scale"] != 0.5


def test_several_inputs_as_a_dict():
    keras.utils.set_random_seed(0)
    inputs = {n: keras.Input((s,), name=n) for n, s in (("a", 3), ("b", 2))}
    x = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
    x = kcr.layers.GaussianNoiseScale()(x)
    model = kcr.CrossRegModel(inputs, keras.layers.Dense(1)(x))
    compile_model(model, loss="mse")
    rng = np.random.default_rng(0)
    data, reg = (
        {"a": rng.normal(size=(n, 3)), "b": rng.normal(size=(n, 2))}
        for n in (8, 12)
    )
    fit(model, x=data, y=np.ones(8), reg_data=(reg, np.ones(12)))
    assert int(model.rho_optimizer.iterations) == 1


def test_a_subclass_without_get_config_keeps_its_arguments():
    # Of a `keras.Model`, Keras 3.15 would return the defaults.
    assert Subclassed(units=7).get_config()["units"] == 7
    assert Subclassed(6).get_config()["units"] == 6


def test_functional_model_takes_its_own_build_config():
    """As `keras.Model` does; KerasTuner relies on it."""
    model = make_model()
    weights = model.get_weights()
    model.build_from_config(model.get_build_config())
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
