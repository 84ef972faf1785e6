"""Fails when Keras changes anything private that we build on."""

import inspect

import keras
import numpy as np
import pytest
from forms import Batches
from helpers import make_data
from helpers import make_model
from keras import ops

import keras_crossreg
from keras_crossreg import _keras


def test_everything_that_is_listed_is_there():
    assert all(hasattr(_keras, name) for name in _keras.__all__)


def test_masks_are_attributes():
    x, mask = ops.ones((2, 3)), ops.ones((2, 3), "bool")
    assert _keras.get_keras_mask(x) is None
    _keras.set_keras_mask(x, mask)
    assert _keras.get_keras_mask(x) is mask
    # Computing drops them, which is why we need both.
    assert _keras.get_keras_mask(x + 1) is None


def test_losses_are_not_scaled_without_a_strategy():
    assert float(_keras.unscale_loss_for_distribution(ops.array(3.0))) == 3.0


def test_functional_is_the_class_of_a_graph():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    assert type(model) is _keras.Functional
    assert issubclass(_keras.Functional, keras.Model)


def test_functional_init_arguments():
    inputs = keras.Input((3,))
    assert _keras.functional_init_arguments((inputs, inputs), {})
    assert _keras.functional_init_arguments(
        (), {"inputs": inputs, "outputs": inputs}
    )
    assert not _keras.functional_init_arguments((), {})


def test_registered_names():
    @keras.saving.register_keras_serializable("tests")
    class Parent:
        def get_config(self):
            return {}

    class Child(Parent):
        pass

    assert keras.saving.get_registered_name(Child) == "Child"
    _keras.keep_registered_name(Child, Parent)
    assert keras.saving.get_registered_name(Child) == "tests>Parent"
    assert keras.saving.get_registered_object("tests>Parent") is Parent


def test_compile_metrics():
    metrics = _keras.CompileMetrics(["accuracy"], None, output_names=None)
    y, y_pred = np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]])
    metrics.update_state(y, y_pred, None)
    assert {k: float(v) for k, v in metrics.result().items()} == {
        "accuracy": 0.5
    }
    metrics.reset_state()
    assert float(metrics.result()["accuracy"]) == 0.0


def test_metrics_are_built_from_symbolic_tensors():
    # One of them creates its state when it is updated.
    metrics = _keras.CompileMetrics(
        ["accuracy", keras.metrics.F1Score()], None, output_names=None
    )
    y = keras.KerasTensor((None, 2))
    _keras.build_metrics(metrics, y, y, None)
    assert metrics.built
    names = [v.name for v in metrics.variables]
    assert {"total", "count", "true_positives"} <= set(names)
    assert all(not v.numpy().any() for v in metrics.variables)


def test_data_adapters():
    x, y = make_data(5)
    adapter = _keras.get_data_adapter(x, y, None, batch_size=2)
    assert [len(b[0]) for b in adapter.get_numpy_iterator()] == [2, 2, 1]
    batches = Batches([(x, y)] * 3)
    adapter = _keras.get_data_adapter(batches, shuffle=False)
    assert adapter.num_batches == 3
    adapter.on_epoch_begin()
    adapter.on_epoch_end()


def test_can_convert_arrays():
    x, y = make_data(5)
    assert _keras.can_convert_arrays((x, ops.convert_to_tensor(y), None))
    assert not _keras.can_convert_arrays((Batches([x, y]), None, None))


def test_arrays_of_an_adapter():
    x, y = make_data()
    weight = np.ones(24)
    adapter = _keras.get_data_adapter(x, (y, y), weight)
    # One weight for each output, as in the batches.
    inputs = _keras.array_inputs(adapter)
    assert inputs[0] is x
    assert [a is y for a in inputs[1]] == [True, True]
    assert [a is weight for a in inputs[2]] == [True, True]
    with pytest.raises(ValueError, match="(?s)sizes: 24.*sizes: 23"):
        _keras.get_data_adapter(x, y[1:])


def test_train_validation_split():
    x, y = make_data(10)
    first, last = _keras.train_validation_split(
        (x, y, None), validation_split=0.3
    )
    np.testing.assert_array_equal(first[0], x[:7])
    np.testing.assert_array_equal(last[1], y[7:])
    assert first[2] is last[2] is None


class Listener(keras.layers.Layer):
    """Says what it heard."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        _keras.receive_sampling(self)
        self.heard = []

    def call(self, inputs, sampling=None):
        self.heard.append(sampling)
        return inputs


@pytest.mark.parametrize("nested", [False, True])
def test_sampling_travels_from_the_outermost_call(nested):
    listener = Listener()
    inputs = keras.Input((3,))
    model = keras.Model(inputs, listener(inputs))
    if nested:
        model = keras.Sequential([model])
    _keras.receive_sampling(model)
    model(np.ones((1, 3)))
    assert listener.heard[-1] is None
    model(np.ones((1, 3)), sampling=True)
    assert listener.heard[-1] is True


def test_sampling_travels_through_subclassed_models():
    class Outer(keras.Model):
        def __init__(self):
            super().__init__()
            self.listener = Listener()

        def call(self, inputs, training=None):
            return self.listener(inputs)

    model = Outer()
    _keras.receive_sampling(model)
    model(np.ones((1, 3)), sampling=True)
    assert model.listener.heard[-1] is True


def test_graph_structure():
    inputs = {"a": keras.Input((3,), name="a")}
    model = keras.Model(inputs, [inputs["a"]])
    struct = _keras.graph_structure(model)
    assert set(struct[0]) == {"a"}
    assert isinstance(struct[1], list)


def test_the_axis_of_the_classes():
    loss = keras.losses.SparseCategoricalCrossentropy
    assert _keras.loss_axis(loss(axis=1)) == 1
    assert _keras.loss_axis(loss()) == -1
    assert _keras.loss_axis("sparse_categorical_crossentropy") == -1


def test_producing_node():
    inputs = keras.Input((3,))
    dense = keras.layers.Dense(3)
    outputs = dense(dense(inputs))
    node = _keras.producing_node(outputs)
    assert node.operation is dense
    (between,) = node.input_tensors
    assert _keras.producing_node(between).input_tensors[0] is inputs
    source = _keras.producing_node(inputs)
    assert isinstance(source.operation, keras.layers.InputLayer)
    assert not source.input_tensors


def test_all_layers_at_every_depth():
    inner = keras.Sequential([keras.layers.Dense(2, name="deep")])
    model = keras.Sequential([keras.layers.Dense(3, name="flat"), inner])
    names = [layer.name for layer in _keras.all_layers(model)]
    assert names == ["flat", inner.name, "deep"]


def test_compute_loss():
    model = make_model(rho=False)
    model.compile("sgd", "mse")
    y = np.zeros((2, 2), "float32")
    loss = _keras.compute_loss(model, None, y, y + 3, np.array([1.0, 3.0]))
    assert float(loss) == pytest.approx(9 * 2)


def test_losses_of_a_call_are_told_from_those_of_weights():
    inputs = keras.Input((2,))
    x = keras.layers.Dense(3, kernel_regularizer="l2")(inputs)
    x = keras.layers.ActivityRegularization(l2=0.5)(x)
    model = keras.Model(inputs, keras.layers.Dense(1, bias_regularizer="l1")(x))
    hidden = keras.ops.convert_to_numpy(model.layers[1](np.ones((4, 2))))
    model(np.ones((4, 2)))
    assert len(model.losses) == 3
    (loss,) = _keras.call_losses(model)
    expected = 0.5 * np.sum(np.square(ops.convert_to_numpy(hidden))) / 4
    loss = float(ops.convert_to_numpy(loss))
    assert loss == pytest.approx(expected, rel=1e-5)


def test_steps_are_counted_through_gradient_accumulation():
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=3)
    variable = keras.Variable(1.0)
    for _ in range(4):
        optimizer.apply([ops.array(1.0)], [variable])
    assert _keras.count_steps(optimizer) == 4
    assert int(optimizer.iterations) == 1
    wrapped = keras.optimizers.LossScaleOptimizer(optimizer)
    assert _keras.count_steps(wrapped) == 4
    assert _keras.count_steps(None) == 0


def test_examples_of_an_epoch_are_counted():
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.ones((10, 3))
    model.fit(x, x[:, :1], batch_size=4, epochs=2, verbose=0)
    assert _keras.count_examples(model) == 10


def test_callbacks_ask_metrics_for_their_direction():
    model = make_model(rho=False)
    model.compile(
        loss="sparse_categorical_crossentropy",
        metrics=[keras_crossreg.metrics.ExpectedCalibrationError()],
        run_eagerly=True,
    )
    data = make_data()
    stop = keras.callbacks.EarlyStopping("val_ece")
    model.fit(*data, validation_data=data, callbacks=[stop], verbose=0)
    assert stop.monitor_op is ops.less


def test_compile_has_the_arguments_of_keras():
    ours = inspect.signature(keras_crossreg.CrossRegModel.compile).parameters
    theirs = inspect.signature(keras.Model.compile).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default


def test_input_signature():
    model = make_model(rho=False)
    (spec,) = _keras.get_input_signature(model)
    assert (spec.shape, spec.dtype, spec.name) == (
        (None, 3),
        "float32",
        "features",
    )


def test_where_a_callback_says_that_a_run_goes_on():
    model = make_model(rho=False)
    assert _keras.take_initial_epoch(model) == 0
    # Keras's own callback, and `fit` which asks it, in the same place.
    source = inspect.getsource(keras.callbacks.BackupAndRestore)
    assert "self.model._initial_epoch = " in source
    assert "self._initial_epoch or initial_epoch" in inspect.getsource(
        inspect.unwrap(keras.Model.fit)
    )


def test_callbacks_that_see_two_runs_as_one():
    parameters = inspect.signature(keras.callbacks.CallbackList).parameters
    assert {"callbacks", "add_history", "add_progbar", "model"} <= set(
        parameters
    )


def test_functions_that_predict_samples_and_fit_set_aside():
    model = make_model(rho=False)
    model.compile("sgd", "mse")
    assert model.train_function is model.predict_function is None


def test_fit_has_the_arguments_of_keras():
    ours = inspect.signature(keras_crossreg.CrossRegModel.fit).parameters
    theirs = inspect.signature(keras.Model.fit).parameters
    extra = {"reg_data", "reg_split", "reg_batch_size", "merge_epochs"}
    assert [p for p in ours if p not in extra] == list(theirs)
    assert list(ours)[: len(theirs)] == list(theirs)


def test_what_an_optimizer_was_built_on():
    variable = keras.Variable(1.0)
    optimizer = keras.optimizers.SGD()
    optimizer.build([variable])
    (found,) = _keras.optimized_variables(optimizer)
    assert found is variable


def test_which_variable_of_an_optimizer_this_is():
    first, second = keras.Variable(1.0), keras.Variable(2.0)
    optimizer = keras.optimizers.Adam()
    optimizer.build([first, second])
    assert _keras.variable_index(optimizer, first) == 0
    assert _keras.variable_index(optimizer, second) == 1


def test_layers_know_whether_they_were_called():
    layer = keras.layers.Dropout(0.1)
    assert not _keras.was_called(layer)
    layer(np.ones((1, 2)))
    assert _keras.was_called(layer)


def test_replacing_a_layer_that_is_tracked():
    """In a layer that is built too, which takes no more layers."""
    outer = keras.layers.Layer()
    outer.first = keras.layers.Dropout(0.1)
    outer.last = keras.layers.Dropout(0.1)
    outer.build((None, 4))
    new = keras.layers.Dropout(0.2, name="new")
    with pytest.raises(ValueError, match="cannot add new elements of state"):
        outer.first = new
    _keras.replace_tracked(outer, outer.first, new)
    outer.first = new
    assert _keras.all_layers(outer) == [new, outer.last]
    # A layer that is there already takes no second place.
    _keras.replace_tracked(outer, outer.last, new)
    assert _keras.all_layers(outer) == [new]
    _keras.replace_tracked(outer, keras.layers.Dropout(0.1), new)
    assert _keras.all_layers(outer) == [new]


def test_the_loss_of_each_output_is_a_metric():
    inputs = keras.Input((2,))
    outputs = {n: keras.layers.Dense(1, name=n)(inputs) for n in ("a", "b")}
    model = keras.Model(inputs, outputs)
    assert _keras.variables_of_loss_metrics(model) == []
    model.compile("sgd", dict.fromkeys(outputs, "mse"))
    x = np.ones((3, 2), "float32")
    model.evaluate(x, dict.fromkeys(outputs, x[:, :1]), verbose=0)
    # A total and a count of each.
    assert len(_keras.variables_of_loss_metrics(model)) == 4


def test_losses_of_a_model_are_those_of_its_layers():
    inputs = keras.Input((2,))
    layer = keras.layers.ActivityRegularization(l2=1.0)
    model = keras.Model(inputs, layer(inputs))
    model(np.ones((3, 2), "float32"))
    losses = _keras.losses_by_layer(model)
    assert [float(v) for of_layer in losses for v in of_layer] == [2.0]
    halved = [[v / 2 for v in of_layer] for of_layer in losses]
    _keras.set_losses_by_layer(model, halved)
    assert [float(v) for v in model.losses] == [1.0]


def test_messages_go_where_those_of_keras_go(capsys, caplog):
    _keras.print_message("seen")
    assert capsys.readouterr().out == "seen\n"
    keras.config.disable_interactive_logging()
    try:
        _keras.print_message("logged")
    finally:
        keras.config.enable_interactive_logging()
    assert capsys.readouterr().out == ""
