"""Fails when Keras changes what we build on of its TensorFlow trainer."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import make_data
from helpers import make_model

from keras_crossreg import _keras

(TRAINER,) = [
    c for c in keras.Model.__mro__ if c.__name__ == "TensorFlowTrainer"
]


def test_data_adapters_give_datasets():
    x, y = make_data(5)
    adapter = _keras.get_data_adapter(x, y, None, batch_size=2)
    assert [len(b[0]) for b in adapter.get_tf_dataset()] == [2, 2, 1]
    dataset = tf.data.Dataset.range(3)
    adapter = _keras.get_data_adapter(dataset, shuffle=False)
    adapter.on_epoch_begin()
    assert len(list(adapter.get_tf_dataset())) == 3
    adapter.on_epoch_end()


def test_a_dataset_is_no_array():
    assert not _keras.can_convert_arrays((tf.data.Dataset.range(3), None, None))


def test_arrays_that_tensorflow_takes():
    x, _ = make_data()
    for array in (x.astype("float64"), tf.constant(x)):
        converted = _keras.convert_to_sliceable(array, "tensorflow")
        np.testing.assert_array_equal(converted, x)
    rows = _keras.convert_to_sliceable(tf.sparse.from_dense(x))[0:1]
    np.testing.assert_array_equal(tf.sparse.to_dense(rows), x[:1])
    # A sparse tensor comes with what it takes to slice it.
    wrapper = _keras.convert_to_sliceable(tf.sparse.from_dense(x), "tensorflow")
    assert isinstance(wrapper, tuple)
    np.testing.assert_array_equal(tf.sparse.to_dense(wrapper.sparse), x)
    assert hasattr(wrapper, "ragged_indices")
    rows = _keras.slice_tensorflow_sparse_wrapper(wrapper, tf.constant([5, 2]))
    np.testing.assert_array_equal(tf.sparse.to_dense(rows), x[[5, 2]])


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_step_functions(run_eagerly):
    model = make_model(rho=False)
    model.compile("sgd", "mse", run_eagerly=run_eagerly)
    function = _keras.make_step_function(model, lambda batch: {"x": batch + 1})
    assert float(function(iter([tf.constant(2.0)]))["x"]) == 3.0


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_maybe_symbolic_build", ["self", "iterator", "data_batch"]),
        ("_make_function", ["self", "step_function"]),
    ],
)
def test_what_is_overridden_for_several_replicas(name, parameters):
    # `fit` calls it, with these arguments.
    assert f"self.{name}(" in inspect.getsource(TRAINER)
    method = dict(inspect.getmembers(TRAINER))[name]
    assert list(inspect.signature(method).parameters) == parameters


def test_one_machine_is_no_cluster():
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    assert not _keras.is_in_cluster(strategy)
