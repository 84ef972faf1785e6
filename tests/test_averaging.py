"""The space in which sampled predictions are averaged."""

import functools
import re

import keras
import numpy as np
import pytest
import scipy.special
from helpers import ROWS
from helpers import make_data

import keras_crossreg as kcr

pytestmark = pytest.mark.backend

losses = keras.losses


def mean(z, axis=-1):
    return z.mean(0)


def categorical_logits(z, axis=-1):
    axis = axis + 1 if axis >= 0 else axis
    return np.log(scipy.special.softmax(z, axis=axis).mean(0))


def binary_logits(z, axis=-1):
    return scipy.special.logit(scipy.special.expit(z).mean(0))


def name(parameter):
    """The same in every process, as pytest-xdist wants it: no addresses."""
    return re.sub(" at 0x[0-9a-f]+", "", str(parameter))


def own_loss(y, y_pred):
    return keras.ops.mean(keras.ops.square(y - y_pred), axis=-1)


def noisy_model(units=3, scale=1.0, shape=(3,), **kwargs):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    x = kcr.layers.GaussianNoiseScale(scale, seed=1)(inputs)
    return kcr.CrossRegModel(inputs, keras.layers.Dense(units, **kwargs)(x))


def average_and_samples(model, x=None, **compile_arguments):
    model.compile(run_eagerly=True, **compile_arguments)
    x = make_data()[0] if x is None else x
    samples = model.predict_samples(x, verbose=0)
    return model.predict(x, verbose=0), samples


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("mse", mean),
        ("categorical_crossentropy", mean),
        ("sparse_categorical_crossentropy", mean),
        (losses.CategoricalCrossentropy(), mean),
        (losses.CategoricalCrossentropy(from_logits=True), categorical_logits),
        (
            losses.SparseCategoricalCrossentropy(from_logits=True),
            categorical_logits,
        ),
        (
            losses.CategoricalFocalCrossentropy(from_logits=True),
            categorical_logits,
        ),
        (losses.BinaryCrossentropy(from_logits=True), binary_logits),
        (losses.BinaryFocalCrossentropy(from_logits=True), binary_logits),
        (losses.BinaryCrossentropy(), mean),
        (losses.sparse_categorical_crossentropy, mean),
        (
            functools.partial(
                losses.sparse_categorical_crossentropy, from_logits=True
            ),
            categorical_logits,
        ),
        (
            functools.partial(losses.binary_crossentropy, from_logits=True),
            binary_logits,
        ),
        (own_loss, mean),
        (losses.KLDivergence(), mean),
    ],
    ids=name,
)
def test_auto(loss, expected):
    predictions, samples = average_and_samples(
        noisy_model(), loss=loss, num_samples=5
    )
    assert samples.shape == (5, ROWS, 3)
    assert predictions.shape == (ROWS, 3)
    np.testing.assert_allclose(
        predictions, expected(samples), rtol=1e-4, atol=1e-5
    )
    # The spaces differ: the test would notice the wrong one.
    for other in {mean, categorical_logits, binary_logits} - {expected}:
        assert np.abs(other(samples) - predictions).max() > 0.01


@pytest.mark.parametrize(
    ("averaging", "loss", "units", "expected"),
    [
        (
            "outputs",
            losses.CategoricalCrossentropy(from_logits=True),
            3,
            mean,
        ),
        ("probabilities", own_loss, 3, categorical_logits),
        ("probabilities", own_loss, 1, binary_logits),
        ("probabilities", losses.CategoricalCrossentropy(), 3, mean),
        (
            lambda z: keras.ops.max(z, axis=0),
            "mse",
            3,
            lambda z: z.max(0),
        ),
    ],
)
def test_other_averaging(averaging, loss, units, expected):
    predictions, samples = average_and_samples(
        noisy_model(units), loss=loss, averaging=averaging
    )
    np.testing.assert_allclose(
        predictions, expected(samples), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("axis", [1, -1, 2])
def test_class_axis(axis):
    model = noisy_model(4, shape=(5, 3))
    predictions, samples = average_and_samples(
        model,
        x=np.random.default_rng(0).normal(size=(6, 5, 3)),
        loss=losses.CategoricalCrossentropy(from_logits=True, axis=axis),
    )
    np.testing.assert_allclose(
        predictions, categorical_logits(samples, axis), rtol=1e-4, atol=1e-5
    )


def test_extreme_logits_stay_finite():
    model = noisy_model(2, scale=1e4)
    for loss in (
        losses.CategoricalCrossentropy(from_logits=True),
        losses.BinaryCrossentropy(from_logits=True),
    ):
        predictions, _ = average_and_samples(model, loss=loss)
        assert np.isfinite(predictions).all()


def two_outputs(structure):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = kcr.layers.GaussianNoiseScale(1.0, seed=1)(inputs)
    a = keras.layers.Dense(3, name="a")(x)
    b = keras.layers.Dense(1, name="b")(x)
    outputs = {"a": a, "b": b} if structure is dict else [a, b]
    return kcr.CrossRegModel(inputs, outputs)


LOGITS = losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.mark.parametrize(
    ("structure", "loss"),
    [
        (list, [LOGITS, "mse"]),
        (list, {"a": LOGITS, "b": "mse"}),
        (dict, {"b": "mse", "a": LOGITS}),
        (dict, {"a": LOGITS}),
    ],
    ids=name,
)
def test_each_output_is_averaged_for_its_own_loss(structure, loss):
    predictions, samples = average_and_samples(
        two_outputs(structure), loss=loss
    )
    assert isinstance(predictions, structure)
    (a, b), (sample_a, sample_b) = map(
        keras.tree.flatten, (predictions, samples)
    )
    np.testing.assert_allclose(
        a, categorical_logits(sample_a), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(b, mean(sample_b), rtol=1e-4, atol=1e-5)


def test_several_outputs_train():
    model = two_outputs(dict)
    model.compile(
        "adam", {"a": LOGITS, "b": "mse"}, reg_freq=1, metrics={"b": ["mae"]}
    )
    data, reg_data = (
        (x, {"a": y, "b": y}) for x, y in (make_data(), make_data(seed=1))
    )
    history = model.fit(*data, reg_data=reg_data, verbose=0).history
    assert {"reg_a_loss", "reg_b_loss"}.isdisjoint(history)
    assert "reg_b_mae" in history
    assert int(model.rho_optimizer.iterations) == 1


@pytest.mark.parametrize(
    "policy", ["mixed_float16", "mixed_bfloat16", "float64"]
)
def test_dtype_policies(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = noisy_model(2)
    finally:
        keras.config.set_dtype_policy(before)
    model.compile(
        "adam", LOGITS, reg_freq=1, run_eagerly=True, rho_optimizer="adam"
    )
    x, y = make_data()
    history = model.fit(
        x, y, batch_size=12, reg_data=make_data(seed=1), verbose=0
    )
    assert np.isfinite(history.history["reg_loss"]).all()
    (rho,) = model.rho_variables
    assert keras.backend.standardize_dtype(rho.dtype) == "float32"
    # Adam moved it: the gradient came through, and scaled back.
    assert np.isfinite(rho.numpy())
    assert int(model.rho_optimizer.iterations) == 2
    predictions = model.predict(x, verbose=0)
    assert str(predictions.dtype) == keras.DTypePolicy(policy).compute_dtype


def sequence_model(cls, scale):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(7, 4, mask_zero=True)(inputs)
    x = kcr.layers.GaussianNoiseScale(scale, seed=1)(x)
    return cls(inputs, keras.layers.Dense(3, activation="softmax")(x))


def test_masks_are_kept():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 7, (8, 5))
    y = rng.integers(0, 3, (8, 5))
    assert (x == 0).any()
    results = []
    for cls in (keras.Model, kcr.CrossRegModel):
        model = sequence_model(cls, scale=0.0)
        model.compile(
            "sgd",
            "sparse_categorical_crossentropy",
            weighted_metrics=["accuracy"],
            run_eagerly=True,
        )
        results.append(model.evaluate(x, y, verbose=0))
    np.testing.assert_allclose(*results, rtol=1e-5)
    # Masked steps count in neither: other labels there change nothing.
    y[x == 0] = (y[x == 0] + 1) % 3
    np.testing.assert_allclose(
        model.evaluate(x, y, verbose=0), results[1], rtol=1e-6
    )
