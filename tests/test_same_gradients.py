"""The gradient of rho is the same on every backend.

With the same weights and the same uniform numbers fed in. What TensorFlow
computes is in `data/gradients.json`; `python tests/test_same_gradients.py`
writes it anew.
"""

import json
import pathlib

import keras
import numpy as np
import pytest
from helpers import EAGER

import keras_crossreg as kcr
from keras_crossreg import layers
from keras_crossreg import regularizers

pytestmark = pytest.mark.backend

FILE = pathlib.Path(__file__).parent / "data" / "gradients.json"


def rows(size, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, 6)).astype("float32")
    return x, (x[:, 0] + x[:, 1] > 0).astype("int32")


def images(size, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, 8, 7, 2)).astype("float32")
    return x, rng.integers(0, 2, size).astype("int32")


def dense(*before, **arguments):
    """Hidden units, some layers, and classes."""
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, "tanh", **arguments)(inputs)
    for layer in before:
        x = layer(x)
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    return inputs, outputs


def convolved(layer):
    inputs = keras.Input((8, 7, 2))
    x = keras.layers.Conv2D(4, 3, activation="tanh")(layer(inputs))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return inputs, keras.layers.Dense(2, activation="softmax")(x)


def regularized(regularizer):
    return lambda: dense(
        layers.GaussianNoiseScale(0.4), kernel_regularizer=regularizer()
    )


def all_together():
    norm = layers.NormMagnitude(keras.layers.Dense(8), axis=-1)
    return dense(
        layers.GaussianNoiseScale(0.4),
        norm,
        layers.LearnedDropout(0.3),
        layers.LearnedGaussianDropout(0.2),
        kernel_regularizer=regularizers.LearnedL2(),
    )


L2 = regularized(regularizers.LearnedL2)
SMOOTH = regularized(lambda: regularizers.LearnedSmoothness(order=1))

# Of each case a graph, its data, and arguments of `compile`.
CASES = {
    "noise": (lambda: dense(layers.GaussianNoiseScale(0.4)), rows, {}),
    "noise per unit": (
        lambda: dense(layers.GaussianNoiseScale(0.4, axis=-1)),
        rows,
        {},
    ),
    "relative noise": (
        lambda: dense(layers.GaussianNoiseScale(0.4, relative=True)),
        rows,
        {},
    ),
    "dropout": (lambda: dense(layers.LearnedDropout(0.3)), rows, {}),
    "Gaussian dropout": (
        lambda: dense(layers.LearnedGaussianDropout(0.3)),
        rows,
        {},
    ),
    "temperature": (lambda: dense(layers.Temperature(1.5)), rows, {}),
    "norm": (
        lambda: dense(layers.NormMagnitude(keras.layers.Dense(8))),
        rows,
        {},
    ),
    "augmentation": (
        lambda: convolved(layers.LearnedAugmentation(translation=0.7)),
        images,
        {},
    ),
    "L1": (regularized(regularizers.LearnedL1), rows, {}),
    "L2": (L2, rows, {}),
    "smoothness": (SMOOTH, rows, {}),
    "group L1": (
        regularized(lambda: regularizers.LearnedGroupL1(axis=0)),
        rows,
        {},
    ),
    "all together": (all_together, rows, {}),
    "in passes": (all_together, rows, {"samples_per_pass": 2}),
    "gap": (all_together, rows, {"hypergradient": "gap"}),
    "one step": (
        L2,
        rows,
        {"hypergradient": kcr.hypergradients.OneStep(step_size=0.1)},
    ),
    "implicit": (
        SMOOTH,
        rows,
        {
            "hypergradient": kcr.hypergradients.Implicit(
                num_terms=3, damping=5.0
            )
        },
    ),
}


def same_numbers(shape, seed=None, dtype="float32", batch_axis=0):
    """For a shape always the same, whatever backend asks for them."""
    shape = tuple(int(size) for size in shape)
    rng = np.random.default_rng(list(shape))
    return keras.ops.convert_to_tensor(rng.random(shape).astype(dtype))


def gradients_of(name):
    """Of every rho, as lists of numbers."""
    graph, data, arguments = CASES[name]
    model = kcr.CrossRegModel(*graph())
    rng = np.random.default_rng(0)
    for v in model.theta_variables:
        v.assign(rng.normal(size=v.shape, scale=0.6).astype("float32"))
        if v.constraint is not None:
            v.assign(v.constraint(keras.ops.convert_to_tensor(v)))
    # That of the kernel that was drawn.
    model.set_rho({k: 1.5 for k in model.get_rho() if "magnitude" in k})
    model.compile(
        keras.optimizers.SGD(0.0),
        "sparse_categorical_crossentropy",
        # After one step its momentum is the negative gradient, unrounded.
        rho_optimizer=keras.optimizers.SGD(1.0, momentum=0.5),
        num_samples=4,
        run_eagerly=EAGER,
        **{"hypergradient": "direct", **arguments},
    )
    model.train_on_batch(*data(16, 1), reg_data=data(12, 2))
    momenta = [v for v in model.rho_optimizer.variables if "momentum" in v.path]
    assert len(momenta) == len(model.rho_variables)
    return [(-keras.ops.convert_to_numpy(v)).tolist() for v in momenta]


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_tensorflow(name, monkeypatch):
    monkeypatch.setattr(kcr.random, "uniform", same_numbers)
    # Normal numbers are made of uniform ones on every backend.
    monkeypatch.setattr(kcr.primitives, "shares_numbers", lambda: True)
    found = gradients_of(name)
    expected = json.loads(FILE.read_text())[name]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        assert np.abs(one).max() > 1e-4


if __name__ == "__main__":
    kcr.random.uniform = same_numbers
    everything = {name: gradients_of(name) for name in CASES}
    FILE.write_text(json.dumps(everything, indent=1) + "\n")
