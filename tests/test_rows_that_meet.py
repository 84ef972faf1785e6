"""Models in which the rows of a batch meet: samples are drawn apart."""

import keras
import numpy as np
import pytest
from helpers import EAGER
from helpers import compile_model
from helpers import make_model
from helpers import needs_executions_of
from keras import ops

import keras_crossreg as kcr
from keras_crossreg.sampling.row_probe import needs_a_look

X = np.random.default_rng(0).normal(size=(24, 3)).astype("float32")
WARNS = pytest.mark.filterwarnings("ignore:The samples of a prediction")


class Penalty(keras.layers.Layer):
    """Adds the sum of squares over the batch to the loss."""

    def call(self, inputs):
        self.add_loss(0.01 * ops.sum(inputs**2))
        return inputs


class Similarities(keras.layers.Layer):
    """Of every row with every row, as a contrastive loss takes them."""

    def call(self, inputs):
        return ops.matmul(inputs, ops.transpose(inputs))

    def compute_output_shape(self, input_shape):
        return input_shape[0], input_shape[0]


class Centered(keras.layers.Layer):
    """Rows less their mean."""

    def call(self, inputs):
        return inputs - ops.mean(inputs, axis=0, keepdims=True)


class AlwaysDropout(keras.layers.Layer):
    """Draws in inference mode too, by a layer of Keras inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = keras.layers.Dropout(0.5, seed=1)

    def call(self, inputs):
        return self.dropout(inputs, training=True)


def build(layer, sigma=0.5, units=None, **arguments):
    """A dense layer, noise, the layer in question, and a dense layer."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4)(inputs)
    x = kcr.layers.GaussianNoiseScale(sigma, seed=1)(x)
    x = layer(x)
    if units:
        x = keras.layers.Dense(units)(x)
    model = kcr.CrossRegModel(inputs, x)
    return compile_model(model, loss="mse", **arguments)


def plain(model):
    """The same network without noise."""
    inputs = keras.Input((3,))
    x = inputs
    for layer in model.layers[1:]:
        if not isinstance(layer, kcr.layers.GaussianNoiseScale):
            x = layer(x)
    twin = keras.Model(inputs, x)
    twin.compile("sgd", "mse")
    return twin


@WARNS
@pytest.mark.parametrize(
    "run_eagerly", [pytest.param(True, marks=pytest.mark.slow), False]
)
def test_a_loss_that_is_summed_over_the_batch(run_eagerly):
    model = build(
        Penalty(), sigma=1e-6, units=1, num_samples=4, run_eagerly=run_eagerly
    )
    y = X[:, :1]
    expected = plain(model).evaluate(X, y, batch_size=24, verbose=0)
    found = model.evaluate(X, y, batch_size=24, verbose=0)
    assert found == pytest.approx(expected, rel=1e-4)
    # So is the loss of a rho step, at theta that do not move.
    model.optimizer.learning_rate = 0.0
    history = model.fit(
        X[:8] + 1,
        y[:8],
        reg_data=(X, y),
        reg_batch_size=24,
        verbose=0,
    ).history
    assert history["reg_loss"][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.ActivityRegularization(l2=0.1),
        keras.layers.Dense(4, activity_regularizer="l1"),
    ],
)
def test_activity_regularizers_of_keras_are_means_over_the_batch(layer):
    model = build(layer, sigma=1e-6, num_samples=4)
    y = X[:, [0] * 4]
    expected = plain(model).evaluate(X, y, batch_size=24, verbose=0)
    found = model.evaluate(X, y, batch_size=24, verbose=0)
    assert found == pytest.approx(expected, rel=1e-4)


@WARNS
@pytest.mark.parametrize("num_samples", [4, 10])
def test_what_a_layer_adds_is_the_mean_over_all_samples(num_samples):
    model = build(Penalty(), sigma=3.0, num_samples=num_samples)
    y = np.asarray(model.predict(X, batch_size=24, verbose=0))
    samples = model.predict_samples(X, num_samples, batch_size=24, verbose=0)
    expected = 0.01 * np.sum(samples**2) / num_samples
    # The predictions are right, so that all of the loss is what it adds.
    found = model.evaluate(X, y, batch_size=24, verbose=0)
    assert found == pytest.approx(expected, rel=1e-4)
    served = kcr.averaged(model, num_samples)
    served.compile("sgd", "mse")
    found = served.evaluate(X, y, batch_size=24, verbose=0)
    assert found == pytest.approx(expected, rel=1e-4)
    served(X)
    served(X)
    found = keras.ops.convert_to_numpy(sum(served.losses))
    assert found == pytest.approx(expected, rel=1e-4)


@WARNS
@pytest.mark.parametrize(
    "run_eagerly", [pytest.param(True, marks=pytest.mark.slow), False]
)
def test_outputs_that_are_not_one_row_for_each_example(run_eagerly):
    model = build(Similarities(), sigma=1e-6, run_eagerly=run_eagerly)
    found = model.predict(X, batch_size=24, verbose=0)
    np.testing.assert_allclose(
        found, plain(model).predict(X, batch_size=24, verbose=0), rtol=1e-3
    )
    samples = model.predict_samples(X, 3, batch_size=24, verbose=0)
    assert samples.shape == (3, 24, 24)


@WARNS
def test_a_contrastive_loss_knows_no_more_rows_than_the_batch_has():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4, kernel_initializer="zeros")(inputs)
    x = kcr.layers.GaussianNoiseScale(1e-6)(x)
    model = kcr.CrossRegModel(inputs, Similarities()(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compile_model(model, loss=loss, num_samples=4)
    model.optimizer.learning_rate = 0.0
    history = model.fit(
        X[:8],
        np.arange(8),
        batch_size=8,
        reg_data=(X, np.arange(24)),
        reg_batch_size=24,
        verbose=0,
    ).history
    # All logits are equal.
    assert history["reg_loss"][0] == pytest.approx(np.log(24), rel=1e-4)


@WARNS
def test_a_mean_over_the_batch_is_of_the_rows_of_one_sample():
    model = build(Centered(), sigma=2.0)
    samples = model.predict_samples(X, 5, batch_size=24, verbose=0)
    assert np.abs(samples.mean(axis=1)).max() < 1e-5
    np.testing.assert_allclose(
        model.predict(X, batch_size=24, verbose=0),
        model.predict_samples(X, batch_size=24, verbose=0).mean(axis=0),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.slow
@WARNS
def test_noise_of_ones_own_before_ours_is_drawn_for_each_sample():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = AlwaysDropout()(keras.layers.Dense(64)(inputs))
    x = kcr.layers.GaussianNoiseScale(1e-6)(x)
    model = kcr.CrossRegModel(inputs, x)
    spread = model.predict_samples(X, 32, verbose=0).std(axis=0)
    # Dropout of a half has the deviation of what it drops.
    size = np.abs(np.asarray(model.layers[1](X)))
    assert spread.mean() == pytest.approx(size.mean(), rel=0.1)


@WARNS
def test_a_gradient_in_passes_is_that_of_one():
    gradients = []
    for samples_per_pass in (8, 3):
        model = build(
            Centered(),
            units=1,
            num_samples=6,
            samples_per_pass=samples_per_pass,
            rho_optimizer=keras.optimizers.SGD(1.0),
        )
        model.optimizer.learning_rate = 0.0
        before = model.rho_variables[0].numpy()
        model.train_on_batch(X, X[:, :1], reg_data=(X, X[:, :1]))
        gradients.append(before - model.rho_variables[0].numpy())
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-4)
    assert gradients[0] != 0


@WARNS
def test_an_averaged_model_of_a_model_that_never_predicted(tmp_path):
    keras.saving.register_keras_serializable("tests")(Similarities)
    build(Similarities()).save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    served = kcr.averaged(model, 3)
    found = np.asarray(served(X))
    assert found.shape == (24, 24)
    samples = model.predict_samples(X, 3, batch_size=24, verbose=0)
    np.testing.assert_allclose(found, samples.mean(axis=0), rtol=1e-4)


def test_it_is_said_once():
    model = build(Centered())
    with pytest.warns(UserWarning, match="the rows of a batch meet") as record:
        model.predict(X, verbose=0)
    record = [w for w in record if issubclass(w.category, UserWarning)]
    assert len(record) == 1
    assert record[0].filename == __file__
    model.predict_samples(X, 2, verbose=0)
    model.evaluate(X, X[:, [0] * 4], verbose=0)


class Called(keras.layers.Layer):
    """A layer of one's own that looks at one row at a time."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.rows = []

    def call(self, inputs):
        # Keras on PyTorch calls it with so many to see shapes.
        rows = inputs.shape[0]
        if isinstance(rows, int) and rows not in (83, 89):
            self.rows.append(rows)
        return 2 * inputs


def test_a_layer_of_ones_own_by_row_costs_a_probe_and_no_more():
    layer = Called()
    model = build(layer)
    for _ in range(2):
        model.predict(X, batch_size=24, verbose=0)
    # Two rows together and one by one; then two samples in one pass, which is
    # traced once where it is compiled.
    assert layer.rows == [2, 1, 1] + [48] * (2 if EAGER else 1)


def test_a_subclassed_model_is_looked_at_by_fit():
    class Net(kcr.CrossRegModel):
        def __init__(self):
            super().__init__()
            self.noise = kcr.layers.GaussianNoiseScale(1e-6)
            self.dense = keras.layers.Dense(1)

        def call(self, inputs):
            x = self.noise(inputs)
            return self.dense(x - ops.mean(x, axis=0, keepdims=True))

    model = compile_model(Net(), loss="mse")
    with pytest.warns(UserWarning, match="the rows of a batch meet"):
        model.fit(X, X[:, :1], reg_data=(X[:10] + 1, X[:10, :1]), verbose=0)
    samples = model.predict_samples(X, 3, batch_size=24, verbose=0)
    bias = model.dense.bias.numpy()
    assert np.abs(samples.mean(axis=1) - bias).max() < 1e-5


@keras.saving.register_keras_serializable("tests")
class CenteredNet(kcr.CrossRegModel):
    """A subclass in which rows meet."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.noise = kcr.layers.GaussianNoiseScale(2.0, seed=1)
        self.dense = keras.layers.Dense(4)

    def call(self, inputs):
        x = self.noise(inputs)
        return self.dense(x - ops.mean(x, axis=0, keepdims=True))


@pytest.mark.parametrize("call", ["predict", "samples", "evaluate", "batch"])
@pytest.mark.parametrize(
    "run_eagerly", [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_a_subclassed_model_that_was_never_fitted(call, run_eagerly, tmp_path):
    model = compile_model(CenteredNet(), loss="mse", num_samples=8)
    model(X)
    model.save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    model.run_eagerly = run_eagerly
    with pytest.warns(UserWarning, match="the rows of a batch meet"):
        if call == "evaluate":
            loss = model.evaluate(X, X[:, [0] * 4], batch_size=24, verbose=0)
        elif call == "predict":
            model.predict(X, batch_size=24, verbose=0)
        elif call == "samples":
            model.predict_samples(X, 3, batch_size=24, verbose=0)
        else:
            model.predict_on_batch(X)
    samples = model.predict_samples(X, 8, batch_size=24, verbose=0)
    assert np.abs(samples.mean(axis=1)).max() < 1e-5
    average = samples.mean(axis=0)
    if call == "evaluate":
        expected = np.mean((average - X[:, [0] * 4]) ** 2)
        assert loss == pytest.approx(expected, rel=1e-5)
    found = model.predict(X, batch_size=24, verbose=0)
    np.testing.assert_allclose(found, average, atol=1e-5)


@WARNS
def test_a_subclassed_model_with_steps_per_execution_is_looked_at_once():
    needs_executions_of(2)
    model = CenteredNet()
    model(X)
    # Eagerly it is the same, and quicker.
    model.compile("sgd", "mse", steps_per_execution=2, run_eagerly=True)
    y = X[:, [0] * 4]
    first = model.evaluate(X, y, batch_size=6, verbose=0)
    assert first == model.evaluate(X, y, batch_size=6, verbose=0)
    assert model.predict(X, batch_size=6, verbose=0).shape == (24, 4)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_rounding_to_sixteen_bits_is_no_meeting(policy, recwarn):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        inputs = keras.Input((3,))
        x = keras.layers.Dense(64, activation="gelu")(inputs)
        x = kcr.layers.GaussianNoiseScale(0.1)(keras.layers.Dense(64)(x))
        outputs = keras.layers.Dense(4)(Called()(x))
    finally:
        keras.config.set_dtype_policy("float32")
    kcr.CrossRegModel(inputs, outputs).predict(X, verbose=0)
    assert not [w for w in recwarn if "the rows of a batch" in str(w.message)]


def test_what_needs_no_probe():
    assert not needs_a_look(make_model())
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3)(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = kcr.layers.GaussianNoiseScale()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    inner = keras.Sequential([keras.layers.Dense(4), keras.layers.ReLU()])
    assert not needs_a_look(kcr.CrossRegModel(inputs, inner(x)))


@pytest.mark.parametrize(
    "layer",
    [
        Penalty(),
        keras.layers.Lambda(lambda x: x[::-1], lambda shape: shape),
        lambda x: ops.matmul(x, ops.transpose(x)),
    ],
)
def test_what_needs_one(layer):
    inputs = keras.Input((3,))
    assert needs_a_look(keras.Model(inputs, layer(inputs)))


def test_a_state_over_batches_needs_one():
    inputs = keras.Input(batch_shape=(4, 5, 3))
    x = keras.layers.GRU(2, stateful=True)(inputs)
    assert needs_a_look(keras.Model(inputs, x))
