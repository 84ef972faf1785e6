import keras
import numpy as np
import pytest
from helpers import compile_model
from helpers import gradients
from helpers import make_data
from helpers import values
from keras import Variable
from keras import ops

import keras_crossreg as kcr
from keras_crossreg.layers import LearnedDropout

SHAPE = (400, 50, 4)


def ones(shape=SHAPE):
    return np.ones(shape, "float32")


def mask(layer, shape=SHAPE, **flags):
    """What the layer multiplies with."""
    flags = flags or {"training": True}
    return ops.convert_to_numpy(layer(ones(shape), **flags))


def test_starts_at_its_documented_rate():
    layer = LearnedDropout()
    layer.build((None, 3))
    assert layer.rate == pytest.approx(0.1)


# What it draws.


@pytest.mark.parametrize("flags", [{"training": True}, {"sampling": True}])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_is_dropout(flags, rate):
    factors = mask(LearnedDropout(rate, seed=0), **flags)
    dropped = factors < 1e-4
    # Something is left of the dropped where a gradient has to go through.
    assert (factors[dropped] == 0).all() or flags == {"sampling": True}
    kept = factors[~dropped]
    np.testing.assert_allclose(kept, 1 / (1 - rate), rtol=1e-5)
    # We allow 5 standard errors over n = 80,000 masks: a right layer fails with
    # probability 1e-6, at this seed never.
    n = factors.size
    error = 5 * np.sqrt(rate * (1 - rate) / n)
    assert abs(1 - kept.size / n - rate) < error


@pytest.mark.parametrize(
    ("axis", "shape"), [(-1, (1, 4)), (1, (50, 1)), ((1, 2), (50, 4))]
)
def test_a_rate_for_each_index_of_an_axis(axis, shape):
    layer = LearnedDropout(axis=axis, seed=0)
    layer.build(SHAPE)
    assert layer.rate.shape == shape
    rates = np.linspace(0.1, 0.8, int(np.prod(shape))).reshape(shape)
    layer.rho.assign(kcr.rho.stored_value(layer.rho, rates))
    np.testing.assert_allclose(layer.rate, rates, rtol=1e-5)
    free = tuple(i for i, size in enumerate((0, *shape)) if size in (0, 1))
    n = np.prod([SHAPE[i] for i in free])
    # We allow 5 standard errors for each of up to 200 rates: a right layer
    # fails with probability 1e-4, at this seed never.
    dropped = (mask(layer) == 0).mean(axis=free)
    deviations = dropped.reshape(-1) - rates.reshape(-1)
    errors = np.sqrt(rates * (1 - rates) / n).reshape(-1)
    assert (np.abs(deviations) < 5 * errors).all()


@pytest.mark.parametrize(
    "noise_shape",
    [(None, 1, 4), (None, 50, 1), (None, 1, 1), (None, 1, None)],
)
def test_noise_shape_drops_together(noise_shape):
    layer = LearnedDropout(0.5, seed=0, noise_shape=noise_shape)
    factors = mask(layer)
    for axis, size in enumerate(noise_shape):
        spread = np.ptp(factors, axis=axis)
        assert (spread == 0).all() if size == 1 else (spread > 0).any()


def test_identity_in_inference():
    x = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
    layer = LearnedDropout(0.8)
    for flags in ({}, {"training": False}, {"sampling": False}):
        np.testing.assert_array_equal(layer(x, **flags), x)


def test_seeds():
    one, same, other = (mask(LearnedDropout(seed=s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    layer = LearnedDropout(seed=1)
    assert (mask(layer) != mask(layer)).any()


# The gradients.


@pytest.mark.parametrize("axis", [None, -1])
def test_gradient_of_the_rate_equals_finite_differences(axis):
    # The differences are those of a noise of deviation exp(rho / 2), which
    # keeps the shape that was drawn.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 3)).astype("float32")
    w = rng.normal(size=(6, 3))
    layer, same = (LearnedDropout(0.3, axis=axis, seed=0) for _ in range(2))
    layer.build(x.shape)
    (found,) = gradients(
        lambda: ops.multiply(ops.tanh(layer(x, sampling=True)), w), [layer.rho]
    )
    y = ops.convert_to_numpy(same(x, sampling=True))
    standard = (y / x - 1) * np.sqrt(0.7 / 0.3)

    def loss_at(rho):
        return (np.tanh(x * (1 + np.exp(rho / 2) * standard)) * w).sum()

    rho, h = np.broadcast_to(*values([layer.rho]), (1, 3)), 1e-4
    steps = np.eye(3) if axis else np.ones((1, 3))
    expected = [
        (loss_at(rho + h * s) - loss_at(rho - h * s)) / (2 * h) for s in steps
    ]
    np.testing.assert_allclose(np.ravel(found), expected, rtol=2e-3)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_gradient_of_the_averaged_loss_is_exact_for_a_linear_model(rate):
    # The average of K samples has the loss (t - w.x)^2 + sum (w x)^2 e^rho / K.
    rows, num_samples = 4000, 4
    rng = np.random.default_rng(0)
    w = np.array([1.0, -2.0, 0.5])
    x = rng.normal(size=(rows, 3)).astype("float32")
    y = (x @ w + 0.5).astype("float32")
    layer = LearnedDropout(rate, seed=0)
    inputs = keras.Input((3,))
    dense = keras.layers.Dense(1, use_bias=False)
    model = kcr.CrossRegModel(inputs, dense(layer(inputs)))
    dense.set_weights([w[:, None]])
    compile_model(
        model,
        optimizer=keras.optimizers.SGD(0.0),
        rho_optimizer=keras.optimizers.SGD(1.0),
        loss="mse",
        num_samples=num_samples,
        hypergradient="direct",
    )
    before = float(layer.rho.numpy())
    reg = {"reg_data": (x, y), "reg_batch_size": rows}
    model.fit(x[:8] + 1, y[:8], batch_size=8, verbose=0, **reg)
    found = before - float(layer.rho.numpy())

    odds = rate / (1 - rate)
    expected = ((w * x) ** 2).sum(axis=1).mean() * odds / num_samples
    # The spread of one row's gradient comes from draws of our own. We allow 5
    # standard errors: a right layer fails with probability 6e-7, at this seed
    # never.
    kept = rng.uniform(size=(num_samples, rows, 3)) < 1 - rate
    noise = (kept / (1 - rate) - 1) * x
    change = (noise @ w).mean(axis=0)
    by_row = 2 * (x @ w + change - y) * change / 2
    assert abs(found - expected) < 5 * by_row.std() / np.sqrt(rows)
    assert 5 * by_row.std() / np.sqrt(rows) < 0.4 * expected


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_gradient_is_the_same_before_and_behind_a_relu(dtype):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 64, 32)).astype("float32")

    def gradient(*order):
        layer = LearnedDropout(0.3, seed=0, dtype=dtype)
        layer.build(x.shape)

        def outputs():
            y = x
            for name in order:
                y = ops.relu(y) if name == "relu" else layer(y, sampling=True)
            return ops.multiply(w, ops.cast(y, "float32"))

        (found,) = gradients(outputs, [layer.rho])
        return float(found)

    behind = gradient("relu", "dropout")
    assert gradient("dropout", "relu") == pytest.approx(behind, rel=1e-2)


def test_gradient_of_the_inputs_is_the_mask():
    x = Variable(ones((5, 4)))
    layer, same = (LearnedDropout(0.5, seed=0) for _ in range(2))
    (by_x,) = gradients(
        lambda: layer(ops.convert_to_tensor(x), training=True), [x]
    )
    np.testing.assert_array_equal(by_x, mask(same, (5, 4)))


# Range and precision.


def test_extreme_rates_stay_finite():
    layer = LearnedDropout(seed=0)
    layer.build(SHAPE)
    for rho in (-100.0, 100.0):
        layer.rho.assign(rho)
        assert np.isfinite(mask(layer, sampling=True)).all()
        (by_rho,) = gradients(lambda: layer(ones(), sampling=True), [layer.rho])
        assert np.isfinite(by_rho)


@pytest.mark.parametrize(
    "policy", ["mixed_float16", "mixed_bfloat16", "float64"]
)
def test_is_dropout_under_every_dtype_policy(policy):
    layer = LearnedDropout(0.25, seed=0, dtype=policy)
    y = mask(layer).astype("float32")
    assert y.max() == pytest.approx(4 / 3, rel=1e-2)
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.01)


def test_the_gradient_of_many_half_precision_inputs_is_finite():
    x = np.full((500, 400), 100.0, "float16")
    layer, same = (
        LearnedDropout(0.5, seed=0, dtype="mixed_float16") for _ in range(2)
    )
    layer.build(x.shape)

    def added(layer=layer):
        y = ops.cast(layer(x, sampling=True), "float32")
        return ops.maximum(ops.subtract(y, x.astype("float32")), 0)

    (by_rho,) = gradients(added, [layer.rho])
    # Half of the inputs are kept, each 100 more than it was.
    total = ops.convert_to_numpy(added(same)).sum()
    assert by_rho == pytest.approx(total / 2, rel=1e-3)
    assert by_rho > 1e6


# In a model.


def make_model(**kwargs):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = keras.layers.Dense(6, activation="relu")(inputs)
    x = LearnedDropout(0.4, seed=1, name="drop", **kwargs)(x)
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    return kcr.CrossRegModel(inputs, outputs)


def test_set_rho():
    model = make_model()
    for rate in (0.7, 0.0, 1.0):
        model.set_rho({"drop/rate": rate})
        assert model.get_rho()["drop/rate"] == pytest.approx(rate, abs=1e-6)
        # A value that is read can be set.
        model.set_rho(model.get_rho())
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"from 0 to 1. .*/rate={rate}$"):
            model.set_rho({"drop/rate": rate})


def test_a_rate_of_zero_drops_nothing():
    x, _ = make_data()
    model = make_model()
    model.set_rho({"drop/rate": 0.0})
    np.testing.assert_allclose(model.predict(x, verbose=0), model(x), rtol=1e-5)


def test_samples_have_masks_of_their_own():
    x, _ = make_data()
    model = make_model(noise_shape=(None, 1))
    samples = model.predict_samples(x, verbose=0)
    # Fewer than one row in 60 has sixteen masks alike.
    assert (np.ptp(samples, axis=0) > 0).any(axis=1).mean() > 0.8
    np.testing.assert_allclose(
        samples.mean(axis=0), model.predict(x, verbose=0), rtol=1e-5
    )


# Errors.


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, float("nan"), "often"])
def test_refuses_a_rate_out_of_range(value):
    match = f"above 0 and below 1. Received: initial_rate={value}$"
    with pytest.raises(ValueError, match=match):
        LearnedDropout(value)


@pytest.mark.parametrize("axis", [0, -3, 3])
def test_axis_errors(axis):
    with pytest.raises(ValueError, match=f"`axis` must .*axis={axis}, "):
        LearnedDropout(axis=axis).build((None, 2, 3))


@pytest.mark.parametrize(
    "noise_shape", [(1, 1, None), (8, None, 3), (None, 2), (None, 4, None)]
)
def test_noise_shape_errors(noise_shape):
    with pytest.raises(ValueError, match="`noise_shape` must .*Received: noi"):
        LearnedDropout(noise_shape=noise_shape).build((None, 2, 3))
