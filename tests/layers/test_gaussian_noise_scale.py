import keras
import numpy as np
import pytest
from helpers import gradients
from keras import Variable
from keras import ops

import keras_crossreg as kcr
from keras_crossreg.layers import GaussianNoiseScale

SHAPE = (400, 50, 4)


def zeros(shape=SHAPE):
    return np.zeros(shape, "float32")


def noise(layer, x=None, **flags):
    """What the layer adds."""
    x = zeros() if x is None else x
    flags = flags or {"training": True}
    return ops.convert_to_numpy(layer(x, **flags)) - x


def test_integers_get_noise_too():
    x = np.full((400, 50), 7, "uint8")
    layer = GaussianNoiseScale(0.3, seed=1)
    added = noise(layer, x)
    # We allow 5 standard errors of the deviation of 20,000 numbers.
    assert added.std() == pytest.approx(0.3, abs=5 * 0.3 / np.sqrt(40_000))
    # The outputs are of one dtype with and without noise.
    for outputs in (layer(x), layer(x, sampling=True)):
        dtype = keras.backend.standardize_dtype(outputs.dtype)
        assert dtype == "float32"


def test_starts_at_its_documented_scale():
    layer = GaussianNoiseScale()
    layer.build((None, 3))
    assert layer.scale == pytest.approx(layer.initial_scale)


@pytest.mark.parametrize("flags", [{"training": True}, {"sampling": True}])
def test_moments(flags):
    # We allow 5 standard errors of mean and variance over n = 80,000 numbers: a
    # right layer fails with probability 1e-6, at this seed never.
    sigma, n = 1.5, np.prod(SHAPE)
    eps = noise(GaussianNoiseScale(sigma, seed=0), **flags) / sigma
    assert abs(eps.mean()) < 5 / np.sqrt(n)
    assert abs(eps.var() - 1) < 5 * np.sqrt(2 / n)


@pytest.mark.parametrize(
    ("axis", "shape"),
    [(-1, (1, 4)), (2, (1, 4)), (1, (50, 1)), ((1, 2), (50, 4))],
)
def test_a_scale_for_each_index_of_an_axis(axis, shape):
    layer = GaussianNoiseScale(axis=axis, seed=0)
    layer.build(SHAPE)
    assert layer.scale.shape == shape
    scales = np.linspace(0.5, 10.0, int(np.prod(shape))).reshape(shape)
    layer.rho.assign(kcr.rho.stored_value(layer.rho, scales))
    eps = noise(layer) / scales
    free = tuple(i for i, size in enumerate((0, *shape)) if size in (0, 1))
    n = np.prod([SHAPE[i] for i in free])
    # We allow 5 standard errors for each of up to 200 scales: a right layer
    # fails with probability 1e-4, at this seed never.
    deviations = (eps**2).mean(axis=free) - 1
    assert np.abs(deviations).max() < 5 * np.sqrt(2 / n)


def test_channels_first():
    layer = GaussianNoiseScale(axis=1)
    layer.build((None, 3, 8, 8))
    assert layer.scale.shape == (3, 1, 1)
    assert layer(zeros((2, 3, 8, 8)), training=True).shape == (2, 3, 8, 8)


def test_large_scales():
    assert noise(GaussianNoiseScale(13.0, seed=0)).std() == pytest.approx(
        13.0, rel=0.05
    )


def test_identity_in_inference():
    x = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
    layer = GaussianNoiseScale(3.0)
    for flags in ({}, {"training": False}, {"sampling": False}):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(layer(x, **flags)), x
        )


def test_relative_is_in_units_of_each_examples_deviation():
    rng = np.random.default_rng(0)
    deviations = np.array([1.0, 10.0, 100.0])
    x = 7 + deviations[:, None] * rng.normal(size=(3, 20_000))
    x = x.astype("float32")
    added = noise(GaussianNoiseScale(0.5, relative=True, seed=0), x)
    # We allow 5 standard errors of each deviation, 5 / sqrt(2 * 20000) = 2.5 %:
    # a right layer fails with probability 2e-6, at this seed never.
    np.testing.assert_allclose(
        added.std(axis=1), 0.5 * x.std(axis=1), rtol=0.025
    )


def test_relative_cannot_be_outgrown():
    # The gradient of the deviation is stopped: dy / dx is 1, as without noise.
    x = Variable([[1.0, 2.0, 4.0]])
    layer = GaussianNoiseScale(0.5, relative=True)
    (by_x,) = gradients(
        lambda: layer(ops.convert_to_tensor(x), training=True), [x]
    )
    np.testing.assert_allclose(by_x, np.ones((1, 3)))


def test_gradient_of_sigma_is_the_noise():
    layer, same = (GaussianNoiseScale(0.5, seed=0) for _ in range(2))
    layer.build(SHAPE)
    (by_rho,) = gradients(lambda: layer(zeros(), sampling=True), [layer.rho])
    # dy / drho = eps * sigmoid(rho), for sigma = softplus(rho).
    eps = noise(same, sampling=True) / 0.5
    expected = eps.sum() * float(ops.sigmoid(layer.rho))
    assert float(by_rho) == pytest.approx(expected, rel=1e-4)


def test_seeds():
    one, same, other = (noise(GaussianNoiseScale(seed=s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    layer = GaussianNoiseScale(seed=1)
    assert (noise(layer) != noise(layer)).any()


@pytest.mark.parametrize(
    "policy", ["mixed_float16", "mixed_bfloat16", "float64"]
)
def test_the_deviation_is_sigma_under_every_dtype_policy(policy):
    layer = GaussianNoiseScale(2.0, dtype=policy)
    y = ops.convert_to_numpy(layer(zeros(), training=True))
    assert layer.scale == pytest.approx(2.0)
    assert y.astype("float64").std() == pytest.approx(2.0, rel=0.1)


def test_half_precision_does_not_overflow_in_relative_mode():
    x = np.full((2, 3), 3e4, "float16") * np.array([1, 0.5, -1], "float16")
    layer = GaussianNoiseScale(0.1, relative=True, dtype="mixed_float16")
    assert np.isfinite(noise(layer, x)).all()


@pytest.mark.parametrize(
    ("axis", "shape"),
    [
        (0, (None, 3)),
        (-2, (None, 3)),
        (2, (None, 3)),
        ((1, 3), (None, 3, 3)),
        (1, (None, None, 3)),
    ],
)
def test_axis_errors(axis, shape):
    layer = GaussianNoiseScale(axis=axis)
    with pytest.raises(ValueError, match="`axis` must name.*Received: axis="):
        layer.build(shape)


def test_relative_needs_more_than_one_element():
    with pytest.raises(ValueError, match="Received: input_shape="):
        GaussianNoiseScale(relative=True).build((None, 1))


def test_the_gradient_of_sigma_is_not_summed_in_sixteen_bits():
    found = []
    for policy in ("float32", "mixed_float16"):
        layer = GaussianNoiseScale(0.5, seed=1, dtype=policy)
        layer.build((None, 64, 64))
        x = ops.zeros((64, 64, 64), layer.compute_dtype)

        def squares(layer=layer, x=x):
            return ops.square(ops.cast(layer(x, sampling=True), "float32"))

        found += gradients(squares, [layer.rho])
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    # The sum is beyond the largest number in sixteen bits.
    assert found[0] > 65_504
