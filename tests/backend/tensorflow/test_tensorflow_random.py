"""Gaussian noise in a `tf.function`: open shapes, and its generator."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_crossreg import random


@pytest.mark.parametrize(
    ("num_samples", "reuse", "jit_compile"),
    [
        (1, 1, False),
        (1, 8, False),
        (2, 1, False),
        (2, 8, False),
        (None, 8, False),
        (1, 8, True),
        (2, 8, True),
    ],
)
def test_open_shapes(num_samples, reuse, jit_compile):
    generator = keras.random.SeedGenerator(0)

    @tf.function(
        jit_compile=jit_compile,
        input_signature=[tf.TensorSpec((None, 3), "float32")],
    )
    def like(x):
        shape = keras.ops.shape(x)
        return random.normal(shape, generator, "float32", num_samples, reuse)

    for rows in (4, 5):
        x = like(np.zeros((rows, 3), "float32")).numpy()
        assert x.shape == (rows, 3)
        assert len(np.unique(x)) == x.size


def algorithms(function):
    """Those of all random numbers in the graph of a function."""
    graph = tf.function(function).get_concrete_function().graph
    # The algorithm is the last input of an operation, a constant.
    return {
        int(tf.get_static_value(operation.inputs[-1]))
        for operation in graph.get_operations()
        if "Random" in operation.type
        and operation.type != "StatelessRandomGetKeyCounter"
    }


def test_every_generator_is_philox():
    # Where TensorFlow may choose, as in Keras's own functions, XLA takes one
    # on a CPU that is a hundred times slower.
    generator = keras.random.SeedGenerator(0)
    shape = (500, 1000)
    ours = algorithms(lambda: random.normal(shape, generator, "float32"))
    assert ours == {tf.random.Algorithm.PHILOX.value}
    theirs = algorithms(lambda: keras.random.uniform(shape, seed=generator))
    assert tf.random.Algorithm.AUTO_SELECT.value in theirs


def kinds(function, device=None):
    """Of all random numbers in the graph of a function on a device."""

    def on_device():
        with tf.device(device):
            return function()

    graph = tf.function(on_device).get_concrete_function().graph
    return {
        operation.type
        for operation in graph.get_operations()
        if "Random" in operation.type or operation.type == "Roll"
    } - {"StatelessRandomGetKeyCounter"}


@pytest.mark.parametrize("device", ["/GPU:0", "/TPU:0", "/job:worker/GPU:1"])
def test_accelerators_have_the_generator_of_keras(device):
    generator = keras.random.SeedGenerator(0)

    def ours():
        return random.normal((500, 1000), generator, "float32")

    def theirs():
        return keras.random.normal((500, 1000), seed=generator)

    assert kinds(ours, device) == kinds(theirs) == {"StatelessRandomNormalV2"}
    # Here there is none, and a scope may say so too.
    on_cpu = {"StatelessRandomUniformFullIntV2", "StatelessRandomUniformV2"}
    for place in (None, "/CPU:0", "/device:cpu:1"):
        assert on_cpu < kinds(ours, place)
        assert "StatelessRandomNormalV2" not in kinds(ours, place)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_open_shapes_on_an_accelerator(jit_compile):
    generator = keras.random.SeedGenerator(0)

    @tf.function(
        jit_compile=jit_compile,
        input_signature=[tf.TensorSpec((None, 3), "float32")],
    )
    def like(x):
        shape = keras.ops.shape(x)
        with random.as_on_an_accelerator():
            return random.normal(shape, generator, "float32", 2)

    for rows in (4, 6):
        x = like(np.zeros((rows, 3), "float32")).numpy()
        assert len(np.unique(x)) == 3 * rows
