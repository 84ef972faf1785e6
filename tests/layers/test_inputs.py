"""Inputs that are padded, integer or complex."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_crossreg as kcr


def padded(length, rows=3000):
    """Five steps of four numbers of deviation 3, and zeros."""
    x = np.zeros((rows, length, 4), "float32")
    x[:, :5] = 3 * np.random.default_rng(0).normal(size=(rows, 5, 4))
    mask = np.zeros((rows, length), bool)
    mask[:, :5] = True
    return x, mask


def added(x, mask, **flags):
    layer = kcr.layers.GaussianNoiseScale(0.5, relative=True, seed=1)
    y = layer(ops.convert_to_tensor(x), mask=mask, **flags)
    return (ops.convert_to_numpy(y) - x)[:, :5]


@pytest.mark.parametrize("flags", [{"training": True}, {"sampling": True}])
def test_relative_noise_does_not_depend_on_padding(flags):
    expected = added(*padded(5), **flags).std()
    for length in (20, 100):
        # 60,000 numbers, whose deviation has a standard error of 0.3 %, a
        # little more as that of each example is measured: six of them.
        found = added(*padded(length), **flags).std()
        assert found == pytest.approx(expected, rel=0.02)
    # Without a mask the zeros count.
    x, _ = padded(100)
    assert added(x, None, **flags).std() < 0.5 * expected


def test_a_mask_of_everything_is_no_mask():
    x, mask = padded(5)
    np.testing.assert_allclose(
        added(x, mask, training=True),
        added(x, None, training=True),
        rtol=1e-4,
        atol=1e-5,
    )


def test_an_example_that_is_all_padding_gets_no_noise():
    x = np.ones((2, 3, 4), "float32")
    mask = np.array([[False] * 3, [True] * 3])
    layer = kcr.layers.GaussianNoiseScale(relative=True)
    y = ops.convert_to_numpy(layer(x, mask=mask, training=True))
    np.testing.assert_array_equal(y[0], x[0])


def test_dropped_integers_have_the_mean_of_what_came_in():
    x = np.full((400, 400), 100, "uint8")
    for rate in (0.1, 0.3, 0.5):
        layer = kcr.layers.LearnedDropout(rate, seed=0)
        y = ops.convert_to_numpy(layer(x, training=True))
        # Five standard errors of the mean over 160,000 numbers; it fails with
        # probability 6e-7 for each, at this seed never.
        error = 100 * np.sqrt(rate / (1 - rate) / x.size)
        assert abs(y.mean() - 100) < 5 * error
        dtype = keras.backend.standardize_dtype(layer(x).dtype)
        assert dtype == "float32"


def test_integers_are_divided_as_numbers():
    y = kcr.layers.Temperature(2.0)(np.array([[1, 3]]))
    np.testing.assert_allclose(y, [[0.5, 1.5]])


@pytest.mark.parametrize(
    "layer",
    [
        kcr.layers.GaussianNoiseScale(),
        kcr.layers.LearnedDropout(),
        kcr.layers.LearnedGaussianDropout(),
        kcr.layers.Temperature(),
    ],
)
def test_complex_numbers_are_refused(layer):
    message = "takes real numbers.*Received: inputs of dtype complex64$"
    with pytest.raises(ValueError, match=message):
        layer(np.ones((2, 3), "complex64"), training=True)
