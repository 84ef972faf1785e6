"""Gaussian noise by the Box-Muller transform."""

import time

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from keras_crossreg import random

ROWS = 200_000


def draw(shape, dtype="float32", seed=0, reuse=1):
    generator = keras.random.SeedGenerator(seed)
    numbers = random.normal(shape, generator, dtype, reuse)
    return keras.ops.convert_to_numpy(numbers)


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
@pytest.mark.parametrize("reuse", [1, 4])
def test_dynamic_shapes(jit_compile, reuse):
    generator = keras.random.SeedGenerator(0)

    @tf.function(
        jit_compile=jit_compile,
        input_signature=[tf.TensorSpec((None, 3), "float32")],
    )
    def like(x):
        return random.normal(keras.ops.shape(x), generator, "float32", reuse)

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


def test_uniform_numbers_are_those_of_keras():
    shape, dtype = (2, 500), "float32"
    ours = random.uniform(shape, keras.random.SeedGenerator(5), dtype)
    theirs = keras.random.uniform(
        shape, dtype=dtype, seed=keras.random.SeedGenerator(5)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_compiled_noise_is_not_slow():
    # Keras's generators are a hundred times slower here.
    times = {}
    for jit_compile in (False, True):
        generator = keras.random.SeedGenerator(0)

        @tf.function(jit_compile=jit_compile)
        def noise(generator=generator):
            return random.normal((500, 1000), generator, "float32", reuse=4)

        noise()
        begin = time.process_time()
        for _ in range(3):
            noise()
        times[jit_compile] = time.process_time() - begin
    assert times[True] < 20 * times[False]


# Numbers that several examples of a training batch share.

# Blocks of 2 * 25 * 200 numbers, above the least.
EXAMPLES, UNITS, REUSE = 200, 200, 4


def shared(seed=0):
    return draw((EXAMPLES, UNITS), seed=seed, reuse=REUSE).astype("float64")


def test_each_number_is_used_as_often_as_said():
    x = shared()
    values, counts = np.unique(np.abs(x), return_counts=True)
    # Some are equal by chance, in 23 bits.
    assert len(values) == pytest.approx(x.size / REUSE, rel=0.01)
    assert np.median(counts) == REUSE
    # With either sign as often.
    assert abs(x.sum()) < 1e-6 * np.abs(x).sum()


@pytest.mark.parametrize("shape", [(1, 300), (3, 5000), (7, 9, 999), (9, 1)])
def test_no_example_uses_a_number_twice(shape):
    x = np.abs(draw(shape, reuse=REUSE).reshape(shape[0], -1))
    assert x.shape == (shape[0], np.prod(shape[1:]))
    for example in x:
        # But for those that are equal by chance, n^2 / 2^24 at the most.
        assert len(np.unique(example)) >= example.size * 0.999


def test_small_tensors_share_nothing():
    x = np.abs(draw((64, 20), reuse=REUSE))
    assert len(np.unique(x)) == x.size
    np.testing.assert_array_equal(draw((64, 20), reuse=REUSE), draw((64, 20)))


def test_shared_numbers_are_normal():
    # 10,000 different ones in each of 20 batches. Standard errors as above,
    # and one test of Kolmogorov and Smirnov over all of them: a right
    # generator fails with probability 1e-4, at these seeds never.
    x = np.concatenate([shared(seed) for seed in range(20)])
    n = x.size / REUSE
    assert abs(x.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs(scipy.stats.kurtosis(x, axis=None)) < 5 * np.sqrt(24 / n)
    # Without the signs, which are even by construction.
    numbers = np.unique(np.abs(x))
    assert scipy.stats.kstest(numbers, scipy.stats.halfnorm.cdf).pvalue > 1e-4


@pytest.fixture(scope="module")
def batches():
    return np.stack([shared(seed) for seed in range(60)])


def test_units_and_calls_are_independent(batches):
    # Of one example; 5 standard errors, of x and of x^2, as above: fails with
    # probability 2e-6, at these seeds never.
    for y in (batches, batches**2 - 1):
        y = y[:, 0]
        for one, other in ((y[:, 1:], y[:, :-1]), (y[1:], y[:-1])):
            correlation = (one * other).mean() / y.var()
            assert abs(correlation) < 5 / np.sqrt(one.size)


def test_examples_are_independent_but_for_a_chance(batches):
    # Unit by unit: two examples meet the same number in the same unit once in
    # 10,000. 5 standard errors: fails with probability 4e-6, at these seeds
    # never.
    for y in (batches, (batches**2 - 1) / np.sqrt(2)):
        for other in (1, 50, 150):
            correlation = (y[:, 0] * y[:, other]).mean()
            assert abs(correlation) < 5 / np.sqrt(y[:, 0].size)


def test_gradients_of_theta_are_as_precise():
    # The gradient of a linear layer behind the noise, for targets y: its
    # variance over draws of the noise, summed over the 200 units, must not
    # rise. The shares of the units are nearly independent, so that the
    # relative standard error is about sqrt(2 / (200 * 60)) = 1 %; we allow 10
    # of it. With all blocks in step and of one sign it would be 4 times as
    # large.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(EXAMPLES, UNITS))
    w = rng.normal(size=UNITS) / np.sqrt(UNITS)
    y = rng.normal(size=EXAMPLES)
    spread = {}
    for reuse in (1, REUSE):
        gradients = []
        for seed in range(60):
            eps = draw((EXAMPLES, UNITS), seed=seed, reuse=reuse)
            h = np.maximum(x + eps, 0)
            gradients.append((h @ w - y) @ h / EXAMPLES)
        spread[reuse] = np.var(gradients, axis=0).sum()
    assert spread[REUSE] < 1.1 * spread[1]
