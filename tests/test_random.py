"""Gaussian noise: shared on a CPU, of the backend's generator elsewhere."""

import contextlib

import keras
import numpy as np
import pytest
import scipy.stats

import keras_crossreg as kcr
from keras_crossreg import primitives
from keras_crossreg import random

pytestmark = pytest.mark.backend

# PyTorch makes normal numbers itself, for every example anew, and so does
# every backend on an accelerator.
SHARES = pytest.mark.skipif(
    not primitives.shares_numbers(), reason="no number is used twice"
)
ROWS = 200_000
# Blocks have 2 * 25 * 200 numbers, above the least.
EXAMPLES, UNITS, REUSE = 400, 200, 8


@pytest.fixture(params=["here", "accelerator"])
def place(request):
    """Numbers as they are made on this device, and on an accelerator."""
    if request.param == "here":
        yield
        return
    with random.as_on_an_accelerator():
        yield


def draw(shape, dtype="float32", seed=0, reuse=1, num_samples=1):
    generator = keras.random.SeedGenerator(seed)
    numbers = random.normal(shape, generator, dtype, num_samples, reuse)
    return keras.ops.convert_to_numpy(numbers)


def test_moments(place):
    # Standard errors over n numbers are: mean 1 / sqrt(n), variance sqrt(2 /
    # n), skewness sqrt(6 / n), excess kurtosis sqrt(24 / n). We allow 5 of
    # each: a right generator fails with probability 4 * 6e-7, at this seed
    # never.
    x = draw((ROWS,)).astype("float64")
    assert abs(x.mean()) < 5 * np.sqrt(1 / ROWS)
    assert abs(x.var() - 1) < 5 * np.sqrt(2 / ROWS)
    assert abs(scipy.stats.skew(x)) < 5 * np.sqrt(6 / ROWS)
    assert abs(scipy.stats.kurtosis(x)) < 5 * np.sqrt(24 / ROWS)


def test_distribution(place):
    # A right generator fails with probability 1e-4, at this seed never.
    result = scipy.stats.kstest(draw((ROWS,)), scipy.stats.norm.cdf)
    assert result.pvalue > 1e-4


def test_the_two_halves_are_uncorrelated(place):
    # They are cosine and sine of one angle. We allow 5 standard errors, as
    # above.
    a, b = draw((2, ROWS // 2))
    for one, other in ((a, b), (a**2, b**2), (a, b**2)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(ROWS / 2)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5), (5, 1, 3), (0, 4)])
def test_shapes(place, shape):
    x = draw(shape)
    assert x.shape == shape
    assert np.isfinite(x).all()
    assert len(np.unique(x)) == x.size


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(place, dtype):
    x = draw((7, 3), dtype)
    assert str(x.dtype) == dtype
    assert np.isfinite(x.astype("float32")).all()


def test_seeds(place):
    np.testing.assert_array_equal(draw((9,), seed=3), draw((9,), seed=3))
    assert (draw((9,), seed=3) != draw((9,), seed=4)).any()
    generator = keras.random.SeedGenerator(0)
    first, second = (
        keras.ops.convert_to_numpy(random.normal((9,), generator, "float32"))
        for _ in range(2)
    )
    assert (first != second).all()


@pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="Keras adds seed and counter, which are mixed here",
)
def test_uniform_numbers_are_those_of_keras(place):
    shape, dtype = (2, 500), "float32"
    ours = random.uniform(shape, keras.random.SeedGenerator(5), dtype)
    theirs = keras.random.uniform(
        shape, dtype=dtype, seed=keras.random.SeedGenerator(5)
    )
    np.testing.assert_array_equal(ours, theirs)


# Numbers of an accelerator.


@pytest.fixture(params=[1, 4])
def all_different(request):
    """A batch of one sample or of four, of 400 examples in all."""
    with random.as_on_an_accelerator():
        return draw((EXAMPLES, UNITS), reuse=REUSE, num_samples=request.param)


def test_no_number_is_used_twice_on_an_accelerator(all_different):
    # Of 80,000 numbers with 23 bits at the least some are equal by chance,
    # n / 2^24 of them.
    assert len(np.unique(np.abs(all_different))) >= all_different.size * 0.98


def test_examples_are_independent_on_an_accelerator(all_different):
    # Of x and of x^2, for examples that stand at five distances, 50 and 100
    # among them, where blocks would be on a CPU, and for units that stand
    # next to each other. We allow 5 standard errors of twelve correlations: a
    # right generator fails with probability 7e-6, at these seeds never.
    x = all_different.astype("float64")
    for y in (x, (x**2 - 1) / np.sqrt(2)):
        for one, other in (
            *((y[:-k], y[k:]) for k in (1, 50, 100, 200, 300)),
            (y[:, :-1], y[:, 1:]),
        ):
            correlation = (one * other).mean()
            assert abs(correlation) < 5 / np.sqrt(one.size)


LAYERS = {
    "noise": lambda: kcr.layers.GaussianNoiseScale(0.5, seed=1),
    "gaussian_dropout": lambda: kcr.layers.LearnedGaussianDropout(0.2, seed=1),
    "dropout": lambda: kcr.layers.LearnedDropout(0.2, seed=1),
}


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_have_the_same_statistics_on_an_accelerator(kind, sampling):
    # The inputs are 1: what comes out has mean 1 and variance 1 / 4, which is
    # also rate / (1 - rate). Standard errors over n numbers: mean
    # sqrt(.25 / n); variance, at most, .375 / sqrt(n), with a fourth central
    # moment of 3 / 16 or, of dropout, .2; we allow 5 of each. A right layer
    # fails with probability 1.2e-6, at these seeds never.
    x = np.ones((EXAMPLES, UNITS), "float32")
    flags = dict(sampling=True) if sampling else dict(training=True)

    def outputs(scope):
        with scope:
            y = keras.ops.convert_to_numpy(LAYERS[kind]()(x, **flags))
        return y.astype("float64")

    for scope in (contextlib.nullcontext(), random.as_on_an_accelerator()):
        y = outputs(scope)
        # On a CPU eight examples share a number.
        n = y.size / (REUSE if isinstance(scope, contextlib.nullcontext) else 1)
        assert abs(y.mean() - 1) < 5 * np.sqrt(0.25 / n)
        assert abs(y.var() - 0.25) < 5 * 0.375 / np.sqrt(n)


def test_augmentation_draws_on_an_accelerator():
    # Shifts by up to 2 pixels of images that are linear in the place: what
    # comes out in their middle is the shift, uniform. A right layer fails
    # with probability 1e-4, at this seed never.
    layer = kcr.layers.LearnedAugmentation(
        **dict.fromkeys(("rotation", "shear", "zoom", "brightness")),
        translation=2.0,
        contrast=None,
        data_format="channels_last",
        seed=1,
    )
    ramp = np.broadcast_to(np.arange(9.0)[:, None, None], (4000, 9, 9, 1))
    with random.as_on_an_accelerator():
        y = layer(ramp.astype("float32"), training=True)
    shifts = keras.ops.convert_to_numpy(y)[:, 4, 4, 0] - 4.0
    result = scipy.stats.kstest(shifts, scipy.stats.uniform(-2, 4).cdf)
    assert result.pvalue > 1e-4


def test_training_learns_with_noise_of_an_accelerator():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 3)).astype("float32")
    y = (x[:, 0] > 0).astype("int32")
    inputs = keras.Input((3,))
    h = keras.layers.Dense(4)(inputs)
    h = kcr.layers.GaussianNoiseScale(0.3, name="noise")(h)
    h = kcr.layers.LearnedDropout(0.2)(h)
    model = kcr.CrossRegModel(inputs, keras.layers.Dense(2)(h))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, num_samples=4, reg_freq=1, reg_warmup=0)
    with random.as_on_an_accelerator():
        history = model.fit(
            x, y, batch_size=16, epochs=2, verbose=0, reg_split=0.4
        ).history
        predicted = model.predict(x, verbose=0)
        again = model.predict(x, verbose=0)
    assert np.isfinite([history["loss"], history["reg_loss"]]).all()
    assert all(
        np.all(v != s)
        for v, s in zip(model.get_rho().values(), (0.3, 0.2), strict=True)
    )
    # Samples are repeated until training goes on, here too.
    np.testing.assert_array_equal(predicted, again)


# Numbers that several examples of a batch share.


def shared(seed=0):
    return draw((EXAMPLES, UNITS), seed=seed, reuse=REUSE).astype("float64")


@SHARES
def test_each_number_is_used_as_often_as_said():
    x = shared()
    values, counts = np.unique(np.abs(x), return_counts=True)
    # Some numbers are equal by chance, in 23 bits.
    assert len(values) == pytest.approx(x.size / REUSE, rel=0.01)
    assert np.median(counts) == REUSE
    # A number has either sign as often.
    assert abs(x.sum()) < 1e-6 * np.abs(x).sum()


@pytest.mark.parametrize("shape", [(1, 300), (3, 5000), (7, 9, 999), (9, 1)])
def test_no_example_uses_a_number_twice(shape):
    x = np.abs(draw(shape, reuse=REUSE).reshape(shape[0], -1))
    assert x.shape == (shape[0], np.prod(shape[1:]))
    for example in x:
        # Some numbers are equal by chance, n^2 / 2^24 at the most.
        assert len(np.unique(example)) >= example.size * 0.999


def test_small_tensors_share_nothing():
    x = np.abs(draw((64, 20), reuse=REUSE))
    assert len(np.unique(x)) == x.size
    np.testing.assert_array_equal(draw((64, 20), reuse=REUSE), draw((64, 20)))


SAMPLES = 4


def shared_in_samples(seed=0, num_samples=SAMPLES):
    """`(K, examples, units)`, the examples' numbers shared in each sample."""
    x = draw(
        (SAMPLES * EXAMPLES, UNITS),
        seed=seed,
        reuse=REUSE,
        num_samples=num_samples,
    )
    return x.reshape(SAMPLES, EXAMPLES, UNITS).astype("float64")


@SHARES
def test_samples_of_an_example_share_no_number():
    x = np.abs(shared_in_samples())
    for sample in x:
        values = np.unique(sample)
        assert len(values) == pytest.approx(sample.size / REUSE, rel=0.01)
    every = np.concatenate([np.unique(sample) for sample in x])
    # Some numbers are equal by chance, n / 2^23 of them.
    assert len(np.unique(every)) >= every.size * 0.98


def test_nothing_is_shared_where_the_samples_are_not_known():
    x = shared_in_samples(num_samples=None)
    assert len(np.unique(np.abs(x))) >= x.size * 0.98


def test_the_mean_of_samples_is_that_of_independent_ones():
    # The mean of K = 4, for 200 units, has variance 1 / K. The 10,000 numbers
    # of a block count, in 20 batches: the standard error of the variance is
    # sqrt(2 / 2e5), of which we allow 5.
    means = np.stack([shared_in_samples(seed).mean(0) for seed in range(20)])
    error = np.sqrt(2 / (means.size / REUSE))
    assert abs(SAMPLES * means.var() - 1) < 5 * error
    # The same holds for a functional of a whole example, here its sum: of 8,000
    # examples an eighth are as good as different.
    sums = means.sum(-1)
    error = np.sqrt(2 / (sums.size / REUSE))
    assert abs(SAMPLES / UNITS * sums.var() - 1) < 5 * error


@SHARES
def test_shared_numbers_are_normal():
    # Each of 20 batches has 10,000 different ones. Standard errors are as
    # above, and one test of Kolmogorov and Smirnov is over all of them: a right
    # generator fails with probability 1e-4, at these seeds never.
    x = np.concatenate([shared(seed) for seed in range(20)])
    n = x.size / REUSE
    assert abs(x.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs(scipy.stats.kurtosis(x, axis=None)) < 5 * np.sqrt(24 / n)
    # This test leaves out the signs, which are even by construction.
    numbers = np.unique(np.abs(x))
    assert scipy.stats.kstest(numbers, scipy.stats.halfnorm.cdf).pvalue > 1e-4


@pytest.fixture(scope="module")
def batches():
    return np.stack([shared(seed) for seed in range(60)])


def test_units_and_calls_are_independent(batches):
    # We allow 5 standard errors, of x and of x^2, of one example, as above: a
    # right generator fails with probability 2e-6, at these seeds never.
    for y in (batches, batches**2 - 1):
        y = y[:, 0]
        for one, other in ((y[:, 1:], y[:, :-1]), (y[1:], y[:-1])):
            correlation = (one * other).mean() / y.var()
            assert abs(correlation) < 5 / np.sqrt(one.size)


def test_examples_are_independent_but_for_a_chance(batches):
    # Two examples meet the same number in the same unit once in 10,000. We
    # allow 5 standard errors: a right generator fails with probability 4e-6, at
    # these seeds never.
    for y in (batches, (batches**2 - 1) / np.sqrt(2)):
        for other in (1, 50, 150):
            correlation = (y[:, 0] * y[:, other]).mean()
            assert abs(correlation) < 5 / np.sqrt(y[:, 0].size)


@pytest.fixture(scope="module")
def layer():
    """Inputs and weights of a linear layer behind noisy units, and targets."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(EXAMPLES, UNITS))
    w = rng.normal(size=UNITS) / np.sqrt(UNITS)
    return x, w, rng.normal(size=EXAMPLES)


def variance(gradient):
    """Over 60 draws of the noise, by their seed; summed over the units."""
    return np.var([gradient(seed) for seed in range(60)], axis=0).sum()


def test_gradients_of_theta_are_as_precise(layer):
    # Their variance must not rise. The shares of the units are nearly
    # independent, so that the relative standard error is about
    # sqrt(2 / (200 * 60)) = 1 %; we allow 10 of it. With all blocks in step
    # and of one sign it would be 8 times as large.
    x, w, y = layer

    def gradient(seed, reuse):
        eps = draw((EXAMPLES, UNITS), seed=seed, reuse=reuse)
        h = np.maximum(x + eps, 0)
        return (h @ w - y) @ h / EXAMPLES

    alone, shared = (
        variance(lambda seed, r=reuse: gradient(seed, r))
        for reuse in (1, REUSE)
    )
    assert shared < 1.1 * alone


def test_gradients_of_rho_are_as_precise(layer):
    # Each unit has a sigma, and predictions average four samples. The standard
    # error of the ratio is 4 %; over 400 draws it was 1.00 with one of 1 %.
    x, w, y = layer

    def gradient(seed, num_samples):
        eps = shared_in_samples(seed, num_samples)
        h = x + 0.3 * eps
        residual = (np.maximum(h, 0) @ w).mean(0) - y
        by_sigma = ((h > 0) * eps).mean(0) * w
        return residual @ by_sigma / EXAMPLES

    alone, shared = (
        variance(lambda seed, k=num_samples: gradient(seed, k))
        for num_samples in (None, SAMPLES)
    )
    assert shared < 1.1 * alone
