"""Kernels that are no one's own to normalize."""

import keras
import numpy as np
import pytest

import keras_crossreg as kcr

X = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")


def test_a_layer_that_sets_its_own_norm():
    layer = keras.layers.SpectralNormalization(keras.layers.Dense(3))
    with pytest.raises(ValueError, match="sets the norm.*SpectralNormal"):
        kcr.layers.NormMagnitude(layer)(X)


def test_a_layer_that_sets_its_kernel_when_it_is_called():
    class Halving(keras.layers.Dense):
        def call(self, inputs, training=False):
            if training:
                self.kernel.assign(self.kernel / 2)
            return super().call(inputs)

    layer = kcr.layers.NormMagnitude(Halving(3))
    layer(X)
    with pytest.raises(ValueError, match="sets its kernel itself.*Halving"):
        layer(X, training=True)


def test_a_layer_of_another_model():
    dense = keras.layers.Dense(3)
    inputs = keras.Input((8,))
    other = keras.Model(inputs, dense(inputs))
    before = other.predict(X, verbose=0)
    with pytest.raises(ValueError, match="part of another model.*=dense"):
        kcr.layers.NormMagnitude(dense)(inputs)
    np.testing.assert_array_equal(other.predict(X, verbose=0), before)


@pytest.mark.parametrize("cls", [keras.Model, kcr.CrossRegModel])
def test_what_cannot_be_quantized_is_left_as_it_is(cls):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    x = kcr.layers.NormMagnitude(keras.layers.Dense(16), axis=-1)(inputs)
    dense = keras.layers.Dense(4)
    model = cls(inputs, dense(keras.layers.ReLU()(x)))
    before = model.predict(X, verbose=0)
    with pytest.warns(UserWarning) as record:
        model.quantize("int8")
    assert any("`NormMagnitude` learns" in str(w.message) for w in record)
    assert dense.quantization_mode == "int8"
    after = model.predict(X, verbose=0)
    # Eight bits of the other layer, of 16 products.
    np.testing.assert_allclose(after, before, atol=0.05 * np.abs(before).max())


def test_lora_is_refused():
    dense = keras.layers.Dense(4)
    layer = kcr.layers.NormMagnitude(dense, name="norm")
    layer(X)
    with pytest.raises(ValueError, match="LoRA.*Received: layer=norm$"):
        dense.enable_lora(2)
