"""Where JAX runs, and so how noise is drawn."""

import jax
import keras
import pytest

from keras_crossreg import primitives


def test_numbers_are_shared_on_a_cpu():
    assert primitives.shares_numbers()
    for device in ("cpu", jax.local_devices(backend="cpu")[0]):
        with jax.default_device(device):
            assert primitives.shares_numbers()
    with keras.device("cpu:0"):
        assert primitives.shares_numbers()


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_none_are_shared_on_another_platform(platform):
    with jax.default_device(platform):
        assert not primitives.shares_numbers()


def test_a_distribution_says_where():
    for devices, shares in ((["cpu:0"], True), (["gpu:0", "gpu:1"], False)):
        parallel = keras.distribution.DataParallel(devices=devices)
        with parallel.scope():
            assert primitives.shares_numbers() is shares
