"""Samples in several passes, compiled by XLA."""

import pytest
import tensorflow as tf
from test_passes import check_passes

from keras_crossreg import primitives


@pytest.mark.slow
def test_gradient_is_that_of_the_same_samples_in_one():
    def gradients(loss, variables):
        return tf.function(
            lambda: primitives.gradient(loss, variables), jit_compile=True
        )()

    check_passes(gradients, run_eagerly=False, jit_compile=True)
