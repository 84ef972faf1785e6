"""States and metrics that a pass in inference mode moves."""

import keras
import numpy as np
import pytest
from helpers import IS_JAX
from helpers import compile_model
from keras import ops
from sample_table import SampleTable
from sample_table import one_sample

import keras_crossreg as kcr

pytestmark = pytest.mark.filterwarnings("ignore:The samples of a prediction")

X = np.random.default_rng(0).normal(size=(12, 5, 3)).astype("float32")
Y = X[:, 0, :1]
REG = np.random.default_rng(1).normal(size=(12, 5, 3)).astype("float32") + 1
REG_Y = REG[:, 0, :1]
EAGER = pytest.mark.parametrize(
    "run_eagerly", [pytest.param(True, marks=pytest.mark.slow), False]
)


# On PyTorch Keras writes the next state over the one that the gradient needs.
TRAINS_STATES = pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="`keras.Model` trains no stateful layer on PyTorch",
)


def make_stateful(rnn=keras.layers.GRU, rho=True, cls=None, **arguments):
    """A stateful layer behind noise whose samples are known."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(batch_shape=(4, 5, 3))
    x = SampleTable(1.0)(inputs) if rho else inputs
    x = rnn(2, stateful=True)(x)
    model = (cls or kcr.CrossRegModel)(inputs, keras.layers.Dense(1)(x))
    if cls is None:
        arguments = {"num_samples": 3, **arguments}
        return compile_model(model, loss="mse", **arguments)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def states(model):
    return [
        ops.convert_to_numpy(ops.copy(v))
        for layer in model.layers
        if getattr(layer, "stateful", False)
        for v in keras.tree.flatten(layer.states)
    ]


def reset(model):
    for layer in model.layers:
        if getattr(layer, "stateful", False):
            layer.reset_state()


def separate_runs(model, x, number_of_samples, batch_size=4):
    """Each sample alone, from batch to batch."""
    runs = []
    for k in range(number_of_samples):
        reset(model)
        runs.append(
            np.concatenate(
                [
                    one_sample(model, x[i : i + batch_size], k)
                    for i in range(0, len(x), batch_size)
                ]
            )
        )
    reset(model)
    return np.stack(runs)


@EAGER
@pytest.mark.parametrize("rnn", [keras.layers.GRU, keras.layers.LSTM])
def test_a_prediction_is_of_separate_runs(rnn, run_eagerly):
    model = make_stateful(rnn, run_eagerly=run_eagerly)
    expected = separate_runs(model, X, 3)
    found = model.predict(X, batch_size=4, verbose=0)
    np.testing.assert_allclose(found, expected.mean(axis=0), atol=1e-6)
    # What stays is the state of the last run.
    last = states(model)
    reset(model)
    one_sample_runs = [one_sample(model, X[i : i + 4], 2) for i in (0, 4, 8)]
    assert len(one_sample_runs) == 3
    np.testing.assert_allclose(last[0], states(model)[0], atol=1e-6)


def test_a_second_call_goes_on_and_a_reset_begins_anew():
    model = make_stateful()
    whole = separate_runs(model, X, 3).mean(axis=0)
    parts = [
        model.predict(X[i : i + 4], batch_size=4, verbose=0) for i in (0, 4, 8)
    ]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)
    reset(model)
    again = model.predict(X[:4], batch_size=4, verbose=0)
    np.testing.assert_allclose(again, whole[:4], atol=1e-6)


@EAGER
def test_samples_and_scores_are_of_separate_runs(run_eagerly):
    model = make_stateful(run_eagerly=run_eagerly)
    expected = separate_runs(model, X, 4)
    found = model.predict_samples(X, 4, batch_size=4, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    reset(model)
    loss = model.evaluate(X, Y, batch_size=4, verbose=0)
    average = expected[:3].mean(axis=0)
    assert loss == pytest.approx(np.mean((average - Y) ** 2), rel=1e-5)


@pytest.mark.skipif(IS_JAX, reason="`keras.Model` loses the states there")
@TRAINS_STATES
@EAGER
@pytest.mark.parametrize(
    "num_samples", [1, pytest.param(3, marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore:With `num_samples=1`")
def test_the_regularization_set_leaves_no_state(num_samples, run_eagerly):
    model = make_stateful(num_samples=num_samples, run_eagerly=run_eagerly)
    plain = make_stateful(rho=False, cls=keras.Model)
    plain.set_weights([w.numpy() for w in model.theta_variables])
    # Training draws a sample too, the first one: by a rho of 0 it is plain.
    model.set_rho(dict.fromkeys(model.get_rho(), 0.0))
    model.rho_optimizer.learning_rate = 0.0
    plain.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
    model.fit(
        X, Y, batch_size=4, shuffle=False, verbose=0, reg_data=(REG, REG_Y)
    )
    for found, expected in zip(states(model), states(plain), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    for found, expected in zip(
        model.theta_variables, plain.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-6)


@TRAINS_STATES
@EAGER
def test_a_regularization_batch_starts_its_sequences(run_eagerly):
    model = make_stateful(run_eagerly=run_eagerly)
    model.compile(
        keras.optimizers.SGD(0.0),
        "mse",
        num_samples=3,
        reg_freq=9,
        reg_warmup=0,
        run_eagerly=run_eagerly,
    )
    # Whichever four come, they are the same.
    same, same_y = np.repeat(REG[:1], 12, 0), np.repeat(REG_Y[:1], 12, 0)
    with pytest.warns(UserWarning, match="Rho have not learned"):
        history = model.fit(
            X, Y, batch_size=4, verbose=0, reg_data=(same, same_y)
        )
    expected = separate_runs(model, same[:4], 64)
    passes = int(model.layers[1].seed_generator.state.numpy()[1])
    average = expected[[(passes + k) % 64 for k in range(3)]].mean(axis=0)
    assert history.history["reg_loss"][0] == pytest.approx(
        np.mean((average - same_y[:4]) ** 2), rel=1e-5
    )


def test_batches_of_another_size_are_refused():
    model = make_stateful()
    before = [v.numpy() for v in model.weights]
    for arguments in (
        {"reg_batch_size": 2},
        {"reg_data": (REG[:3], REG_Y[:3])},
    ):
        with pytest.raises(
            ValueError,
            match="takes batches of 4 .* Received: .* [23] examples$",
        ):
            model.fit(
                X,
                Y,
                batch_size=4,
                verbose=0,
                **{"reg_data": (REG, REG_Y), **arguments},
            )
    for a, v in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(a, v)


def test_an_averaged_model_is_refused_by_name(tmp_path):
    model = make_stateful()
    for call in (
        lambda: kcr.averaged(model, 2),
        lambda: model.export(tmp_path / "m", verbose=False),
    ):
        with pytest.raises(ValueError, match="Received: states=.*gru"):
            call()


class Counter(keras.layers.Layer):
    """Counts its calls, and divides by their number."""

    def build(self, input_shape):
        self.calls = self.add_weight(
            name="calls", shape=(), initializer="zeros", trainable=False
        )

    def call(self, inputs):
        self.calls.assign_add(1.0)
        return inputs / ops.convert_to_tensor(self.calls)


class Drift(keras.layers.Layer):
    """A moving average of what it sees, in any mode."""

    def build(self, input_shape):
        self.mean = self.add_weight(
            name="mean", shape=(), initializer="zeros", trainable=False
        )

    def call(self, inputs):
        self.mean.assign(0.5 * self.mean + 0.5 * ops.mean(inputs))
        return inputs - ops.convert_to_tensor(self.mean)


class Measured(keras.layers.Layer):
    """Updates metrics of its own, one of them a sum."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.size = keras.metrics.Mean(name="size")
        self.total = keras.metrics.Sum(name="total")

    def call(self, inputs):
        self.size.update_state(ops.abs(inputs))
        self.total.update_state(ops.abs(inputs))
        return inputs


class Untracked(keras.layers.Layer):
    """Counts in a variable that Keras does not track."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = [lambda: None]
        variable = keras.Variable(0.0, trainable=False, name="count")
        self.count = lambda: variable

    def call(self, inputs):
        self.count().assign_add(1.0)
        return inputs


def build(layer, start=1.0, cls=None, rho=True, **arguments):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4)(inputs)
    x = SampleTable(start)(x) if rho else x
    model = (cls or kcr.CrossRegModel)(inputs, keras.layers.Dense(1)(layer(x)))
    if cls is None:
        return compile_model(
            model, loss="mse", **{"num_samples": 3, **arguments}
        )
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


FLAT, FLAT_Y = X[:, 0], Y
FLAT_REG = REG[:, 0], REG_Y


@EAGER
@pytest.mark.parametrize("layer", [Counter, Drift])
def test_a_state_of_ones_own(layer, run_eagerly):
    model = build(layer(), run_eagerly=run_eagerly)
    (state,) = model.layers[3].weights
    runs = []
    for k in range(3):
        state.assign(0.0)
        runs.append([one_sample(model, FLAT[i : i + 4], k) for i in (0, 4, 8)])
    expected = np.asarray(runs).reshape(3, 12, 1)
    last = float(state.numpy())
    state.assign(0.0)
    found = model.predict(FLAT, batch_size=4, verbose=0)
    np.testing.assert_allclose(found, expected.mean(axis=0), atol=1e-6)
    # One spacing of the numbers that it is the mean of.
    assert float(state.numpy()) == pytest.approx(last, abs=1e-8)


@EAGER
@pytest.mark.parametrize("layer", [Counter, Drift, Untracked])
def test_the_regularization_set_moves_no_state(layer, run_eagerly):
    model = build(layer(), start=0.0, run_eagerly=run_eagerly)
    plain = build(layer(), cls=keras.Model, rho=False)
    plain.set_weights(
        [v.numpy() for v in model.weights if "table" not in v.path]
    )
    model.rho_optimizer.learning_rate = 0.0
    plain.fit(FLAT, FLAT_Y, batch_size=4, shuffle=False, verbose=0)
    model.fit(
        FLAT, FLAT_Y, batch_size=4, shuffle=False, verbose=0, reg_data=FLAT_REG
    )
    found, expected = (
        m.layers[-2].count() if layer is Untracked else m.layers[-2].weights[0]
        for m in (model, plain)
    )
    expected = float(expected.numpy())
    if IS_JAX and layer is Untracked:
        # `keras.Model` loses it there: three batches are three.
        assert expected == 0.0
        expected = 3.0
    assert float(found.numpy()) == pytest.approx(expected)


@pytest.mark.skipif(not IS_JAX, reason="works on other backends")
@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_metrics_of_a_layer_are_refused_on_jax(method):
    model = build(Measured(), start=0.0)
    before = [v.numpy() for v in model.weights]
    arguments = dict(verbose=0)
    if method == "fit":
        arguments["reg_data"] = FLAT_REG
    with pytest.raises(ValueError, match="no metric that a layer updates"):
        getattr(model, method)(FLAT, FLAT_Y, **arguments)
    for one, other in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(one, other.numpy())


@pytest.mark.skipif(IS_JAX, reason="`keras.Model` fails there too")
@EAGER
def test_metrics_of_a_layer_see_the_training_data_alone(run_eagerly):
    model = build(Measured(), start=0.0, run_eagerly=run_eagerly)
    plain = build(Measured(), cls=keras.Model, rho=False)
    plain.set_weights([v.numpy() for v in model.theta_variables])
    model.rho_optimizer.learning_rate = 0.0
    expected = plain.fit(
        FLAT,
        FLAT_Y,
        batch_size=4,
        epochs=2,
        shuffle=False,
        verbose=0,
        validation_data=FLAT_REG,
    ).history
    found = model.fit(
        FLAT,
        FLAT_Y,
        batch_size=4,
        epochs=2,
        shuffle=False,
        verbose=0,
        validation_data=FLAT_REG,
        reg_data=(FLAT_REG[0] + 9, FLAT_REG[1]),
    ).history
    assert {"size", "total", "val_size", "val_total"} < set(expected)
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name


@pytest.mark.skipif(IS_JAX, reason="`keras.Model` fails there too")
def test_metrics_of_a_layer_see_each_example_once_in_evaluate():
    model = build(Measured(), start=0.0)
    plain = build(Measured(), cls=keras.Model, rho=False)
    plain.set_weights([v.numpy() for v in model.theta_variables])
    expected = plain.evaluate(FLAT, FLAT_Y, verbose=0, return_dict=True)
    found = model.evaluate(FLAT, FLAT_Y, verbose=0, return_dict=True)
    assert found == pytest.approx(expected, rel=1e-5)
    assert float(kcr.averaged(model, 2)(FLAT).shape[0]) == 12


class Tracking(kcr.CrossRegModel):
    """Measures the loss in a `compute_loss` of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.tracker = keras.metrics.Mean(name="tracked")

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        self.tracker.update_state(loss)
        return loss


@EAGER
def test_metrics_of_compute_loss_see_the_training_data_alone(run_eagerly):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = SampleTable(0.0)(keras.layers.Dense(4, kernel_regularizer="l2")(inputs))
    model = Tracking(inputs, keras.layers.Dense(1)(x))
    compile_model(model, loss="mse", run_eagerly=run_eagerly)
    history = model.fit(
        FLAT,
        FLAT_Y,
        batch_size=4,
        verbose=0,
        reg_data=(FLAT_REG[0], FLAT_REG[1] + 99),
    ).history
    assert history["tracked"][0] == pytest.approx(history["loss"][0], rel=1e-5)
    assert history["reg_loss"][0] > 1000


@EAGER
def test_losses_by_output_see_the_training_data_alone(run_eagerly):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = SampleTable(0.0)(keras.layers.Dense(4)(inputs))
    outputs = {n: keras.layers.Dense(1, name=n)(x) for n in ("a", "b")}
    model = kcr.CrossRegModel(inputs, outputs)
    compile_model(model, loss={"a": "mse", "b": "mse"}, run_eagerly=run_eagerly)
    far = {n: FLAT_REG[1] + 99 for n in outputs}
    history = model.fit(
        FLAT,
        dict.fromkeys(outputs, FLAT_Y),
        batch_size=4,
        verbose=0,
        reg_data=(FLAT_REG[0], far),
    ).history
    total = history["a_loss"][0] + history["b_loss"][0]
    assert total == pytest.approx(history["loss"][0], rel=1e-5)


def test_what_moves_is_named_once():
    model = build(Counter())
    with pytest.warns(UserWarning, match=r"moves a state .*counter.*calls"):
        model.predict(FLAT, verbose=0)
    before = float(model.layers[3].calls.numpy())
    model.predict(FLAT, verbose=0)
    assert float(model.layers[3].calls.numpy()) == before + 1


def test_a_subclassed_model_with_a_state():
    class Net(kcr.CrossRegModel):
        def __init__(self):
            super().__init__()
            self.table = SampleTable(1.0)
            self.drift = Drift()
            self.dense = keras.layers.Dense(1)

        def call(self, inputs):
            return self.dense(self.drift(self.table(inputs)))

    model = compile_model(Net(), loss="mse", num_samples=3)
    # It has not been built, and nothing moves when it is.
    found = model.predict(FLAT, batch_size=4, verbose=0)
    runs = []
    for k in range(3):
        model.drift.mean.assign(0.0)
        runs.append([one_sample(model, FLAT[i : i + 4], k) for i in (0, 4, 8)])
    expected = np.asarray(runs).reshape(3, 12, 1).mean(axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)
