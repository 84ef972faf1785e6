"""`averaged`: predictions of the noise averaged, in a plain Keras model."""

import keras
import numpy as np
import pytest
from helpers import Configured
from helpers import assert_same
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from helpers import values

import keras_crossreg as kcr

X, _ = make_data(9, seed=2)


@keras.saving.register_keras_serializable("tests")
class Whole(keras.Model):
    """A subclassed plain model, to be wrapped."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.noise = kcr.layers.GaussianNoiseScale(0.5, seed=1)
        self.classes = keras.layers.Dense(2, activation="softmax")

    def call(self, inputs):
        return self.classes(self.noise(inputs))


def built(kind):
    keras.utils.set_random_seed(0)
    if kind == "functional":
        return make_model()
    model = Configured() if kind == "subclassed" else kcr.wrap(Whole())
    model(X)
    return model


def logits_of(inputs):
    x = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
    x = kcr.layers.GaussianNoiseScale(1.0, seed=1)(x)
    return {
        "many": keras.layers.Dense(3, name="many")(x),
        "one": keras.layers.Dense(1, name="one")(x),
        "number": keras.layers.Dense(1, name="number")(x),
    }


LOSSES = {
    "many": keras.losses.CategoricalCrossentropy(from_logits=True),
    "one": keras.losses.BinaryCrossentropy(from_logits=True),
    "number": "mse",
}


def several(**compile_arguments):
    """Inputs and outputs in dicts; logits of both kinds."""
    keras.utils.set_random_seed(0)
    inputs = {n: keras.Input((2,), name=n) for n in ("a", "b")}
    model = kcr.CrossRegModel(inputs, logits_of(inputs))
    if compile_arguments:
        model.compile(run_eagerly=True, **compile_arguments)
    rng = np.random.default_rng(0)
    x = {n: rng.normal(size=(9, 2)).astype("float32") for n in ("a", "b")}
    return model, x


def arrays(structure):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, structure)


def assert_close(first, second):
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        arrays(first),
        arrays(second),
    )


@pytest.mark.parametrize("kind", ["functional", "subclassed", "wrapped"])
def test_it_predicts_as_the_model_does(kind, tmp_path):
    model = compile_model(built(kind), eval_num_samples=5)
    fit(model)
    expected = model.predict(X, verbose=0)
    averaged = kcr.averaged(model, 5)
    assert not isinstance(averaged, kcr.CrossRegModel)
    assert_close(averaged(X), expected)
    assert_close(averaged(X), expected)
    # Noise and K count: the test would notice a pass without.
    for other in (model(X, training=False), kcr.averaged(model, 4)(X)):
        assert np.abs(arrays(other) - expected).max() > 1e-3
    averaged.save(tmp_path / "averaged.keras")
    loaded = keras.models.load_model(tmp_path / "averaged.keras")
    assert_close(loaded(X), expected)
    assert_close(loaded.predict(X, verbose=0), expected)


def test_it_shares_the_weights():
    model = compile_model(make_model(), eval_num_samples=5)
    averaged = kcr.averaged(model, 5)
    fit(model)
    assert_close(averaged(X), model.predict(X, verbose=0))


def test_calls_do_not_change_how_the_model_trains_on():
    results = []
    for calls in (0, 2):
        model = compile_model(make_model())
        for _ in range(calls):
            kcr.averaged(model, 3)(X)
        fit(model)
        results.append(values(model.weights))
    assert_same(*results)


def test_it_can_be_compiled_but_teaches_rho_nothing():
    model = compile_model(make_model(), eval_num_samples=5)
    averaged = kcr.averaged(model, 5)
    averaged.compile("sgd", model.loss, run_eagerly=True)
    data = make_data(20, seed=3)
    assert averaged.evaluate(*data, verbose=0) == pytest.approx(
        model.evaluate(*data, verbose=0)
    )
    rho = model.get_rho()
    averaged.fit(*data, verbose=0)
    assert model.get_rho() == rho


def test_several_inputs_and_outputs(tmp_path):
    model, x = several(loss=LOSSES, eval_num_samples=4)
    expected = model.predict(x, verbose=0)
    averaged = kcr.averaged(model, 4)
    assert_close(averaged(x), expected)
    averaged.save(tmp_path / "averaged.keras")
    # The space of the averages does not depend on what is compiled.
    loaded = keras.models.load_model(tmp_path / "averaged.keras", compile=False)
    assert_close(loaded(x), expected)
    # It makes a difference.
    other = arrays(kcr.averaged(several(loss="mse")[0], 4)(x))
    for name in ("many", "one"):
        assert np.abs(other[name] - expected[name]).max() > 0.01


def test_a_model_that_is_not_compiled_averages_outputs():
    model, x = several()
    samples = model.predict_samples(x, 6, verbose=0)
    assert_close(
        kcr.averaged(model, 6)(x),
        keras.tree.map_structure(lambda y: y.mean(0), samples),
    )


@keras.saving.register_keras_serializable("tests")
def largest(samples):
    return keras.ops.max(samples, axis=0)


def own_loss(y, y_pred):
    return keras.ops.mean(keras.ops.square(y - y_pred), axis=-1)


def test_averaging_of_ones_own(tmp_path):
    # A loss that nobody registered does not keep it from being loaded.
    model, x = several(loss=own_loss, averaging=largest, eval_num_samples=4)
    kcr.averaged(model, 4).save(tmp_path / "averaged.keras")
    loaded = keras.models.load_model(tmp_path / "averaged.keras")
    assert_close(loaded(x), model.predict(x, verbose=0))


def test_without_noise_it_is_one_pass():
    model = make_model(rho=False)
    assert_close(kcr.averaged(model, 4)(X), model(X))


def test_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inputs = keras.Input((3,))
        # float16 has no number between 2048 and 2050.
        x = keras.layers.Rescaling(1.0, -2048.0, dtype="float32")(inputs)
        x = kcr.layers.GaussianNoiseScale(0.0)(x)
        averaged = kcr.averaged(kcr.CrossRegModel(inputs, x), 2)
    finally:
        keras.config.set_dtype_policy(before)
    outputs = averaged(np.full((2, 3), 2049.0, "float32"))
    assert keras.backend.standardize_dtype(outputs.dtype) == "float16"
    assert_close(outputs, np.ones((2, 3)))


def test_config_round_trip():
    averaged = kcr.averaged(several(loss=LOSSES)[0], 7)
    assert averaged.get_config()["num_samples"] == 7
    again = type(averaged).from_config(averaged.get_config())
    assert again.get_config() == averaged.get_config()


def test_errors():
    model = make_model()
    with pytest.raises(ValueError, match="Received: num_samples=0$"):
        kcr.averaged(model, 0)
    plain = make_model(rho=False, cls=keras.Model)
    with pytest.raises(ValueError, match="`CrossRegModel`.* Received: model="):
        kcr.averaged(plain, 4)
    with pytest.raises(ValueError, match="fitted, called or loaded"):
        kcr.averaged(Configured(), 4)
