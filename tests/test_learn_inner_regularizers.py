"""`learn_regularizers` inside of layers: attention, recurrence, own blocks."""

import keras
import numpy as np
import pytest
from helpers import gradients
from keras import layers
from keras import ops
from test_learn_regularizers import RNG
from test_learn_regularizers import STEPS
from test_learn_regularizers import X
from test_learn_regularizers import Y
from test_learn_regularizers import array
from test_learn_regularizers import assert_same_moments
from test_learn_regularizers import check_learns_and_survives
from test_learn_regularizers import few
from test_learn_regularizers import graph
from test_learn_regularizers import learn

import keras_crossreg as kcr

TOKENS = RNG.normal(size=(16, 5, 8)).astype("float32")
register = keras.saving.register_keras_serializable("inner")


@register
class Block(layers.Layer):
    """A transformer block as users write it, made in `build`."""

    def __init__(self, rate=0.2, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    def build(self, input_shape):
        width = input_shape[-1]
        self.attention = layers.MultiHeadAttention(2, 4, dropout=0.1)
        self.attention.build(input_shape, input_shape)
        self.norm = layers.LayerNormalization()
        self.norm.build(input_shape)
        self.dropout = layers.Dropout(self.rate)
        self.dense = layers.Dense(width, kernel_regularizer="l2")
        self.dense.build(input_shape)

    def call(self, x, training=None):
        y = self.attention(x, x, training=training)
        x = self.norm(x + self.dropout(y, training=training))
        return self.dense(x)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


@register
class Mixed(layers.Layer):
    """Lists, dicts, tuples and models, made in the constructor."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = layers.Dropout(0.1, name="one")
        self.same = self.dropout
        self.many = [layers.Dense(6), layers.Dropout(0.2, name="two")]
        self.by_name = {"noise": layers.GaussianNoise(0.3, name="three")}
        self.pair = (layers.Dense(6), layers.Dropout(0.4, name="four"))
        self.branch = keras.Sequential(
            [layers.Dense(6), layers.Dropout(0.5, name="five")]
        )

    def call(self, x):
        x = self.same(self.dropout(x))
        for layer in self.many:
            x = layer(x)
        x = self.by_name["noise"](x)
        for layer in self.pair:
            x = layer(x)
        return self.branch(x)


@register
class Net(keras.Model):
    """A model with a `call` of its own."""

    def __init__(self, units=6, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = layers.Dense(
            units, activation="relu", kernel_regularizer="l2"
        )
        self.norm = layers.BatchNormalization()
        self.drops = [layers.Dropout(0.2, name="low"), layers.Dropout(0.4)]
        self.classes = layers.Dense(2, activation="softmax")

    def call(self, x, training=None):
        x = self.norm(self.hidden(x), training=training)
        for drop in self.drops:
            x = drop(x, training=training)
        return self.classes(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@register
class Ours(kcr.CrossRegModel):
    """The same of the class that trains here."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drop = layers.Dropout(0.2, name="low")
        self.classes = layers.Dense(2, activation="softmax")

    def call(self, x, training=None):
        return self.classes(self.drop(x, training=training))


def starts(learned):
    """Start values, without those of weights, by the last two names."""
    return {
        "/".join(path.split("/")[-2:]): round(float(value), 6)
        for path, value in learned.get_rho().items()
        if not path.endswith("norm")
    }


def assert_reached(learned, x):
    """A sampling pass draws, and every rate and scale has a gradient."""
    plain = array(learned(x, training=False))
    np.testing.assert_array_equal(plain, array(learned(x, training=False)))
    one, other = (array(learned(x, sampling=True)) for _ in range(2))
    assert np.abs(one - other).max() > 0
    rho = [v for v in learned.rho_variables if not v.path.endswith("norm")]
    weights = ops.convert_to_tensor(RNG.normal(size=plain.shape), "float32")

    def loss():
        return ops.square(learned(x, sampling=True)) * weights

    found = gradients(loss, rho)
    assert all(g is not None and np.abs(g).max() > 0 for g in found)
    assert all(
        g is None or np.abs(g).max() == 0
        for g in gradients(lambda: learned(x, training=True) * weights, rho)
    )


def assert_same_theta(learned, model):
    theta = [w for w in learned.weights if not kcr.is_rho(w)]
    for one, other in zip(theta, model.weights, strict=True):
        np.testing.assert_array_equal(array(one), array(other))
        assert one.name == other.name


# Attention.


def attention_model(cls=layers.MultiHeadAttention, **kwargs):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 8))
    attention = cls(2, 4, **{"dropout": 0.3, "name": "attention", **kwargs})
    x = attention(inputs, inputs, use_causal_mask=True)
    return keras.Model(inputs, x)


def grouped(heads, size, **kwargs):
    return layers.GroupQueryAttention(size, heads, 1, **kwargs)


@pytest.mark.parametrize(
    "cls",
    [layers.MultiHeadAttention, pytest.param(grouped, marks=pytest.mark.slow)],
)
def test_attention(cls):
    model = attention_model(cls)
    learned = learn(model)
    layer = learned.get_layer("attention")
    assert isinstance(layer, type(model.get_layer("attention")))
    assert list(starts(learned).values()) == [pytest.approx(0.3)]
    np.testing.assert_array_equal(learned(TOKENS), model(TOKENS))
    assert_reached(learned, TOKENS)
    assert_same_theta(learned, model)
    assert_same_moments(model, learned, TOKENS, draws=100)


def test_attention_returns_its_scores_and_takes_a_mask():
    keras.utils.set_random_seed(0)
    inputs, mask = keras.Input((5, 8)), keras.Input((5, 5), dtype="bool")
    x, scores = layers.MultiHeadAttention(2, 4, dropout=0.3)(
        inputs,
        inputs,
        attention_mask=mask,
        return_attention_scores=True,
    )
    model = keras.Model([inputs, mask], [x, scores])
    given = [TOKENS, RNG.uniform(size=(16, 5, 5)) > 0.3]
    for one, other in zip(learn(model)(given), model(given), strict=True):
        np.testing.assert_array_equal(one, other)


def test_attention_without_dropout_is_no_matter(capsys):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 8))
    x = layers.MultiHeadAttention(2, 4, name="plain")(inputs, inputs)
    x = layers.Dropout(0.1)(x)
    learned = learn(keras.Model(inputs, x), verbose=1)
    assert type(learned.get_layer("plain")) is layers.MultiHeadAttention
    assert "plain" not in capsys.readouterr().out


@pytest.mark.parametrize("cls", [layers.Attention, layers.AdditiveAttention])
def test_attention_that_draws_itself_is_left(cls, capsys):
    inputs = keras.Input((5, 8))
    x = layers.Dropout(0.1, name="it")(cls(dropout=0.2)([inputs, inputs]))
    learned = learn(keras.Model(inputs, x), verbose=1)
    assert list(learned.get_rho()) == ["it/rate"]
    out = capsys.readouterr().out.replace("│", " ")
    assert "draws its dropout itself" in " ".join(out.split())


# Recurrence.


@pytest.mark.parametrize(
    "make",
    [
        lambda **k: layers.SimpleRNN(2, activation=None, **k),
        lambda **k: layers.GRU(2, **k),
        lambda **k: layers.LSTM(2, **k),
        lambda **k: layers.Bidirectional(layers.LSTM(2, **k)),
        lambda **k: layers.RNN(layers.GRUCell(2, **k)),
        lambda **k: layers.RNN(
            [layers.LSTMCell(2, **k), layers.SimpleRNNCell(2)]
        ),
    ],
    ids=["SimpleRNN", "GRU", "LSTM", "Bidirectional", "RNN", "stacked"],
)
@pytest.mark.parametrize(
    "rates",
    [
        pytest.param({"dropout": 0.3}, marks=pytest.mark.slow),
        pytest.param({"recurrent_dropout": 0.4}, marks=pytest.mark.slow),
        {"dropout": 0.2, "recurrent_dropout": 0.4},
    ],
    ids=["dropout", "recurrent", "both"],
)
def test_recurrent_layers(make, rates):
    layer = make(**rates, seed=1)
    model = graph((5, 3), layer)
    learned = learn(model)
    directions = 2 if isinstance(layer, layers.Bidirectional) else 1
    found = list(learned.get_rho().values())
    assert sorted(found) == pytest.approx(
        sorted([*rates.values()] * directions)
    )
    np.testing.assert_array_equal(learned(STEPS), model(STEPS))
    assert_reached(learned, STEPS)
    assert_same_theta(learned, model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "rates",
    [
        {"dropout": 0.3},
        {"recurrent_dropout": 0.4},
        {"dropout": 0.2, "recurrent_dropout": 0.4},
    ],
    ids=["dropout", "recurrent", "both"],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda **k: layers.SimpleRNN(2, activation=None, **k),
        lambda **k: layers.GRU(2, **k),
        lambda **k: layers.LSTM(2, **k),
        lambda **k: layers.Bidirectional(layers.LSTM(2, **k)),
    ],
    ids=["SimpleRNN", "GRU", "LSTM", "Bidirectional"],
)
def test_recurrent_layers_draw_as_keras_does(make, rates):
    model = graph((5, 3), make(**rates))
    assert_same_moments(model, learn(model), STEPS, draws=60, copies=512)


def test_a_mask_is_of_a_whole_sequence():
    """The sum of a constant sequence is 0 or 1 / (1 - rate) times itself."""
    layer = layers.SimpleRNN(
        1,
        activation=None,
        dropout=0.5,
        kernel_initializer="ones",
        recurrent_initializer="ones",
    )
    learned = learn(graph((5, 1), layer))
    for flag in "training", "sampling":
        y = array(learned(np.ones((64, 5, 1)), **{flag: True}))
        np.testing.assert_allclose(
            np.unique(np.round(y, 2)), [0.0, 10.0], atol=1e-2
        )


def test_states_and_masks_reach_a_recurrent_layer():
    keras.utils.set_random_seed(0)
    inputs, state = keras.Input((5,), dtype="int32"), keras.Input((2,))
    x = layers.Embedding(4, 3, mask_zero=True)(inputs)
    outputs = layers.GRU(
        2, dropout=0.3, return_state=True, return_sequences=True
    )(x, initial_state=state)
    model = keras.Model([inputs, state], outputs)
    given = [RNG.integers(0, 4, (9, 5)), RNG.normal(size=(9, 2))]
    for one, other in zip(learn(model)(given), model(given), strict=True):
        np.testing.assert_array_equal(one, other)


def test_convolutional_and_own_recurrence_is_left(capsys):
    class Own(layers.LSTM):
        pass

    keras.utils.set_random_seed(0)
    inputs = keras.Input((3, 4, 4, 1))
    x = layers.ConvLSTM2D(2, 2, dropout=0.2)(inputs)
    x = layers.Reshape((9, 2))(x)
    x = layers.Dropout(0.1, name="it")(
        Own(2, recurrent_dropout=0.2, name="own")(x)
    )
    learned = learn(keras.Model(inputs, x), verbose=1)
    assert list(learned.get_rho()) == ["it/rate"]
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for word in "convolutional", "Keras's", "own.recurrent_dropout":
        assert word in out


# Layers of the user's own.


def test_a_block_that_is_made_in_build():
    model = graph((5, 8), Block(name="first"), Block(0.4, name="second"))
    learned = learn(model)
    assert isinstance(learned.get_layer("first"), Block)
    assert learned.get_layer("second").rate == 0.4
    assert sorted(starts(learned).values()) == [0.1, 0.1, 0.2, 0.4]
    assert sum(path.endswith("l2_norm") for path in learned.get_rho()) == 2
    np.testing.assert_array_equal(learned(TOKENS), model(TOKENS))
    assert_reached(learned, TOKENS)
    assert_same_theta(learned, model)
    assert_same_moments(model, learned, TOKENS, draws=60)


def test_lists_dicts_tuples_and_models_in_a_layer():
    model = graph((6,), Mixed())
    learned = learn(model)
    assert sorted(learned.get_rho().values()) == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.5]
    )
    layer = learned.layers[1]
    assert layer.same is layer.dropout
    np.testing.assert_array_equal(learned(X), model(X))
    assert_reached(learned, X)
    assert_same_moments(model, learned, X, draws=80)


def test_a_layer_that_cannot_be_copied():
    class Closed(layers.Layer):
        def __init__(self, inner, **kwargs):
            super().__init__(**kwargs)
            self.inner = inner

        def call(self, x):
            return self.inner(x)

    with pytest.raises(
        ValueError,
        match=r"(?s)copy of it, which cannot be made: .*`get_config\(\)"
        r"`.*Received: closed of type Closed$",
    ):
        learn(graph((6,), Closed(layers.Dropout(0.2), name="closed")))


def test_a_config_that_makes_another_layer():
    @register
    class Forgets(layers.Layer):
        def __init__(self, units=3, rate=0.0, **kwargs):
            super().__init__(**kwargs)
            self.dropout = layers.Dropout(0.2)
            self.dense = layers.Dense(units)
            if rate:
                self.more = layers.Dropout(rate)

        def call(self, x):
            return self.dense(self.dropout(x))

        def get_config(self):
            return super().get_config()

    with pytest.raises(
        ValueError, match=r"other weights than the original. Received: it of "
    ):
        learn(graph((6,), Forgets(4, name="it")))
    with pytest.raises(
        ValueError, match=r"no `more`, which the original has. Received: it of "
    ):
        learn(graph((6,), Forgets(rate=0.3, name="it")))


def test_what_is_out_of_reach_is_said(capsys):
    @register
    class Hides(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.hidden = {layers.Dropout(0.2, name="deep")}

        def call(self, x):
            for layer in self.hidden:
                x = layer(x)
            return x

    learned = learn(graph((6,), Hides(), layers.Dropout(0.1)), verbose=1)
    assert len(learned.get_rho()) == 1
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "out of reach" in out


def test_what_is_called_in_training_alone_is_left(capsys):
    """A sampling pass is an inference pass, which would not draw."""

    @register
    class InTraining(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.silent = layers.Dropout(0.2)
            self.heard = layers.Dropout(0.3)

        def call(self, x, training=False):
            if training:
                x = self.silent(x, training=training)
            return self.heard(x, training=training)

    model = graph((6,), InTraining(name="it"))
    learned = learn(model, verbose=1)
    assert list(learned.get_rho().values()) == pytest.approx([0.3])
    assert type(learned.get_layer("it").silent) is layers.Dropout
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "it.silent" in out
    assert "alone" in out
    assert_reached(learned, X)


def test_a_layer_that_builds_itself():
    """As those of KerasHub do that are made from a config."""

    @register
    class Early(layers.Layer):
        def __init__(self, width=None, **kwargs):
            super().__init__(**kwargs)
            self.width = width
            if width:
                self.build((None, width))

        def build(self, input_shape):
            self.width = input_shape[-1]
            self.dropout = layers.Dropout(0.3)
            self.dense = layers.Dense(self.width, kernel_regularizer="l2")
            self.dense.build(input_shape)

        def call(self, x):
            return self.dense(self.dropout(x))

        def get_config(self):
            return {**super().get_config(), "width": self.width}

    learned = learn(graph((6,), Early(name="early")))
    assert len(learned.get_rho()) == 2
    assert_reached(learned, X)


# Models with a `call` of their own.


def net():
    keras.utils.set_random_seed(0)
    model = Net()
    model(X)
    model.norm.moving_mean.assign(np.ones(6))
    return model


def test_a_model_with_its_own_call():
    model = net()
    learned = learn(model)
    assert isinstance(learned, kcr.CrossRegModel)
    assert sorted(starts(learned).values()) == [0.2, 0.4]
    assert len(learned.get_rho()) == 3
    np.testing.assert_array_equal(learned(X), model(X))
    assert_reached(learned, X)
    assert_same_moments(model, learned, X, draws=80)


def test_a_cross_reg_model_with_its_own_call():
    keras.utils.set_random_seed(0)
    model = Ours()
    model(X)
    learned = learn(model)
    assert isinstance(learned, Ours)
    assert starts(learned) == {"low/rate": 0.2}
    np.testing.assert_array_equal(learned(X), model(X))
    assert_reached(learned, X)


def test_a_model_without_a_config():
    class NoConfig(Net):
        def __init__(self, layer):
            super().__init__()
            self.extra = layer

        def get_config(self):
            raise NotImplementedError("no config here")

    model = NoConfig(object())
    model(X)
    with pytest.raises(
        ValueError, match=r"cannot be made: no config here. .*of type NoConfig$"
    ):
        learn(model)


def test_a_model_that_was_never_called():
    with pytest.raises(ValueError, match="not built, so that it has no weight"):
        learn(Net())


# The whole way.

WAYS = {
    "attention": (
        lambda: graph(
            (5, 8),
            Block(),
            layers.Flatten(),
            layers.Dense(2, activation="softmax"),
        ),
        TOKENS,
    ),
    "recurrence": (
        lambda: graph(
            (5, 3),
            layers.Bidirectional(
                layers.LSTM(3, dropout=0.2, return_sequences=True)
            ),
            layers.GRU(3, dropout=0.2, recurrent_dropout=0.3),
            layers.Dense(2, activation="softmax"),
        ),
        STEPS,
    ),
    "own": (
        lambda: graph((6,), Mixed(), layers.Dense(2, activation="softmax")),
        X,
    ),
    "model": (net, X),
}


# Keras says so of every layer without a `build`, when it is loaded.
@pytest.mark.filterwarnings("ignore:.build... was called on layer .mixed")
@few
@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_learns_and_survives(way, tmp_path):
    make, x = way
    check_learns_and_survives(
        learn(make()),
        x,
        Y[: len(x)],
        tmp_path,
        "sparse_categorical_crossentropy",
    )
