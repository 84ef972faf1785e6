"""`learn_regularizers` against the layers of Keras that it replaces."""

import keras
import numpy as np
import pytest
from helpers import compile_model
from keras import layers
from keras import ops

import keras_crossreg as kcr

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")
STEPS = RNG.normal(size=(16, 5, 3)).astype("float32")


def graph(inputs, *chain):
    """A functional model of layers one after the other."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input(inputs)
    for layer in chain:
        x = layer(x)
    return keras.Model(inputs, x)


def learn(model, **kwargs):
    return kcr.learn_regularizers(model, **{"verbose": 0, **kwargs})


def array(tensor):
    return ops.convert_to_numpy(tensor)


def assert_same_moments(model, learned, x, draws=150, copies=64):
    """Both draw the same noise: means and variances over many rows.

    One row is repeated, which gives `draws * copies` values of each number. We
    allow 6 standard errors of means and of second moments about the same
    center, estimated from the values themselves: with a hundred numbers a
    right layer fails with probability 4e-7, at these seeds never.
    """
    x = np.repeat(x[:1], copies, axis=0)
    first, second = (
        np.stack([array(m(x, training=True)) for _ in range(draws)])
        for m in (model, learned)
    )
    first, second = (
        v.reshape((draws * copies, -1)).astype("float64")
        for v in (first, second)
    )
    # Eight examples may share their numbers.
    n = draws * copies / 8
    for power in (1, 2):
        center = first.mean(axis=0) if power == 2 else 0.0
        one, other = ((v - center) ** power for v in (first, second))
        error = np.sqrt((one.var(axis=0) + other.var(axis=0)) / n)
        assert (
            np.abs(one.mean(axis=0) - other.mean(axis=0)) <= 6 * error + 1e-6
        ).all()
    assert first.var(axis=0).max() > 0


# What becomes of which layer.

NOISE = {
    "Dropout": (layers.Dropout(0.3, name="it"), (6,), "rate", 0.3),
    "noise_shape": (
        layers.Dropout(0.3, noise_shape=(None, 1, 3), name="it"),
        (5, 3),
        "rate",
        0.3,
    ),
    "fixed batch": (
        layers.Dropout(0.3, noise_shape=(64, 1, 3), name="it"),
        (5, 3),
        "rate",
        0.3,
    ),
    "1D": (layers.SpatialDropout1D(0.2, name="it"), (5, 3), "rate", 0.2),
    "2D": (
        layers.SpatialDropout2D(0.2, data_format="channels_last", name="it"),
        (3, 4, 2),
        "rate",
        0.2,
    ),
    "2D first": (
        layers.SpatialDropout2D(0.2, data_format="channels_first", name="it"),
        (2, 3, 4),
        "rate",
        0.2,
    ),
    "3D": (
        layers.SpatialDropout3D(0.2, data_format="channels_last", name="it"),
        (2, 2, 2, 2),
        "rate",
        0.2,
    ),
    "3D first": (
        layers.SpatialDropout3D(0.2, data_format="channels_first", name="it"),
        (2, 2, 2, 2),
        "rate",
        0.2,
    ),
    "Gaussian": (layers.GaussianDropout(0.4, name="it"), (6,), "rate", 0.4),
    "noise": (layers.GaussianNoise(0.7, name="it"), (6,), "scale", 0.7),
}


@pytest.mark.parametrize("case", NOISE.values(), ids=list(NOISE))
def test_noise_is_that_of_keras(case):
    layer, shape, rho, start = case
    model = graph(shape, layer)
    learned = learn(model)
    x = RNG.normal(size=(1, *shape)).astype("float32")
    assert learned.get_rho() == {f"it/{rho}": pytest.approx(start, rel=1e-6)}
    np.testing.assert_array_equal(learned(x), model(x))
    assert_same_moments(model, learned, x)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("cls", [layers.SpatialDropout1D, None])
def test_whole_channels_are_dropped(cls, data_format):
    if cls is None:
        layer = layers.SpatialDropout2D(0.5, data_format=data_format)
        shape, last = (4, 5, 6), data_format == "channels_last"
    else:
        layer, shape, last = cls(0.5), (4, 6), True
    y = array(learn(graph(shape, layer))(np.ones((9, *shape)), training=True))
    axes = tuple(range(1, y.ndim - 1)) if last else tuple(range(2, y.ndim))
    assert np.ptp(y, axis=axes).max() == 0
    assert 0 < (y == 0).mean() < 1


# Weight regularizers.


@pytest.mark.parametrize(
    ("given", "cls", "norm"),
    [
        ("l1", kcr.regularizers.LearnedL1, lambda w: np.abs(w).sum()),
        ("l2", kcr.regularizers.LearnedL2, lambda w: np.sqrt((w**2).sum())),
        (
            keras.regularizers.L2(0.3),
            kcr.regularizers.LearnedL2,
            lambda w: np.sqrt((w**2).sum()),
        ),
    ],
)
def test_weight_regularizers(given, cls, norm):
    dense = layers.Dense(4, kernel_regularizer=given, name="it")
    model = graph((6,), dense)
    learned = learn(model)
    assert type(learned.get_layer("it")) is layers.Dense
    assert isinstance(learned.get_layer("it").kernel_regularizer, cls)
    assert isinstance(dense.kernel_regularizer, keras.regularizers.Regularizer)
    assert not isinstance(dense.kernel_regularizer, cls)
    (value,) = learned.get_rho().values()
    assert value == pytest.approx(norm(array(dense.kernel)), rel=1e-5)
    assert learned.losses == [] or float(sum(learned.losses)) == 0


def test_every_weight_with_a_regularizer():
    norm = layers.BatchNormalization(gamma_regularizer="l2", name="norm")
    conv = layers.SeparableConv1D(
        4, 2, depthwise_regularizer="l2", pointwise_regularizer="l1", name="sep"
    )
    model = graph((6, 3), conv, norm)
    learned = learn(model)
    assert {path.rsplit("/", 1)[0] for path in learned.get_rho()} == {
        "sep/depthwise_kernel",
        "sep/pointwise_kernel",
        "norm/gamma",
    }


def test_one_regularizer_object_for_two_weights():
    """The bias is zero, and stays as it is."""
    same = keras.regularizers.L2(0.1)
    dense = layers.Dense(
        4, kernel_regularizer=same, bias_regularizer=same, name="it"
    )
    learned = learn(graph((6,), dense)).get_layer("it")
    assert type(learned.bias_regularizer) is keras.regularizers.L2
    assert type(learned.kernel_regularizer) is kcr.regularizers.LearnedL2


# Random image layers.


def image_widths(layer, shape=(8, 8, 3)):
    model = graph(shape, layer)
    return learn(model).layers[1]


@pytest.mark.parametrize(
    ("layer", "width"),
    [
        (layers.RandomTranslation(0.25, 0.25), {"translation": 2.0}),
        (layers.RandomTranslation((-0.25, 0.25), -0.25), {"translation": 2.0}),
        (layers.RandomRotation(0.05), {"rotation": 18.0}),
        (
            layers.RandomShear(0.1),
            {"shear": np.degrees(np.arctan(0.1))},
        ),
        (layers.RandomShear((0.0, 0.1)), {"shear": np.degrees(np.arctan(0.1))}),
        (layers.RandomZoom(0.2), {"zoom": 0.2}),
        (layers.RandomBrightness(0.1), {"brightness": 0.1 * np.sqrt(12)}),
        (layers.RandomContrast(0.3), {"contrast": 0.3}),
        (layers.RandomContrast((0.3, 0.3)), {"contrast": 0.3}),
    ],
)
def test_widths_of_image_layers(layer, width):
    learned = image_widths(layer)
    assert isinstance(learned, kcr.layers.LearnedAugmentation)
    assert learned.widths == pytest.approx(width, rel=1e-5)


def test_other_arguments_of_image_layers():
    layer = layers.RandomTranslation(
        0.5, 0.25, fill_mode="constant", data_format="channels_first", seed=3
    )
    learned = image_widths(layer, (3, 4, 8))
    assert learned.widths == {"translation": pytest.approx(2.0)}
    assert learned.fill_mode == "constant"
    assert learned.data_format == "channels_first"
    assert learned.seed == 3


@pytest.mark.parametrize("fill_mode", ["reflect", "constant", "nearest"])
@pytest.mark.parametrize(
    "layer", [layers.RandomTranslation, layers.RandomRotation]
)
def test_images_are_warped_as_keras_does(layer, fill_mode):
    factors = (0.2, 0.2) if layer is layers.RandomTranslation else (0.04,)
    model = graph(
        (7, 7, 1),
        layer(*factors, fill_mode=fill_mode, data_format="channels_last"),
    )
    x = RNG.uniform(size=(1, 7, 7, 1)).astype("float32")
    learned = learn(model)
    # Keras's transform images unless `training=False` is said.
    np.testing.assert_array_equal(
        learned(x, training=False), model(x, training=False)
    )
    assert_same_moments(model, learned, x, draws=100, copies=200)


# What is left, and why.

IMAGE = (8, 8, 3)
LEFT = {
    "rate 0": (layers.Dropout(0.0), (6,), "strength of 0"),
    "rate 1": (layers.Dropout(1.0), (6,), "nothing passes"),
    "stddev 0": (layers.GaussianNoise(0.0), (6,), "strength of 0"),
    "one mask": (
        layers.Dropout(0.2, noise_shape=(1, 6)),
        (6,),
        "gives all examples one mask",
    ),
    "rank": (
        layers.Dropout(0.2, noise_shape=(None, 6)),
        (5, 6),
        "not of the rank",
    ),
    "alpha": (layers.AlphaDropout(0.2), (6,), "self-normalizing"),
    "activity": (layers.ActivityRegularization(0.1), (6,), "penalty on out"),
    "flip": (layers.RandomFlip(), IMAGE, "no strength to learn"),
    "hue": (layers.RandomHue(0.1), IMAGE, "no learned form of this transf"),
    "uneven": (
        layers.RandomRotation((-0.1, 0.2)),
        IMAGE,
        "draws from -0.1 to 0.2",
    ),
    "uneven shift": (
        layers.RandomTranslation((0.0, 0.2), 0.1),
        IMAGE,
        "draws from 0 to 0.2",
    ),
    "two widths": (
        layers.RandomTranslation(0.25, 0.5),
        IMAGE,
        "2 pixels down and 4 across",
    ),
    "any size": (
        layers.RandomTranslation(0.2, 0.2),
        (None, None, 3),
        "size of its images",
    ),
    "columns": (
        layers.RandomShear((0.0, 0.1), (0.0, 0.1)),
        IMAGE,
        "along the columns",
    ),
    "uneven shear": (layers.RandomShear((0.1, 0.2)), IMAGE, "from 0.1 to 0.2"),
    "zoom apart": (layers.RandomZoom(0.1, 0.1), IMAGE, "height and width apa"),
    "uneven zoom": (layers.RandomZoom((-0.1, 0.3)), IMAGE, "from -0.1 to 0.3"),
    "uneven light": (
        layers.RandomBrightness((0.0, 0.3)),
        IMAGE,
        "from 0 to 0.3",
    ),
    "uneven contrast": (
        layers.RandomContrast((0.1, 0.3)),
        IMAGE,
        "from 0.9 to 1.3",
    ),
    "nearest": (
        layers.RandomRotation(0.1, interpolation="nearest"),
        IMAGE,
        "has no gradient",
    ),
    "fill": (
        layers.RandomZoom(0.1, fill_mode="constant", fill_value=1.0),
        IMAGE,
        "fills with 1.0",
    ),
    "no width": (layers.RandomZoom(0.0), IMAGE, "strength of 0"),
    "both norms": (
        layers.Dense(2, kernel_regularizer=keras.regularizers.L1L2(0.1, 0.1)),
        (6,),
        "only one norm",
    ),
    "orthogonal": (
        layers.Dense(
            2, kernel_regularizer=keras.regularizers.OrthogonalRegularizer()
        ),
        (6,),
        "OrthogonalRegularizer has no learned form",
    ),
    "zeros": (layers.Dense(2, bias_regularizer="l2"), (6,), "a norm of 0"),
    "no strength": (
        layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.0)),
        (6,),
        "a strength of 0 regularizes nothing",
    ),
    "constraint": (
        layers.Dense(2, kernel_regularizer="l2", kernel_constraint="max_norm"),
        (6,),
        "has a constraint",
    ),
    "time": (
        layers.TimeDistributed(layers.Dropout(0.2)),
        (5, 6),
        "tells no layer",
    ),
    "gates": (
        layers.LSTM(2, dropout=0.2, implementation=1),
        (5, 6),
        "use `implementation=2`",
    ),
}


@pytest.mark.parametrize("case", LEFT.values(), ids=list(LEFT))
def test_what_is_left_and_why(case, capsys):
    layer, shape, reason = case
    model = graph(shape, layer, layers.Dropout(0.5, name="other"))
    learned = learn(model, verbose=1)
    assert list(learned.get_rho()) == ["other/rate"]
    assert type(learned.layers[1]) is type(layer)
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for word in reason.split():
        assert word in said


def test_nothing_to_learn_is_an_error():
    with pytest.raises(
        ValueError,
        match=r"nothing whose strength can be learned: no dropout, .*add_noise"
        r".*Received: model=<Functional",
    ):
        learn(graph((6,), layers.Dense(2)))
    with pytest.raises(
        ValueError, match=r"learned: it \(Dropout\): a strength of 0 .*Received"
    ):
        learn(graph((6,), layers.Dropout(0.0, name="it")))


def test_subclasses_of_layers_are_left(capsys):
    class Own(layers.Dropout):
        pass

    class OwnRotation(layers.RandomRotation):
        pass

    model = graph(
        IMAGE, Own(0.2), OwnRotation(0.1), layers.Dropout(0.5, name="other")
    )
    learned = learn(model, verbose=1)
    assert list(learned.get_rho()) == ["other/rate"]
    assert "not Keras's own" in capsys.readouterr().out


# The clone as a whole.


def full_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = layers.Dense(8, kernel_regularizer="l2", name="first")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    dropout = layers.Dropout(0.3, name="shared")
    x = dropout(layers.ReLU()(x))
    nested = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(8, activation="relu"),
            layers.GaussianNoise(0.2, name="inner"),
        ],
        name="nested",
    )
    x = dropout(nested(x))
    x = nested(x)
    outputs = layers.Dense(2, activation="softmax", name="last")(x)
    return keras.Model(inputs, outputs, name="user")


def test_the_rest_is_untouched():
    model = full_model()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(X, Y, verbose=0)
    model.get_layer("first").trainable = False
    before = model.get_weights()
    learned = learn(model)
    assert isinstance(learned, kcr.CrossRegModel)
    assert learned.name == "user"
    assert not learned.compiled
    np.testing.assert_array_equal(learned(X), model(X))
    assert [v.name for v in learned.layers] == [v.name for v in model.layers]
    assert not learned.get_layer("first").trainable
    assert learned.get_layer("norm").trainable
    assert set(learned.get_rho()) == {
        "first/kernel/l2_norm",
        "shared/rate",
        "inner/scale",
    }
    theta = [w for w in learned.weights if not kcr.is_rho(w)]
    for one, other in zip(theta, model.weights, strict=True):
        np.testing.assert_array_equal(array(one), array(other))
        assert one.name == other.name
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_dtypes_are_kept():
    learned = learn(
        graph((6,), layers.Dropout(0.3, dtype="mixed_bfloat16", name="it"))
    )
    assert learned.get_layer("it").dtype_policy.name == "mixed_bfloat16"
    dtype = learned(X, training=True).dtype
    assert keras.backend.standardize_dtype(dtype) == "bfloat16"


def test_sequential_and_a_layer_that_learns_already():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            kcr.layers.GaussianNoiseScale(0.4, name="ours"),
            layers.Dropout(0.2, name="theirs"),
            layers.Dense(2),
        ]
    )
    model.layers[0].rho.assign(1.0)
    learned = learn(model)
    rho = learned.get_rho()
    assert set(rho) == {"ours/scale", "theirs/rate"}
    assert rho["ours/scale"] == pytest.approx(np.log1p(np.e))


def check_learns_and_survives(learned, x, y, tmp_path, loss):
    """A short fit moves every rho; files, copies and `refit` keep them."""
    start = learned.get_rho()
    compile_model(
        learned,
        loss=loss,
        num_samples=4,
        rho_optimizer=keras.optimizers.Adam(0.05),
        run_eagerly=False,
    )
    fit = dict(batch_size=8, epochs=1, verbose=0)
    learned.fit(x, y, reg_data=(x[::-1] + 0.1, y), **fit)
    rho = learned.get_rho()
    moved = {k: abs(rho[k] / start[k] - 1) > 1e-4 for k in rho}
    assert rho and all(moved.values()), moved
    assert np.ptp(learned.predict_samples(x, verbose=0), axis=0).max() > 0

    path = tmp_path / "model.keras"
    learned.save(path)
    loaded = keras.saving.load_model(path)
    # Keras counts on in the names that a layer gives to those in it.
    assert list(loaded.get_rho().values()) == list(rho.values())
    np.testing.assert_allclose(loaded(x), learned(x), rtol=1e-6)
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), learned.predict(x, verbose=0), rtol=1e-5
    )
    learned.save_weights(tmp_path / "w.weights.h5")
    loaded.load_weights(tmp_path / "w.weights.h5")
    final = kcr.refit(learned, x, y, **fit)
    assert list(final.get_rho().values()) == pytest.approx(
        list(rho.values()), rel=1e-5
    )


# There are few data.
few = pytest.mark.filterwarnings(
    "ignore:[0-9]+ rho learn", "ignore:Rho took", "ignore:The examples"
)


@few
@pytest.mark.slow
def test_the_whole_way(tmp_path):
    learned = learn(full_model())
    check_learns_and_survives(
        learned, X, Y, tmp_path, "sparse_categorical_crossentropy"
    )


def test_nothing_is_left_to_learn_in_what_learns():
    for model in full_model(), graph((5, 3), layers.GRU(2, dropout=0.1)):
        with pytest.raises(ValueError, match="can be learned: no dropout"):
            learn(learn(model))


def test_copies_of_the_clone():
    learned = learn(graph((5, 3), layers.GRU(2, recurrent_dropout=0.1)))
    copy = keras.models.clone_model(learned)
    assert copy.get_rho() == learned.get_rho()
    copy.set_weights(learned.get_weights())
    np.testing.assert_array_equal(copy(STEPS), learned(STEPS))


def test_a_frozen_layer_keeps_its_value():
    model = graph(
        (6,), layers.Dropout(0.2), layers.Dense(2), layers.Dropout(0.3)
    )
    model.layers[1].trainable = False
    learned = compile_model(learn(model), loss="mse", num_samples=4)
    y = np.zeros((len(X), 2))
    learned.fit(X, y, reg_data=(X + 1, y), batch_size=8, verbose=0)
    frozen, moved = learned.get_rho().values()
    assert frozen == pytest.approx(0.2)
    assert moved != pytest.approx(0.3, abs=1e-5)


# What users see.


def test_the_table(capsys):
    model = full_model()
    learn(model)
    assert capsys.readouterr().out == ""
    kcr.learn_regularizers(model)
    out = capsys.readouterr().out
    assert 'Regularizers of model: "user"' in out
    for text in ("shared (Dropout)", "LearnedDropout", "rate 0.3", "l2 norm"):
        assert text in out


@pytest.mark.parametrize("model", [None, layers.Dense(2)])
def test_refuses_what_is_no_model(model):
    with pytest.raises(
        ValueError, match=r"expects a `keras.Model`. Received: model=.* of type"
    ):
        learn(model)


def test_refuses_a_model_that_is_not_built():
    model = keras.Sequential([layers.Dense(2), layers.Dropout(0.1)])
    with pytest.raises(
        ValueError, match="not built, .*Received: model=<Sequential"
    ):
        learn(model)
