"""Gaussian noise by the Box-Muller transform."""

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from keras_crossreg import random

ROWS = 200_000


def draw(shape, dtype="float32", seed=0):
    generator = keras.random.SeedGenerator(seed)
    return keras.ops.convert_to_numpy(random.normal(shape, generator, dtype))


def test_moments():
    # Standard errors over n numbers: mean 1 / sqrt(n), variance sqrt(2 / n),
    # skewness sqrt(6 / n), excess kurtosis sqrt(24 / n). We allow 5 of each:
    # a right generator fails with probability 4 * 6e-7, at this seed never.
    x = draw((ROWS,)).astype("float64")
    assert abs(x.mean()) < 5 * np.sqrt(1 / ROWS)
    assert abs(x.var() - 1) < 5 * np.sqrt(2 / ROWS)
    assert abs(scipy.stats.skew(x)) < 5 * np.sqrt(6 / ROWS)
    assert abs(scipy.stats.kurtosis(x)) < 5 * np.sqrt(24 / ROWS)


def test_distribution():
    # A right generator fails with probability 1e-4, at this seed never.
    result = scipy.stats.kstest(draw((ROWS,)), scipy.stats.norm.cdf)
    assert result.pvalue > 1e-4


def test_the_two_halves_are_uncorrelated():
    # Cosine and sine of one angle. 5 standard errors, as above.
    a, b = draw((2, ROWS // 2))
    for one, other in ((a, b), (a**2, b**2), (a, b**2)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(ROWS / 2)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5), (5, 1, 3), (0, 4)])
def test_shapes(shape):
    x = draw(shape)
    assert x.shape == shape
    assert np.isfinite(x).all()
    assert len(np.unique(x)) == x.size


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(dtype):
    x = draw((7, 3), dtype)
    assert str(x.dtype) == dtype
    assert np.isfinite(x.astype("float32")).all()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_dynamic_shapes(jit_compile):
    generator = keras.random.SeedGenerator(0)

    @tf.function(
        jit_compile=jit_compile,
        input_signature=[tf.TensorSpec((None, 3), "float32")],
    )
    def like(x):
        return random.normal(keras.ops.shape(x), generator, "float32")

    for rows in (4, 5):
        x = like(np.zeros((rows, 3), "float32")).numpy()
        assert x.shape == (rows, 3)
        assert len(np.unique(x)) == x.size


def test_seeds():
    np.testing.assert_array_equal(draw((9,), seed=3), draw((9,), seed=3))
    assert (draw((9,), seed=3) != draw((9,), seed=4)).any()
    generator = keras.random.SeedGenerator(0)
    first, second = (random.normal((9,), generator, "float32") for _ in "ab")
    assert (keras.ops.convert_to_numpy(first) != second.numpy()).all()
