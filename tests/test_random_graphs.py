"""Random networks against K separate passes of the plain model."""

import os
import warnings

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck
from hypothesis import Phase
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from keras import ops
from random_graphs import build
from random_graphs import recipes
from sample_table import one_sample
from sample_table import rewind
from sample_table import tables

import keras_crossreg as kcr
from keras_crossreg import primitives

# The first of them are the same, however many are asked for.
MANY = int(os.environ.get("RANDOM_GRAPHS", "300"))
QUIET = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)


def reference(model, losses, x, y, num_samples):
    """Averages, and their loss: K passes, one after the other."""
    passes, added = [], []
    of_weights = [
        v.regularizer(v)
        for v in model.theta_variables
        if v.regularizer is not None
    ]
    for k in range(num_samples):
        passes.append(one_sample(model, x, k))
        of_calls = model.losses[: len(model.losses) - len(of_weights)]
        # Keras sums them in float32.
        added.append(sum(ops.cast(v, "float32") for v in of_calls))
    average, total = {}, 0.0
    for name, loss in losses.items():
        samples = ops.stack([outputs[name] for outputs in passes])
        if getattr(loss, "from_logits", False):
            mean = ops.mean(ops.softmax(samples), axis=0)
            average[name] = ops.log(mean)
        else:
            average[name] = ops.mean(samples, axis=0)
        one = keras.losses.get(loss)(y[name], average[name])
        total = total + ops.mean(one)
    total = total + sum(added) / num_samples + sum(of_weights, ops.zeros(()))
    return average, total


def check(recipe):
    model, losses, x, y = build(recipe)
    num_samples = recipe["num_samples"]
    tolerance = dict(rtol=1e-5, atol=1e-5)
    if recipe["policy"] != "float32":
        tolerance = dict(rtol=0.1, atol=0.1)
    rewind(model)
    average, loss = reference(model, losses, x, y, num_samples)
    predicted = model.predict(x, batch_size=len(x["first"]), verbose=0)
    for name, expected in average.items():
        np.testing.assert_allclose(predicted[name], expected, **tolerance)
    samples = model.predict_samples(
        x, num_samples, batch_size=len(x["first"]), verbose=0
    )
    averaged = kcr.averaged(model, num_samples)(x)
    for name, expected in average.items():
        apart = [one_sample(model, x, k)[name] for k in range(num_samples)]
        np.testing.assert_allclose(samples[name], apart, **tolerance)
        np.testing.assert_allclose(averaged[name], expected, **tolerance)
    score = model.evaluate(
        x, y, batch_size=len(x["first"]), verbose=0, return_dict=True
    )
    np.testing.assert_allclose(score["loss"], loss, **tolerance)
    # A rho step by SGD at a rate of 1 subtracts the gradient.
    rho = model.rho_variables
    before = [ops.copy(v.value) for v in rho]
    logs = model.train_on_batch(x, y, return_dict=True, reg_data=(x, y))
    found = [b - v.value for b, v in zip(before, rho, strict=True)]
    for variable, value in zip(rho, before, strict=True):
        variable.assign(value)
    # Training has moved the averages of BatchNormalization.
    _, loss = reference(model, losses, x, y, num_samples)
    np.testing.assert_allclose(logs["reg_loss"], loss, **tolerance)
    expected = primitives.gradient(
        lambda: reference(model, losses, x, y, num_samples)[1], rho
    )
    for one, other in zip(found, expected, strict=True):
        if recipe["policy"] == "float32":
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def check_quietly(recipe):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(recipe)


@settings(QUIET, max_examples=4)
@given(recipes)
def test_random_graphs(recipe):
    check_quietly(recipe)


@pytest.mark.slow
@settings(QUIET, max_examples=MANY)
@given(recipes, st.integers(0, 9))
def test_many_random_graphs(recipe, compiled):
    check_quietly({**recipe, "compiled": compiled == 0})


@pytest.mark.parametrize("num_samples", [5, 9])
def test_what_layers_add_is_of_the_samples_of_predictions(num_samples):
    """In several passes of which the last would be of samples beyond K."""
    check_quietly(
        {
            "input": "image",
            "steps": [("active", 0)],
            "noise": [0],
            "second_input": False,
            "second_output": False,
            "loss": "mse",
            "form": "functional",
            "num_samples": num_samples,
            "samples_per_pass": 2,
            "policy": "float32",
            "seed": 0,
        }
    )


def test_a_recipe_has_noise():
    recipe = {
        "input": "tokens",
        "steps": [("lstm", 1), ("shared", 1)],
        "noise": [1],
        "second_input": True,
        "second_output": True,
        "loss": "logits",
        "form": "functional",
        "num_samples": 3,
        "samples_per_pass": 2,
        "policy": "float32",
        "seed": 0,
    }
    model, _, x, _ = build(recipe)
    assert len(tables(model)) == 2
    samples = model.predict_samples(x, 3, verbose=0)
    assert samples["a"].std(axis=0).mean() > 0.01
