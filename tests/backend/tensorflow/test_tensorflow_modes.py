"""How often `tf.function` traces a step."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import make_data

import keras_crossreg as kcr


class Counter(kcr.layers.RhoLayer):
    """Notes every trace of a training step and of a rho step."""

    def __init__(self):
        super().__init__()
        # Keras keeps a copy of a list that it is given.
        self.traces = []

    def build(self, input_shape):
        self.rho = self.add_rho("scale", start=0.1)

    def call(self, inputs, training=False, sampling=None):
        self.traces.append("rho" if sampling else "theta")
        return inputs * self.rho_value(self.rho, sampling)


@pytest.mark.parametrize(
    ("jit_compile", "steps_per_execution"),
    [(False, 1), (False, 3), pytest.param(True, 1, marks=pytest.mark.slow)],
)
def test_one_trace_for_each_shape(jit_compile, steps_per_execution):
    inputs, counter = keras.Input((3,)), Counter()
    outputs = keras.layers.Dense(2)(counter(inputs))
    model = kcr.CrossRegModel(inputs, outputs)
    model.compile(
        "adam",
        "mse",
        num_samples=2,
        reg_freq=2,
        reg_warmup=0,
        steps_per_execution=steps_per_execution,
        run_eagerly=False,
        jit_compile=jit_compile,
    )
    x, _ = make_data()
    reg_x, _ = make_data(14, seed=1)
    y, reg_y = np.zeros((24, 2)), np.zeros((14, 2))
    # Both with a last partial batch: of 4, and of 2.
    data, reg_data = (
        tf.data.Dataset.from_tensor_slices(arrays).batch(size)
        for arrays, size in (((x, y), 5), ((reg_x, reg_y), 4))
    )
    counter.traces.clear()
    fit = dict(reg_data=reg_data, shuffle=False, verbose=0)
    model.fit(data, epochs=2, **fit)
    assert int(model.rho_optimizer.iterations) == 5
    first = sorted(counter.traces)
    # Two shapes each, and the check that a gradient reaches rho; an
    # execution of several steps traces the step for each number of them.
    # Each looks at both sets.
    assert 2 <= first.count("rho") <= 6
    most = 2 * (1 if steps_per_execution == 1 else 3)
    assert 1 <= first.count("theta") <= most
    # The check of this run, of a whole batch again, needs no other trace.
    model.fit(data, epochs=10, **fit)
    assert int(model.rho_optimizer.iterations) == 30
    assert sorted(counter.traces) == first
