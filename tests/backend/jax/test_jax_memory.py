"""What a step of rho takes, as XLA plans it."""

import types

import jax
import keras
import numpy as np
import pytest

import keras_crossreg as kcr
from keras_crossreg.backend.jax import compiled_step

ROWS, SIDE = 8, 8


def memory_of_a_rho_step(monkeypatch, num_samples, hypergradient):
    """Bytes of the temporary buffers of the program of a rho step."""
    planned = []

    def jit(function):
        compiled = jax.jit(function)

        def call(*arguments):
            program = compiled.lower(*arguments).compile()
            planned.append(program.memory_analysis().temp_size_in_bytes)
            return program(*arguments)

        return call

    fake = types.SimpleNamespace(jit=jit, lax=jax.lax)
    monkeypatch.setattr(compiled_step, "jax", fake)
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((SIDE, SIDE, 3))
    for filters in (16, 32):
        x = keras.layers.Conv2D(filters, 3, padding="same")(x)
        x = kcr.layers.GaussianNoiseScale()(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = kcr.CrossRegModel(inputs, keras.layers.Dense(2)(x))
    model.compile(
        "sgd",
        "mse",
        num_samples=num_samples,
        hypergradient=hypergradient,
        reg_freq=1,
        jit_compile=True,
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2 * ROWS, SIDE, SIDE, 3)).astype("float32")
    y = rng.normal(size=(2 * ROWS, 2)).astype("float32")
    model.fit(
        x[:ROWS],
        y[:ROWS],
        reg_data=(x[ROWS:], y[ROWS:]),
        batch_size=ROWS,
        reg_batch_size=ROWS,
        verbose=0,
    )
    # The first is of the rho step, another one of the measured epoch.
    found = planned[0]
    # All activations of 16 samples of the first layer, at the least.
    assert found > 16 * ROWS * SIDE * SIDE * 16 * 4
    return found


@pytest.mark.filterwarnings("ignore:Rho took", "ignore:2 rho learn from 8")
@pytest.mark.parametrize(
    "hypergradient",
    [pytest.param("direct", marks=pytest.mark.slow), "gap"],
)
def test_many_samples_take_no_more_memory(hypergradient, monkeypatch):
    few, many = (
        memory_of_a_rho_step(monkeypatch, num_samples, hypergradient)
        for num_samples in (16, 256)
    )
    assert many < 1.1 * few


@pytest.mark.filterwarnings("ignore:Rho took", "ignore:2 rho learn from 8")
def test_two_sets_are_one_loop(monkeypatch):
    of_one, of_two = (
        memory_of_a_rho_step(monkeypatch, 16, hypergradient)
        for hypergradient in ("direct", "gap")
    )
    # Side by side, it was 1.7 times as much.
    assert of_two < 1.3 * of_one
