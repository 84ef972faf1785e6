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
