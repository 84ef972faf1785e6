"""What TensorFlow's tensors, operations and strategies mean for rho steps."""

import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_same
from helpers import compile_model
from helpers import fit
from helpers import make_model
from helpers import values

import keras_crossreg as kcr
from keras_crossreg.trainers.reg_data import first_examples


@pytest.mark.parametrize("kind", ["sparse", "ragged"])
def test_batch_size_cuts_tensors_of_other_kinds(kind):
    x = np.float32([[1, 0, 2], [0, 3, 0], [4, 0, 0]])
    whole = tf.sparse.from_dense(x)
    if kind == "ragged":
        whole = tf.RaggedTensor.from_tensor(x)
    cut, y, weight = first_examples((whole, np.arange(3), None), 2)
    dense = (
        tf.sparse.to_dense if kind == "sparse" else tf.RaggedTensor.to_tensor
    )
    np.testing.assert_array_equal(dense(cut), x[:2])
    np.testing.assert_array_equal(y, [0, 1])
    assert weight is None


class Once(keras.layers.Layer):
    """TensorFlow knows its first derivative and no second."""

    def build(self, input_shape):
        self.image = self.add_weight(shape=(1, 2, 2, 1))

    def call(self, inputs):
        image = keras.ops.convert_to_tensor(self.image)
        large = tf.raw_ops.ResizeBicubic(images=image, size=[3, 3])
        return inputs * keras.ops.mean(large**2)


def test_a_layer_without_second_derivative_is_refused():
    inputs = keras.Input((3,))
    x = Once()(kcr.layers.GaussianNoiseScale()(inputs))
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    model = compile_model(
        kcr.CrossRegModel(inputs, outputs), hypergradient="implicit"
    )
    before = values(model.weights)
    match = "(?s)^`hypergradient` needs.*ResizeBicubic.*=implicit$"
    with pytest.raises(ValueError, match=match):
        fit(model)
    assert_same(before, values(model.weights))
    # The direct gradient is a first derivative.
    model = compile_model(kcr.CrossRegModel(inputs, outputs))
    fit(model)
    assert int(model.rho_optimizer.iterations) == 3


# Several replicas.


@pytest.fixture
def two_replicas(monkeypatch):
    """A strategy of one device, said to have two of them."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])

    def pretend():
        monkeypatch.setattr(type(strategy), "num_replicas_in_sync", 2)

    with strategy.scope():
        yield pretend


def test_an_answer_of_theta_works_on_one_device(two_replicas):
    model = make_model()
    # Of one replica: as without a strategy.
    compile_model(model, hypergradient="implicit")
    two_replicas()
    with pytest.raises(ValueError, match="one device.*of 2 replicas$"):
        compile_model(model, hypergradient="implicit")


def regularized():
    """A network with a learned norm."""
    inputs = keras.Input((3,))
    dense = keras.layers.Dense(
        2,
        activation="softmax",
        kernel_regularizer=kcr.regularizers.LearnedL1(),
    )
    return compile_model(kcr.CrossRegModel(inputs, dense(inputs)))


TOO_MANY = "one device. Received: weight=.*/kernel.* of 2 replicas$"


def test_a_learned_regularizer_works_on_one_device(two_replicas):
    model = regularized()
    before = values(model.weights)
    two_replicas()
    # The check comes before the one for regularization data, of which the
    # device that is there cannot make two parts.
    with pytest.raises(ValueError, match=TOO_MANY):
        fit(model, reg_data=None)
    assert_same(before, values(model.weights))


@pytest.mark.slow
def test_a_learned_regularizer_is_refused_on_two_devices():
    # Devices are set up once in a process.
    script = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)
sys.path[:0] = sys.argv[1:]
import test_tensorflow_hypergradient as tests
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = tests.regularized()
tests.fit(model)
"""
    here = pathlib.Path(__file__).parent
    result = subprocess.run(
        [sys.executable, "-c", script, str(here), str(here.parents[1])],
        capture_output=True,
        text=True,
    )
    message = TOO_MANY.replace("$", "\n")
    assert re.search(f"ValueError: .*{message}", result.stderr)
