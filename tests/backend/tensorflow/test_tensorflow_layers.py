"""Layers in a `tf.function`: open shapes, XLA, and operations of the graph."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import keras_crossreg as kcr
from keras_crossreg import primitives
from keras_crossreg.layers import LearnedAugmentation
from keras_crossreg.layers import LearnedDropout
from keras_crossreg.layers import NormMagnitude

FILL_MODES = ("reflect", "wrap", "constant", "nearest")


def make_images(shape=(4, 9, 7, 3)):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def augmentation(**kwargs):
    """Every transform, wide enough to show."""
    return LearnedAugmentation(
        translation=1.3,
        rotation=8.0,
        shear=6.0,
        zoom=0.1,
        brightness=0.4,
        contrast=0.3,
        data_format="channels_last",
        seed=2,
        **kwargs,
    )


# Learned augmentation.


@pytest.mark.parametrize(
    ("shape", "fill_mode"),
    [
        *(((None, None, 3), fill_mode) for fill_mode in FILL_MODES),
        ((9, 7, 3), "reflect"),
        ((9, None, 1), "reflect"),
    ],
)
def test_images_of_an_open_size(shape, fill_mode):
    inputs = keras.Input(shape)
    outputs = augmentation(fill_mode=fill_mode)(inputs)
    assert outputs.shape == (None, *shape)
    model = keras.Model(inputs, outputs)
    images = make_images((5, 9, 7, shape[-1]))
    expected = augmentation(fill_mode=fill_mode)(images, training=True)

    @tf.function(input_signature=[tf.TensorSpec((None, *shape), "float32")])
    def run(x):
        return model(x, training=True)

    np.testing.assert_allclose(run(images), expected, atol=1e-5)


def built_augmentation(images):
    """A layer, and a function that gives the gradients of its widths."""
    layer = augmentation()
    layer.build(images.shape)
    state = ops.convert_to_numpy(layer.seed_generator.state)

    def gradients(x):
        # Every call draws the same numbers.
        layer.seed_generator.state.assign(state)
        return primitives.gradient(
            lambda: ops.sum(layer(x, sampling=True) * images),
            list(layer.rho.values()),
        )

    return layer, gradients


def test_jit_gives_the_same_gradients(monkeypatch):
    images = make_images()
    # XLA has a random generator of its own.
    u = np.random.default_rng(0).uniform(size=(7, 4)).astype("float32")
    monkeypatch.setattr(kcr.random, "uniform", lambda *_, **__: u)
    layer, gradients = built_augmentation(images)
    expected = gradients(images)
    for jit_compile in (False, True):
        found = tf.function(gradients, jit_compile=jit_compile)(images)
        for name, a, b in zip(layer.rho, found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3, err_msg=name)


def test_a_pixel_reads_four_and_writes_none():
    # The speed of the layer rests on four gathers, and on no scatter where no
    # gradient of the inputs is asked for.
    images = make_images()
    _, gradients = built_augmentation(images)
    function = tf.function(gradients)
    graph = function.get_concrete_function(tf.TensorSpec(images.shape)).graph
    kinds = [operation.type for operation in graph.get_operations()]
    assert kinds.count("GatherV2") == 4
    assert not [k for k in kinds if "Scatter" in k or "SegmentSum" in k]


# Learned dropout.


def test_compiled_dropout():
    x = np.ones((400, 50, 4), "float32")
    layer = LearnedDropout(0.5, seed=0)
    layer.build(x.shape)
    compiled = tf.function(
        lambda x: layer(x, sampling=True), jit_compile=True, autograph=False
    )
    assert set(np.unique(compiled(x).numpy().round(4))) == {0.0, 2.0}


# The learned norm of a kernel.


def test_a_norm_is_built_in_a_function():
    def make_dense():
        initializer = keras.initializers.RandomNormal(0.1, 0.5, seed=3)
        return keras.layers.Dense(4, kernel_initializer=initializer)

    def norms(kernel):
        return np.linalg.norm(kernel, axis=0)

    layer = NormMagnitude(make_dense(), axis=-1)
    function = tf.function(lambda x: layer(x))
    np.testing.assert_allclose(
        function(tf.eye(3)), make_dense()(tf.eye(3)), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(norms(layer.layer.kernel), 1.0, rtol=1e-5)
    layer.rho.assign(kcr.rho.stored_value(layer.rho, 2.0))
    np.testing.assert_allclose(norms(function(tf.eye(3))), 2.0, rtol=1e-5)
