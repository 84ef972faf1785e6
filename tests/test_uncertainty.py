"""Uncertainty from sampled predictions, against closed forms."""

import warnings

import numpy as np
import pytest
from helpers import compile_model
from helpers import make_data
from helpers import make_model
from scipy import optimize
from scipy import stats
from scipy.special import expit
from scipy.special import softmax

import keras_crossreg as kcr

# Against NumPy's, which are of float64.
pytestmark = pytest.mark.float64

LOGITS = np.random.default_rng(0).normal(0, 2, size=(7, 5, 3))
P = softmax(LOGITS, axis=-1)


def test_classification():
    result = kcr.uncertainty(P)
    mean = P.mean(axis=0)
    entropy = stats.entropy(mean, axis=-1)
    # Information is the mean divergence of the samples from their mean.
    information = stats.entropy(P, mean[None], axis=-1).mean(axis=0)
    expected = {
        "mean": mean,
        "std": P.std(axis=0),
        "predictive_entropy": entropy,
        "mutual_information": information,
    }
    assert list(result) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(result[name], values, rtol=1e-12)


def test_two_samples_that_exclude_each_other():
    samples = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    result = kcr.uncertainty(samples)
    assert result["predictive_entropy"] == pytest.approx([np.log(2)])
    assert result["mutual_information"] == pytest.approx([np.log(2)])
    np.testing.assert_array_equal(result["std"], [[0.5, 0.5]])


def test_samples_that_agree_leave_no_information():
    # Their mean is off by rounding.
    samples = np.tile(P[:1], (7, 1, 1))
    result = kcr.uncertainty(samples.astype("float32"))
    assert (result["mutual_information"] >= 0).all()
    np.testing.assert_allclose(result["mutual_information"], 0, atol=1e-12)
    np.testing.assert_allclose(
        result["predictive_entropy"], stats.entropy(P[0], axis=-1), rtol=1e-6
    )


def test_one_sample():
    result = kcr.uncertainty(P[:1])
    assert not result["mutual_information"].any() and not result["std"].any()


def test_logits():
    expected = kcr.uncertainty(P)
    result = kcr.uncertainty(LOGITS, from_logits=True)
    for name, values in expected.items():
        np.testing.assert_allclose(result[name], values, rtol=1e-6)


@pytest.mark.parametrize("axis", [False, True])
@pytest.mark.parametrize("from_logits", [False, True])
def test_one_output_for_two_classes(axis, from_logits):
    logits = LOGITS[..., :1] if axis else LOGITS[..., 0]
    p = expit(LOGITS[..., 0])
    two = kcr.uncertainty(np.stack([1 - p, p], axis=-1))
    result = kcr.uncertainty(
        logits if from_logits else expit(logits), from_logits=from_logits
    )
    for name in ("predictive_entropy", "mutual_information"):
        assert result[name].shape == (5,)
        np.testing.assert_allclose(result[name], two[name], rtol=1e-6)
    for name in ("mean", "std"):
        assert result[name].shape == ((5, 1) if axis else (5,))
        np.testing.assert_allclose(
            result[name].ravel(), two[name][:, 1], rtol=1e-6
        )


def test_more_axes():
    samples = P.reshape(7, 5, 1, 1, 3)
    result = kcr.uncertainty(samples)
    assert result["mean"].shape == (5, 1, 1, 3)
    assert result["predictive_entropy"].shape == (5, 1, 1)


def test_of_a_model():
    model = compile_model(make_model(), eval_num_samples=6)
    x, _ = make_data()
    result = kcr.uncertainty(model.predict_samples(x, verbose=0))
    predicted = model.predict(x, verbose=0)
    np.testing.assert_allclose(result["mean"], predicted, rtol=1e-5)
    assert (result["mutual_information"] > 0).all()
    assert (result["predictive_entropy"] <= np.log(2)).all()


# Regression

VALUES = np.random.default_rng(1).normal(size=(39, 4, 2))


def test_regression():
    result = kcr.uncertainty(VALUES, "regression")
    assert list(result) == ["mean", "std", "lower", "upper"]
    ordered = np.sort(VALUES, axis=0)
    # The ranks are 0.05 * 40 and 0.95 * 40, from 1.
    np.testing.assert_allclose(result["lower"], ordered[1])
    np.testing.assert_allclose(result["upper"], ordered[37])
    np.testing.assert_allclose(result["mean"], VALUES.mean(axis=0))
    np.testing.assert_allclose(result["std"], VALUES.std(axis=0))


def test_intervals_cover_further_samples():
    # We draw 19 samples and a twentieth from one distribution, 20,000 times:
    # the share inside has a standard error of sqrt(.9 * .1 / 20000) = 0.0021;
    # we allow 0.0095: it fails with probability 1e-5.
    values = np.random.default_rng(2).exponential(size=(20, 20_000))
    result = kcr.uncertainty(values[:19], "regression", coverage=0.9)
    inside = (result["lower"] < values[19]) & (values[19] < result["upper"])
    assert inside.mean() == pytest.approx(0.9, abs=0.0095)


def test_noise_around_one_prediction():
    for coverage in (0.5, 0.9, 0.99):
        half = stats.norm.ppf(0.5 + coverage / 2) * 0.3
        result = kcr.uncertainty(
            np.full((1, 4), 2.0), "regression", coverage=coverage, noise_std=0.3
        )
        np.testing.assert_allclose(result["lower"], 2 - half, rtol=1e-9)
        np.testing.assert_allclose(result["upper"], 2 + half, rtol=1e-9)
        assert not result["std"].any()


@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_noise_around_several_predictions(coverage):
    noise = np.array([[0.1, 1.0], [0.5, 0.5], [3.0, 0.01], [0.2, 0.2]])
    result = kcr.uncertainty(
        VALUES, "regression", coverage=coverage, noise_std=noise
    )
    for name, p in (
        ("lower", 0.5 - coverage / 2),
        ("upper", 0.5 + coverage / 2),
    ):
        for place in np.ndindex(4, 2):
            means = VALUES[(slice(None), *place)]

            def excess(q, means=means, sigma=noise[place], p=p):
                return stats.norm.cdf(q, means, sigma).mean() - p

            expected = optimize.brentq(excess, -20, 20, xtol=1e-12)
            assert result[name][place] == pytest.approx(expected, abs=1e-9)


def test_noise_of_some_observations_alone():
    noise = np.array([0.0, 0.5])
    result = kcr.uncertainty(VALUES, "regression", noise_std=noise)
    without = kcr.uncertainty(VALUES, "regression")
    with_noise = kcr.uncertainty(VALUES, "regression", noise_std=0.5)
    for name in ("lower", "upper"):
        found = result[name]
        np.testing.assert_array_equal(found[:, 0], without[name][:, 0])
        np.testing.assert_array_equal(found[:, 1], with_noise[name][:, 1])


def test_too_few_samples_for_the_coverage():
    with pytest.warns(UserWarning, match="of 18 samples .* draw 19 samples"):
        result = kcr.uncertainty(VALUES[:18], "regression")
    np.testing.assert_array_equal(result["lower"], VALUES[:18].min(axis=0))
    with warnings.catch_warnings(record=True) as caught:
        kcr.uncertainty(VALUES[:19], "regression")
        # With noise there is no such limit.
        kcr.uncertainty(VALUES[:2], "regression", noise_std=0.1)
    assert caught == []


# Errors


@pytest.mark.parametrize("samples", [LOGITS, LOGITS[..., :1], P / 2, P * 1.1])
def test_what_are_no_probabilities(samples):
    with pytest.raises(ValueError, match='task="regression".* from .* to '):
        kcr.uncertainty(samples)


@pytest.mark.parametrize(
    "samples", [[P, P[:, :2]], {"a": P}, P[0, 0], np.zeros((0, 3, 2))]
)
def test_what_are_no_samples(samples):
    with pytest.raises(ValueError, match=r"Received: samples of type .*shape="):
        kcr.uncertainty(samples)


@pytest.mark.parametrize("coverage", [0, 1, -0.5, float("nan")])
def test_coverage(coverage):
    with pytest.raises(ValueError, match=f"Received: coverage={coverage}$"):
        kcr.uncertainty(VALUES, "regression", coverage=coverage)


@pytest.mark.parametrize("noise_std", [-0.1, float("nan"), float("inf")])
def test_noise(noise_std):
    with pytest.raises(ValueError, match=f"Received: noise_std={noise_std}$"):
        kcr.uncertainty(VALUES, "regression", noise_std=noise_std)


def test_unknown_task():
    with pytest.raises(ValueError, match="Received: task=ranking$"):
        kcr.uncertainty(P, "ranking")
