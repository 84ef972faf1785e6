"""`averaged(model, K, noise="fixed")`: noise that is drawn ahead."""

import re

import keras
import numpy as np
import pytest
from helpers import assert_same
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from helpers import random_states
from helpers import values
from test_averaged import LOSSES
from test_averaged import arrays
from test_averaged import assert_close
from test_averaged import built
from test_averaged import several

import keras_crossreg as kcr

L = keras.layers
X, _ = make_data(9, seed=2)
LAYERS = {
    "sigma": lambda: kcr.layers.GaussianNoiseScale(0.5),
    "dropout": lambda: kcr.layers.LearnedDropout(0.2),
    "gaussian dropout": lambda: kcr.layers.LearnedGaussianDropout(0.2),
}


def noise_alone(layer, shape=(3,)):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    return kcr.CrossRegModel(inputs, layer(inputs))


@pytest.mark.parametrize("kind", ["functional", "subclassed", "wrapped"])
def test_a_row_depends_on_itself_alone(kind):
    averaged = kcr.averaged(built(kind), 5, noise="fixed")
    whole = arrays(averaged(X))
    assert_close(averaged(X[3:5]), whole[3:5])
    assert_close(averaged(X[::-1]), whole[::-1])
    assert_close(averaged.predict(X, batch_size=2, verbose=0), whole)
    equal = arrays(averaged(np.repeat(X[:1], 6, 0)))
    assert_close(equal, np.repeat(whole[:1], 6, 0))
    # There is noise in it.
    plain = built(kind)(X, training=False)
    assert np.abs(whole - arrays(plain)).max() > 1e-3


@pytest.mark.parametrize("layer", LAYERS)
def test_the_noise_of_a_row_is_that_of_k_samples(layer):
    """Over many elements of one row: mean 1, variance .25 / K.

    Of 40,000 elements the relative standard error of the deviation is .5 %
    (we allow 6, and of 20 draws of Gaussian form), that of the mean .0006.
    """
    averaged = kcr.averaged(
        noise_alone(LAYERS[layer](), (40_000,)), 16, noise="fixed"
    )
    y = arrays(averaged(np.ones((2, 40_000), "float32")))
    np.testing.assert_array_equal(y[0], y[1])
    assert y[0].std() == pytest.approx(0.125, rel=0.03)
    assert y[0].mean() == pytest.approx(1.0, abs=0.0038)


def test_all_passes_have_samples_of_their_own():
    model = noise_alone(kcr.layers.GaussianNoiseScale(1.0), (20_000,))
    zeros = np.zeros((1, 20_000), "float32")
    # Three passes; were two of them equal, the deviation would be .27.
    y = arrays(kcr.averaged(model, 21, noise="fixed")(zeros))
    assert y.std() == pytest.approx(21**-0.5, rel=0.04)


def test_two_layers_have_noise_of_their_own():
    inputs = keras.Input((20_000,))
    layers = [kcr.layers.GaussianNoiseScale(1.0, seed=1) for _ in range(2)]
    outputs = [layer(inputs) for layer in layers]
    averaged = kcr.averaged(kcr.CrossRegModel(inputs, outputs), 1, "fixed")
    first, second = arrays(averaged(np.zeros((1, 20_000), "float32")))
    assert abs(np.corrcoef(first[0], second[0])[0, 1]) < 0.05


def test_it_repeats_and_is_saved(tmp_path):
    model = compile_model(make_model(), eval_num_samples=5)
    averaged = kcr.averaged(model, 5, noise="fixed")
    expected = arrays(averaged(X))
    assert_close(kcr.averaged(model, 5, noise="fixed")(X), expected)
    averaged.save(tmp_path / "averaged.keras")
    loaded = keras.models.load_model(tmp_path / "averaged.keras")
    assert_close(loaded(X), expected)
    # Theta and rho go on; the noise does not.
    fit(model)
    assert np.abs(arrays(averaged(X)) - expected).max() > 1e-4
    fixed = averaged.get_config()
    assert (fixed["noise"], fixed["seed"]) == ("fixed", averaged.seed)


def test_another_seed_has_other_noise():
    draws = [
        arrays(
            kcr.averaged(
                noise_alone(kcr.layers.GaussianNoiseScale(1.0, seed=seed)),
                4,
                noise="fixed",
            )(X)
        )
        for seed in (1, 2)
    ]
    assert np.abs(draws[0] - draws[1]).max() > 0.1


def test_nothing_moves():
    model = compile_model(make_model())
    before = values(random_states(model) + model.weights)
    kcr.averaged(model, 12, noise="fixed")(X)
    assert_same(before, values(random_states(model) + model.weights))


def test_several_inputs_and_outputs_in_the_space_of_the_loss():
    model, x = several(loss=LOSSES)
    averaged = arrays(kcr.averaged(model, 400, noise="fixed")(x))
    many = arrays(kcr.averaged(model, 400)(x))
    # Of 400 samples, and noise of 1 through weights of about 1.
    for name, y in averaged.items():
        np.testing.assert_allclose(y, many[name], atol=0.5)


@pytest.mark.slow
def test_images():
    inputs = keras.Input((6, 6, 1))
    outputs = kcr.layers.LearnedAugmentation()(inputs)
    model = kcr.CrossRegModel(inputs, outputs)
    x = np.random.default_rng(0).random((3, 6, 6, 1)).astype("float32")
    averaged = kcr.averaged(model, 6, noise="fixed")
    assert_close(averaged(x[1:]), arrays(averaged(x))[1:])
    np.testing.assert_allclose(
        kcr.averaged(model, 200, noise="fixed")(x),
        kcr.averaged(model, 200)(x),
        atol=0.15,
    )


def test_rows_that_meet():
    """One sample at a time, with the same noise in every row."""
    a, b = keras.Input((3,)), keras.Input((3,))
    noisy = kcr.layers.GaussianNoiseScale(0.5)(a)
    model = kcr.CrossRegModel(
        [a, b], keras.ops.matmul(noisy, keras.ops.transpose(b))
    )
    with pytest.warns(UserWarning, match="drawn one at a time"):
        averaged = kcr.averaged(model, 3, noise="fixed")
    whole = arrays(averaged([X, X]))
    assert whole.shape == (9, 9)
    assert_close(averaged([X[:4], X[:4]]), whole[:4, :4])


def test_open_sizes_that_noise_does_not_have():
    inputs = keras.Input((None, 3))
    layer = kcr.layers.LearnedDropout(0.3, noise_shape=(None, 1, None))
    averaged = kcr.averaged(
        kcr.CrossRegModel(inputs, layer(inputs)), 4, noise="fixed"
    )
    x = np.ones((2, 7, 3), "float32")
    assert_close(averaged(x[:, :5]), arrays(averaged(x))[:, :5])


class Keras(kcr.layers.RhoLayer):
    """Draws with `keras.random`, from a generator of ours or Keras's."""

    def __init__(self, seed_generator, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = seed_generator

    def build(self, input_shape):
        self.rho = self.add_rho("width", start=1.0)

    def call(self, inputs, training=False, sampling=None):
        if not sampling:
            return inputs
        return inputs + keras.random.normal(
            keras.ops.shape(inputs), seed=self.seed_generator
        )


class Merged(kcr.layers.RhoLayer):
    """Draws for each step, as for an example; or once for the batch."""

    def __init__(self, once, **kwargs):
        super().__init__(**kwargs)
        self.once = once
        self.seed_generator = kcr.random.SeedGenerator(1)

    def build(self, input_shape):
        self.rho = self.add_rho("width", start=1.0)

    def call(self, inputs, training=False, sampling=None):
        if not sampling:
            return inputs
        shape = keras.ops.shape(inputs)
        if self.once:
            return inputs + kcr.random.uniform((3,), self.seed_generator)
        flat = keras.ops.reshape(inputs, (-1, 3))
        noise = kcr.random.uniform(keras.ops.shape(flat), self.seed_generator)
        return keras.ops.reshape(flat + noise, shape)


REFUSED = {
    "open steps": (
        lambda: kcr.layers.GaussianNoiseScale(name="noise"),
        (None, 3),
        r"shape that is known.*Received: layer=noise with .*\(None, None, 3\)$",
    ),
    "a Keras draw": (
        lambda: Keras(kcr.random.SeedGenerator(1), name="noise"),
        (3,),
        "`kcr.random.uniform` and .*Received: layer=noise$",
    ),
    "a Keras generator": (
        lambda: Keras(keras.random.SeedGenerator(1), name="noise"),
        (3,),
        "`kcr.random.uniform` and .*Received: layer=noise$",
    ),
    "the global generator": (
        lambda: Keras(None, name="noise"),
        (3,),
        "`kcr.random.uniform` and .*differ from call to call$",
    ),
    "merged axes": (
        lambda: Merged(False, name="noise"),
        (4, 3),
        "must be the first one.*Received: layer=noise with ",
    ),
    "one draw for the batch": (
        lambda: Merged(True, name="noise"),
        (4, 3),
        r"must be the first one.*Received: layer=noise with .*\(3,\)$",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_fixed_is_refused_by_name(case):
    if case == "open steps" and keras.backend.backend() == "torch":
        pytest.skip("no shape is open in a call there")
    layer, shape, match = REFUSED[case]
    inputs = keras.Input(shape)
    model = kcr.CrossRegModel(inputs, L.Dense(1)(layer()(L.Dense(3)(inputs))))
    with pytest.raises(ValueError) as error:
        averaged = kcr.averaged(model, 4, noise="fixed")
        averaged(np.ones((2, *[n or 5 for n in shape]), "float32"))
    # JAX adds notes of its own.
    assert re.search(match, str(error.value).split("\n---")[0], re.DOTALL)
    # Only the noise that is fixed asks for it.
    kcr.averaged(model, 4)(np.ones((2, *[n or 5 for n in shape]), "float32"))


def test_a_subclassed_model_is_tried_too():
    class Bad(kcr.CrossRegModel):
        def __init__(self):
            super().__init__()
            self.noise = Keras(kcr.random.SeedGenerator(1), name="noise")

        def call(self, inputs):
            return self.noise(inputs)

    model = Bad()
    model(X)
    with pytest.raises(ValueError, match="Received: layer=.*noise$"):
        kcr.averaged(model, 4, noise="fixed")


@pytest.mark.parametrize("noise", ["none", None, 3, ["fixed"]])
def test_unknown_noise(noise):
    with pytest.raises(ValueError, match="`noise` must be.*Received: noise="):
        kcr.averaged(make_model(), 4, noise=noise)
