"""Noise in models that were made without."""

import warnings

import keras
import numpy as np
import pytest
from helpers import NEEDS_TENSORFLOW
from helpers import assert_same
from helpers import compile_model
from helpers import fit
from helpers import gradients
from helpers import make_data
from helpers import make_model
from helpers import values
from keras import layers
from keras import ops
from keras import tree

import keras_crossreg as kcr
from keras_crossreg._keras import all_layers
from keras_crossreg.layers import GaussianNoiseScale


def noise_layers(model):
    """Every noise layer at every depth, by name."""
    return {
        layer.name: layer
        for layer in all_layers(model)
        if isinstance(layer, GaussianNoiseScale)
    }


def names(model):
    return sorted(noise_layers(model))


def randomize(model, seed=0):
    """Weights, gains and statistics that are all different."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if "seed" in variable.name or kcr.is_rho(variable):
            continue
        noise = 0.3 * rng.normal(size=variable.shape)
        start = ops.convert_to_numpy(variable.value).astype("float32")
        variable.assign(
            np.abs(start + noise) if "var" in variable.name else start + noise
        )
    return model


def silence(model):
    model.set_rho({path: 0.0 for path in model.get_rho()})


def arrays(structure):
    return tree.map_structure(ops.convert_to_numpy, structure)


def call(model, x):
    """The prediction without noise."""
    return arrays(model(x))


def sample(model, x):
    """One sampled prediction."""
    return arrays(model(x, training=False, sampling=True))


# Models of every kind.


def normalized():
    x = inputs = keras.Input((3,), name="features")
    x = layers.Dense(4, name="one")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.Dense(4, activation="tanh", name="two")(x)
    return keras.Model(inputs, layers.Dense(2, "softmax", name="out")(x))


def plain():
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, activation="relu", name="one"),
            layers.Dense(5, name="two"),
            layers.LeakyReLU(name="leaky"),
            layers.Dense(2, activation="softmax", name="out"),
        ],
        name="plain",
    )


def images():
    x = inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(3, 3, activation=layers.LeakyReLU(0.2), name="conv")(x)
    x = layers.GroupNormalization(3, name="group")(x)
    x = ops.gelu(x)
    x = layers.DepthwiseConv2D(2, name="depth")(x)
    x = layers.LayerNormalization(axis=[1, 3], name="ln")(x)
    x = layers.SeparableConv2D(3, 2, activation="silu", name="sep")(x)
    x = layers.RMSNormalization(name="rms")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.UnitNormalization(name="unit")(x)
    x = layers.PReLU(name="prelu")(layers.Dense(4)(x))
    return keras.Model(inputs, layers.Dense(2)(x))


def nested():
    block = keras.Sequential(
        [
            layers.Dense(4),
            layers.BatchNormalization(name="inner"),
            layers.Activation("relu"),
        ],
        name="block",
    )
    z = inside = keras.Input((4,))
    z = layers.Add()([z, layers.Dense(4, activation="relu", name="deep")(z)])
    graph = keras.Model(inside, z, name="graph")
    inputs = keras.Input((3,))
    x = graph(graph(block(inputs)))
    head = keras.Sequential([layers.Dense(2, "sigmoid", name="out")])
    return keras.Model(inputs, head(x), name="outer")


def shared():
    relu = layers.ReLU(name="relu")
    dense = layers.Dense(3, activation="tanh", name="dense")
    inputs = keras.Input((3,))
    x = relu(layers.Dense(3, name="first")(inputs))
    x = relu(layers.Dense(3, name="second")(dense(x)))
    return keras.Model(inputs, layers.Dense(2)(dense(x)))


def several():
    inputs = {n: keras.Input((s,), name=n) for n, s in (("a", 3), ("b", 2))}
    x = layers.Concatenate()([inputs["a"], inputs["b"]])
    x = layers.Dense(4, activation="relu", name="hidden")(x)
    y = layers.Dense(1, name="y")(x)
    z = layers.Dense(2, activation="softmax", name="z")(x)
    return keras.Model(inputs, {"y": y, "z": z})


def text():
    tokens = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 4, mask_zero=True)(tokens)
    x = layers.LayerNormalization(name="ln")(x)
    y = layers.MultiHeadAttention(2, 2, name="attention")(x, x)
    x = layers.LayerNormalization(scale=False, name="ln_2")(x + y)
    x = layers.Bidirectional(layers.LSTM(3))(x)
    x = layers.Dense(4, activation="gelu", name="mlp")(x)
    return keras.Model(tokens, layers.Dense(2)(x))


def python():
    inputs = keras.Input((3,))
    x = layers.Lambda(lambda v: v * 2)(inputs)
    x = layers.Activation(lambda v: ops.square(v), name="square")(x)
    x = layers.Dense(4, name="dense")(x)
    x = layers.Dropout(0.5)(layers.ELU(name="elu")(x))
    return keras.Model(inputs, layers.Softmax()(layers.Dense(2)(x)))


DENSE = np.random.default_rng(1).normal(size=(4, 3)).astype("float32")
IMAGES = np.random.default_rng(1).normal(size=(4, 6, 6, 2)).astype("float32")
TOKENS = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 1, 2]], "int32")
# Builder, inputs, and the noise there should be.
KINDS = {
    "normalized": (normalized, DENSE, ["bn_noise", "two_noise"]),
    "plain": (plain, DENSE, ["leaky_noise", "one_noise"]),
    "images": (
        images,
        IMAGES,
        [
            "conv_noise",
            "group_noise",
            "ln_noise",
            "rms_noise",
            "unit_noise",
        ],
    ),
    "nested": (nested, DENSE, ["deep_noise", "inner_noise"]),
    "shared": (shared, DENSE, ["dense_noise", "relu_noise", "relu_noise_1"]),
    "several": (several, {"a": DENSE, "b": DENSE[:, :2]}, ["hidden_noise"]),
    "text": (text, TOKENS, ["ln_2_noise", "ln_noise", "mlp_noise"]),
    "python": (python, DENSE, ["elu_noise", "square_noise"]),
}


@pytest.fixture(params=KINDS)
def kind(request):
    build, x, expected = KINDS[request.param]
    keras.utils.set_random_seed(0)
    return randomize(build()), x, expected


def test_any_model(kind):
    model, x, expected = kind
    before = values(model.weights)
    noisy = kcr.add_noise(model, seed=1)
    assert isinstance(noisy, kcr.CrossRegModel)
    assert noisy.name == model.name
    assert names(noisy) == expected
    assert len(noisy.rho_variables) == len(expected)

    wanted = call(model, x)
    tree.map_structure(np.testing.assert_array_equal, call(noisy, x), wanted)
    differ = tree.map_structure(
        lambda a, b: np.abs(a - b).max() > 1e-3, sample(noisy, x), wanted
    )
    assert all(tree.flatten(differ))
    silence(noisy)
    tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        sample(noisy, x),
        wanted,
    )

    # The model is what it was, and shares no weight with the clone.
    assert_same(values(model.weights), before)
    tree.map_structure(np.testing.assert_array_equal, call(model, x), wanted)
    ours = {id(v) for v in noisy.variables}
    assert not ours & {id(v) for v in model.variables}


# Keras does not load lambdas.
@pytest.mark.parametrize(
    "kind", [k for k in KINDS if k != "python"], indirect=True
)
def test_saved_and_loaded(kind, tmp_path):
    model, x, expected = kind
    noisy = kcr.add_noise(model, axis=-1)
    noisy.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert names(copy) == expected
    tree.map_structure(
        np.testing.assert_array_equal,
        sample(copy, x),
        sample(noisy, x),
    )


# Units.


def test_noise_behind_a_gain_is_noise_before_it():
    # The model of the paper, with the same numbers by hand.
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3, 2))
    norm = layers.BatchNormalization()
    model = randomize(keras.Model(inputs, norm(inputs)))
    noisy = kcr.add_noise(model, initial_scale=0.7, seed=5)
    x = layers.BatchNormalization(center=False, scale=False)(inputs)
    x = GaussianNoiseScale(0.7, seed=5)(x)
    gain = layers.EinsumDense("abc,c->abc", (3, 2), bias_axes="c")
    by_hand = keras.Model(inputs, gain(x))
    gain.set_weights(norm.get_weights()[:2])

    rng = np.random.default_rng(0)
    data = rng.normal(size=(6, 3, 2)).astype("float32")
    weights = ops.convert_to_tensor(rng.normal(size=(6, 3, 2)), "float32")
    found = []
    for m in (noisy, by_hand):
        y = arrays(m(data, training=True))
        # Of a second pass, whose noise is the same in both models too.
        of_theta = gradients(
            lambda m=m: ops.multiply(weights, m(data, training=True) ** 2),
            m.trainable_variables,
        )
        found.append([y, *of_theta])
    assert len(found[0]) == 3
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "axes"),
    [
        (layers.BatchNormalization(axis=1), (1,)),
        (layers.LayerNormalization(axis=[1, 2]), (1, 2)),
        (layers.GroupNormalization(2, axis=1), (1,)),
        (layers.RMSNormalization(), (2,)),
    ],
)
def test_noise_follows_each_gain(norm, axes):
    inputs = keras.Input((4, 6))
    noisy = kcr.add_noise(
        keras.Model(inputs, norm(inputs)), initial_scale=0.5, seed=0
    )
    copy = noisy.layers[1]
    shape = [4 if 1 in axes else 1, 6 if 2 in axes else 1]
    gains = np.linspace(-3, 3, np.prod(shape)).reshape(shape)
    gains[gains == 0] = 1
    (copy.scale if "rms" in copy.name else copy.gamma).assign(
        gains.reshape([-1] if len(axes) == 1 else shape)
    )
    x = np.random.default_rng(0).normal(size=(5000, 4, 6)).astype("float32")
    added = sample(noisy, x) - call(noisy, x)
    # 6 standard errors of each of 24 deviations, 1 / sqrt(2 n): fails with
    # probability 5e-8, at this seed never.
    np.testing.assert_allclose(
        added.std(axis=0),
        np.broadcast_to(0.5 * np.abs(gains), (4, 6)),
        rtol=6 / np.sqrt(2 * 5000),
    )


@pytest.mark.parametrize(
    ("relative", "expected"),
    [
        (None, {"bn_noise": None, "two_noise": True}),
        (True, {"bn_noise": True, "two_noise": True}),
        (False, {"bn_noise": False, "two_noise": False}),
    ],
)
def test_units(relative, expected):
    for name, layer in noise_layers(
        kcr.add_noise(normalized(), relative=relative)
    ).items():
        by_gain = type(layer) is not GaussianNoiseScale
        assert (None if by_gain else layer.relative) is expected[name]


def test_units_behind_other_normalizations():
    inputs = keras.Input((4,))
    x = layers.BatchNormalization(scale=False, name="bn")(inputs)
    x = layers.UnitNormalization(name="unit")(layers.Dense(4)(x))
    noise = noise_layers(kcr.add_noise(keras.Model(inputs, x)))
    found = {n: (type(v), v.relative) for n, v in noise.items()}
    assert found == {
        "bn_noise": (GaussianNoiseScale, False),
        "unit_noise": (GaussianNoiseScale, True),
    }


def test_arguments():
    noisy = kcr.add_noise(normalized(), axis=-1, initial_scale=0.2, seed=7)
    noise = noise_layers(noisy)
    for layer in noise.values():
        assert layer.scale.shape == (4,)
        np.testing.assert_allclose(layer.scale, 0.2, rtol=1e-5)
    assert [v.seed for v in noise.values()] == [7, 8]
    again = kcr.add_noise(normalized(), axis=-1, initial_scale=0.2, seed=7)
    again.set_weights(noisy.get_weights())
    np.testing.assert_array_equal(sample(noisy, DENSE), sample(again, DENSE))


def test_summary_says_the_unit():
    lines = []
    model = kcr.add_noise(normalized())
    model.rho_summary(print_fn=lines.append, line_length=100)
    assert "noise sigma before gamma" in lines[0]
    assert "noise sigma / input std" in lines[0]


# Places.


def is_wide(layer):
    return getattr(layer, "units", 0) == 4


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (layers.ReLU, ["relu_noise"]),
        ((layers.ReLU, layers.BatchNormalization), ["bn_noise", "relu_noise"]),
        ([layers.ReLU], ["relu_noise"]),
        ("^(one|relu)$", ["one_noise", "relu_noise"]),
        ("n", ["bn_noise", "one_noise"]),
        (is_wide, ["one_noise", "two_noise"]),
    ],
)
def test_after(after, expected):
    model = randomize(normalized())
    noisy = kcr.add_noise(model, after=after)
    assert names(noisy) == expected
    # Behind the whole layer, its activation included.
    assert {v.name for v in model.layers} <= {v.name for v in noisy.layers}
    assert len(noisy.layers) == len(model.layers) + len(expected)
    silence(noisy)
    np.testing.assert_allclose(
        sample(noisy, DENSE), call(model, DENSE), rtol=1e-5, atol=1e-6
    )


def test_after_reaches_nested_models():
    noisy = kcr.add_noise(nested(), after="deep|block")
    assert names(noisy) == ["block_noise", "deep_noise"]


def test_after_a_layer_with_several_outputs():
    inputs = keras.Input((4, 3))
    y, state, _ = layers.LSTM(
        2, return_sequences=True, return_state=True, name="lstm"
    )(inputs)
    model = keras.Model(inputs, [layers.Dense(1)(y), state])
    noisy = kcr.add_noise(model, after=layers.LSTM, relative=False)
    assert names(noisy) == ["lstm_noise", "lstm_noise_1"]


def test_an_activation_that_is_split_off_keeps_its_layer():
    model = plain()
    noisy = kcr.add_noise(model)
    assert [v.name for v in noisy.layers][1:5] == [
        "one",
        "one_noise",
        "one_activation",
        "two",
    ]
    assert noisy.get_layer("one").activation is keras.activations.linear
    assert (
        noisy.get_layer("one_activation").activation is keras.activations.relu
    )
    assert model.get_layer("one").activation is keras.activations.relu


def test_names_do_not_clash():
    inputs = keras.Input((3,))
    x = layers.Dense(4, activation="relu", name="one")(inputs)
    x = layers.Dense(4, name="one_noise")(x)
    model = keras.Model(inputs, layers.Dense(4, name="one_activation")(x))
    noisy = kcr.add_noise(model)
    assert names(noisy) == ["one_noise_1"]
    assert noisy.get_layer("one_activation_1")


def test_a_shared_layer_has_one_noise_and_draws_it_anew():
    noisy = kcr.add_noise(shared(), seed=0)
    draws = noisy.get_layer("dense_noise").seed_generator.state
    before = draws.numpy()
    sample(noisy, DENSE)
    # Each draw adds one to the second number of a generator's state.
    np.testing.assert_array_equal(draws.numpy() - before, [0, 2])


def test_noise_that_is_there_is_kept():
    model = make_model()
    with pytest.raises(ValueError, match="no place for noise.*after=None$"):
        kcr.add_noise(model)
    model = kcr.add_noise(model, after="dense", relative=True, initial_scale=0)
    assert len(model.get_rho()) == 2
    assert model.get_rho()["noise/scale"] == pytest.approx(0.5)
    once = kcr.add_noise(normalized())
    with pytest.raises(ValueError, match="no place for noise"):
        kcr.add_noise(once)


def test_a_residual_branch_with_noise_is_enough():
    inputs = keras.Input((4,))
    x = layers.Dense(4, activation="relu", name="stem")(inputs)
    y = layers.BatchNormalization(name="bn")(layers.Dense(4)(x))
    x = layers.ReLU(name="sum")(layers.Add()([x, y]))
    x = layers.ReLU(name="alone")(layers.Dense(4)(x))
    model = keras.Model(inputs, layers.Dense(1)(x))
    assert names(kcr.add_noise(model)) == [
        "alone_noise",
        "bn_noise",
        "stem_noise",
    ]


# What else is kept.


def test_weights_by_name_and_from_a_file(tmp_path):
    model = randomize(normalized())
    model.save_weights(tmp_path / "model.weights.h5")
    noisy = kcr.add_noise(normalized())
    with warnings.catch_warnings():
        # That the file has no noise.
        warnings.simplefilter("ignore")
        noisy.load_weights(tmp_path / "model.weights.h5", skip_mismatch=True)
    for layer in model.layers:
        assert_same(
            noisy.get_layer(layer.name).get_weights(), layer.get_weights()
        )


@pytest.mark.parametrize("whole", [True, False])
def test_trainable_flags(whole):
    model = nested()
    model.get_layer("graph").get_layer("deep").trainable = False
    model.get_layer("block").trainable = False
    model.get_layer("block").layers[0].trainable = True
    model.trainable = model.trainable and whole
    noisy = kcr.add_noise(model)
    for name in ("graph", "block"):
        old, new = model.get_layer(name), noisy.get_layer(name)
        assert new.trainable == old.trainable
        for layer in old.layers:
            assert new.get_layer(layer.name).trainable == layer.trainable
    trained = [v.path.split("/")[-2:] for v in model.trainable_variables]
    assert [v.path.split("/")[-2:] for v in noisy.theta_variables] == trained
    assert noisy.trainable is whole


@pytest.mark.parametrize("policy", ["mixed_float16", "float64"])
def test_dtype_policies(policy):
    x = inputs = keras.Input((3,))
    for _ in range(2):
        x = layers.Dense(4, activation="relu", dtype=policy)(x)
        x = layers.BatchNormalization(dtype=policy)(x)
    model = keras.Model(inputs, layers.Dense(2, dtype="float32")(x))
    noisy = kcr.add_noise(model)
    for layer in noisy.layers[1:-1]:
        assert layer.dtype_policy.name == policy
    assert all(v.dtype == "float32" for v in noisy.rho_variables)
    silence(noisy)
    np.testing.assert_allclose(
        sample(noisy, DENSE), call(model, DENSE), atol=1e-5
    )


def test_a_mask_goes_through():
    tokens = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 4, mask_zero=True)(tokens)
    x = layers.LayerNormalization()(x)
    model = randomize(keras.Model(tokens, layers.GlobalAveragePooling1D()(x)))
    noisy = kcr.add_noise(model)
    silence(noisy)
    # The average is over the tokens alone.
    np.testing.assert_allclose(
        sample(noisy, TOKENS), call(model, TOKENS), rtol=1e-5, atol=1e-6
    )


@NEEDS_TENSORFLOW
def test_adapted_layers_keep_what_they_saw():
    lookup = layers.StringLookup(output_mode="one_hot")
    lookup.adapt(["cat", "dog", "cow"])
    scale = layers.Normalization()
    scale.adapt(np.arange(8.0).reshape(4, 2))
    words = keras.Input((1,), dtype="string", name="words")
    numbers = keras.Input((2,), name="numbers")
    x = layers.Concatenate()([lookup(words), scale(numbers)])
    x = layers.Dense(3, activation="relu")(x)
    model = keras.Model([words, numbers], layers.Dense(1)(x))
    noisy = kcr.add_noise(model)
    data = [np.array([["dog"], ["cow"]]), np.ones((2, 2))]
    np.testing.assert_array_equal(call(noisy, data), call(model, data))


def test_a_compiled_model_with_a_loss_of_ones_own():
    model = normalized()
    model.compile("adam", loss=lambda y, p: ops.sum(p))
    assert not kcr.add_noise(model).compiled


def test_optional_inputs():
    a = keras.Input((3,), name="a")
    b = keras.Input((3,), name="b", optional=True)

    class Sum(layers.Layer):
        def call(self, x, y=None):
            return x if y is None else x + y

        def compute_output_shape(self, x_shape, y_shape=None):
            return x_shape

    x = layers.Dense(4, activation="relu")(Sum()(a, b))
    noisy = kcr.add_noise(keras.Model([a, b], layers.Dense(1)(x)))
    assert noisy([DENSE, None]).shape == (4, 1)


# In training.


def test_trains():
    keras.utils.set_random_seed(0)
    model = normalized()
    theta = values(model.weights)
    noisy = compile_model(kcr.add_noise(model), run_eagerly=False)
    before = noisy.get_rho()
    fit(noisy, reg_data=make_data(40, seed=1))
    after = noisy.get_rho()
    assert all(before[path] != after[path] for path in before)
    assert_same(values(model.weights), theta)


def test_is_refitted():
    keras.utils.set_random_seed(0)
    noisy = compile_model(kcr.add_noise(normalized()))
    noisy.set_rho({"bn_noise/scale": 0.7})
    final = kcr.refit(noisy, *make_data(), verbose=0)
    assert names(final) == names(noisy)
    assert final.get_rho() == noisy.get_rho()


def test_a_wrapped_or_cross_reg_model_too():
    for model in (kcr.wrap(normalized()), kcr.wrap(plain())):
        assert len(names(kcr.add_noise(model))) == 2


# Errors.


class Called(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


class Overridden(keras.Model):
    """A functional model that does more than its graph."""

    def call(self, x, training=None, mask=None):
        return super().call(x) + 1


def overridden():
    inputs = keras.Input((3,))
    return Overridden(inputs, layers.Dense(2)(inputs))


@pytest.mark.parametrize(
    "build",
    [
        Called,
        overridden,
        lambda: kcr.wrap(Called()),
        lambda: keras.Sequential([layers.Dense(2)]),
    ],
)
def test_refuses_what_it_cannot_rewrite(build):
    with pytest.raises(
        ValueError, match="rewrites functional.*GaussianNoiseScale.*Received: "
    ):
        kcr.add_noise(build())


@pytest.mark.parametrize("model", [3, layers.Dense(2)])
def test_refuses_what_is_no_model(model):
    with pytest.raises(ValueError, match="expects a `keras.Model`. Received: "):
        kcr.add_noise(model)


@pytest.mark.parametrize(
    "after", ["conv", layers.Conv2D, lambda layer: False, "^features$"]
)
def test_after_matches_nothing(after):
    match = r"matches no layer.*one \(Dense\), bn .*Received: after="
    with pytest.raises(ValueError, match=match):
        kcr.add_noise(normalized(), after=after)


@pytest.mark.parametrize("after", ["", layers.Layer, lambda layer: True])
def test_after_matches_everything(after):
    match = r"matches every layer.*out \(Dense\).*Received: after="
    with pytest.raises(ValueError, match=match):
        kcr.add_noise(normalized(), after=after)


def test_after_matches_integers_alone():
    inputs = keras.Input((3,))
    x = layers.Discretization([0.0], name="bins")(inputs)
    x = layers.CategoryEncoding(2, "multi_hot")(x)
    model = keras.Model(inputs, layers.Dense(1)(x))
    with pytest.raises(ValueError, match="floating point.*after=bins$"):
        kcr.add_noise(model, after="bins")


@pytest.mark.parametrize(
    ("after", "match"),
    [
        (3, "Expected `after`.*Received: after=3$"),
        ((), r"Expected `after`.*Received: after=\(\)$"),
        (["one"], r"Expected `after`.*Received: after=\['one'\]$"),
        ("(", r"no regular expression.*Received: after=\($"),
    ],
)
def test_after_is_of_another_kind(after, match):
    with pytest.raises(ValueError, match=match):
        kcr.add_noise(normalized(), after=after)


def test_no_place_for_noise():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2, "softmax", name="o")(inputs))
    match = r"no place for noise.*: o \(Dense\). Received: after=None$"
    with pytest.raises(ValueError, match=match):
        kcr.add_noise(model)


def test_a_long_model_is_not_listed_whole():
    x = inputs = keras.Input((3,))
    for _ in range(33):
        x = layers.Dense(3)(x)
    with pytest.raises(ValueError, match="and 3 more. Received: after=x"):
        kcr.add_noise(keras.Model(inputs, x), after="x")


def test_a_layer_that_cannot_be_copied():
    class Own(layers.Layer):
        def __init__(self, units):
            super().__init__()
            self.dense = layers.Dense(units, activation=lambda x: x)

        def call(self, x):
            return self.dense(x)

        def get_config(self):
            raise NotImplementedError("no config")

    inputs = keras.Input((3,))
    own = Own(4)
    x = layers.ReLU()(own(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    match = f"cannot be copied: no config.*Received: layer={own.name} of type"
    with pytest.raises(ValueError, match=match):
        kcr.add_noise(model)


def test_a_wrong_initial_scale():
    with pytest.raises(ValueError, match="Received: initial_scale=-1$"):
        kcr.add_noise(normalized(), initial_scale=-1)


# keras.applications.


def check_application(model, num_noise, seed=0):
    """Weights that matter, silence, and places."""
    rng = np.random.default_rng(seed)
    for v in model.weights:
        # Kept small: behind a hundred layers, the softmax would saturate.
        if v.name in ("gamma", "beta"):
            v.assign(ops.convert_to_numpy(v) + 0.1 * rng.normal(size=v.shape))
    x = rng.uniform(0, 255, (2, *model.input_shape[1:])).astype("float32")
    wanted = call(model, x)
    noisy = kcr.add_noise(model)
    assert len(noisy.rho_variables) == num_noise
    assert np.abs(sample(noisy, x) - wanted).max() > 1e-3
    silence(noisy)
    np.testing.assert_allclose(sample(noisy, x), wanted, atol=1e-5, rtol=1e-5)


def test_mobile_net():
    keras.utils.set_random_seed(0)
    check_application(
        keras.applications.MobileNetV2(
            (32, 32, 3), alpha=0.35, weights=None, classes=5
        ),
        52,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_noise"),
    [
        ("VGG16", 15),
        ("ResNet50V2", 49),
        ("MobileNetV2", 52),
        ("EfficientNetV2B0", 91),
        ("ConvNeXtTiny", 23),
        ("DenseNet121", 121),
    ],
)
def test_applications(name, num_noise):
    keras.utils.set_random_seed(0)
    build = getattr(keras.applications, name)
    model = build(weights=None, input_shape=(32, 32, 3), classes=5)
    check_application(model, num_noise)


@pytest.mark.slow
def test_keras_hub():
    """Backbones made of Keras's layers, and a task around one."""
    hub = pytest.importorskip("keras_hub").models
    resnet = hub.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 128],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(32, 32, 3),
    )
    bert = hub.BertBackbone(
        vocabulary_size=50,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=12,
    )
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 32, 32, 3)).astype("float32")
    text = dict(
        token_ids=rng.integers(0, 50, (2, 12)),
        segment_ids=np.zeros((2, 12), int),
        padding_mask=np.ones((2, 12), int),
    )
    classifier = hub.ImageClassifier(resnet, num_classes=3)
    for model, x, num_noise in (
        (resnet, images, 6),
        (bert, text, 1),
        (classifier, images, 6),
    ):
        noisy = kcr.add_noise(model)
        assert len(noisy.rho_variables) == num_noise
        for a, b in zip(
            tree.flatten(call(noisy, x)),
            tree.flatten(call(model, x)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, atol=1e-5)
