"""What the library takes of private Keras API, with `_keras_backends.py`.

Each name says why public API does not do. `tests/test_keras_private.py`
fails when Keras changes any of them.
"""

from __future__ import annotations

from typing import Any

import keras

# It tells what a call would do to shapes, and creates state on the way.
from keras.src.backend import compute_output_spec

# A tensor's mask is an attribute that averaging would drop.
from keras.src.backend import get_keras_mask
from keras.src.backend import set_keras_mask

# `export` asks it for the inputs of a model; so does a model around that one.
from keras.src.export.export_utils import get_input_signature

# Under a strategy, `compute_loss` divides by the number of replicas; what the
# progress bar shows must not be.
from keras.src.losses.loss import unscale_loss_for_distribution

# The class behind `keras.Model(inputs, outputs)`. Keras makes a functional
# subclass by rewriting the bases of every class above it, after which none of
# them can be subclassed by `call` in the same process. Inheriting from it
# leaves the bases alone.
from keras.src.models.functional import Functional

# `Model.__init__` decides with it whether its arguments mean a graph.
from keras.src.models.model import functional_init_arguments

# A class created at run time must be saved under its parent's registered name.
from keras.src.saving.object_registration import GLOBAL_CUSTOM_NAMES

# The metrics of `compile` behind one object; a second one is needed for the
# regularization set, with the names and the structure of the first.
from keras.src.trainers.compile_utils import CompileMetrics

# It reads every form of data that `fit` takes alike: arrays,
# `tf.data.Dataset`, `PyDataset`, generators, torch `DataLoader`.
from keras.src.trainers.data_adapters import get_data_adapter

# It tells which data are arrays, to Keras.
from keras.src.trainers.data_adapters.array_data_adapter import (
    can_convert_arrays,
)

# They turn any array that `fit` takes (NumPy, pandas, SciPy, torch, tensors,
# sparse and ragged ones too) into one that the backend takes, and rows of it.
from keras.src.trainers.data_adapters.array_slicing import convert_to_sliceable
from keras.src.trainers.data_adapters.array_slicing import (
    slice_tensorflow_sparse_wrapper,
)

# `reg_split` cuts as `validation_split` does.
from keras.src.trainers.data_adapters.array_slicing import (
    train_validation_split,
)

# Messages that go where Keras's own go, or are silent with them.
from keras.src.utils.io_utils import print_msg as print_message

from keras_crossreg._keras_backends import NestedScope
from keras_crossreg._keras_backends import batches_of
from keras_crossreg._keras_backends import devices_of_batches
from keras_crossreg._keras_backends import distribute_batch
from keras_crossreg._keras_backends import is_at_hand
from keras_crossreg._keras_backends import jax_state_variables
from keras_crossreg._keras_backends import mark_synced
from keras_crossreg._keras_backends import read_state
from keras_crossreg._keras_backends import sliceables
from keras_crossreg._keras_backends import store_value
from keras_crossreg._keras_backends import stored_value
from keras_crossreg._keras_backends import synced_in_the_end
from keras_crossreg._keras_backends import take_rows
from keras_crossreg._keras_backends import torch_device
from keras_crossreg._keras_backends import variable_index

__all__ = [
    "CompileMetrics",
    "Functional",
    "GraphModel",
    "NestedScope",
    "all_layers",
    "array_inputs",
    "attributes_of",
    "averages_of",
    "batches_of",
    "build_metrics",
    "call_losses",
    "can_convert_arrays",
    "compute_loss",
    "compute_output_spec",
    "convert_to_sliceable",
    "count_examples",
    "count_steps",
    "devices_of_batches",
    "distribute_batch",
    "functional_init_arguments",
    "get_keras_mask",
    "get_data_adapter",
    "get_input_signature",
    "graph_operations",
    "graph_structure",
    "graph_tensors",
    "inner_optimizer",
    "jax_state_variables",
    "keep_registered_name",
    "is_at_hand",
    "is_in_a_graph",
    "is_in_cluster",
    "is_keras_layer",
    "learning_rate_of",
    "loss_axis",
    "losses_by_layer",
    "make_step_function",
    "mark_synced",
    "optimized_variables",
    "print_message",
    "producing_node",
    "read_state",
    "receive_sampling",
    "replace_tracked",
    "set_keras_mask",
    "set_losses_by_layer",
    "set_lower_is_better",
    "set_steps",
    "sliceables",
    "store_value",
    "stored_value",
    "slice_tensorflow_sparse_wrapper",
    "synced_in_the_end",
    "take_initial_epoch",
    "take_rows",
    "torch_device",
    "train_validation_split",
    "unscale_loss_for_distribution",
    "variable_index",
    "variables_of_loss_metrics",
    "was_called",
]


class GraphModel(Functional):
    """A functional model with a say in how each operation is called.

    `graph_walk(inputs)` returns `None`, or an object with
    `wrap(operation, call)`, which is called in the place of `call`, and
    `finish(outputs)`. Keras walks the graph in a private method, the only
    place in which one operation can be told from the next.
    """

    def _run_through_graph(
        self,
        inputs: Any,
        operation_fn: Any = lambda operation: operation,
        call_fn: Any = None,
    ) -> Any:
        run = super()._run_through_graph
        walk = self.graph_walk(inputs)
        if walk is None:
            return run(inputs, operation_fn, call_fn)
        outputs = run(
            inputs,
            lambda operation: walk.wrap(operation, operation_fn(operation)),
            call_fn,
        )
        return walk.finish(outputs)

    def graph_walk(self, inputs: Any) -> Any:
        raise NotImplementedError


def graph_tensors(model: Any) -> list[Any]:
    """Every symbolic tensor of a functional model.

    Layers know those of every graph that they are in.
    """
    return [
        tensor
        for nodes in model._nodes_by_depth.values()
        for node in nodes
        for tensor in node.outputs
    ]


def is_keras_layer(operation: Any) -> bool:
    """Whether this is a layer of Keras itself, and not of a class of its own.

    Subclasses of a layer say nowhere else that they are not Keras's.
    """
    return type(operation).__module__.startswith("keras.src.layers.")


def graph_operations(model: Any) -> list[Any]:
    """Every operation of a functional model, a layer or not, each once.

    `model.layers` has layers alone.
    """
    return list(model._operations)


def receive_sampling(layer: Any) -> None:
    """Lets `sampling=` travel from the outermost call to every layer in it.

    A call-context argument goes through functional, nested and subclassed
    models alike, as `training` does; Keras has no public call for it.
    """
    layer._register_call_context_args("sampling")


def was_called(layer: Any) -> bool:
    """Whether a layer was ever called, on tensors or symbolic ones.

    What a layer inside of another was called on is in no graph.
    """
    return bool(layer._called)


def replace_tracked(layer: Any, old: Any, new: Any) -> None:
    """Replaces a layer in the list of those that another layer has.

    Layers that are built take no more layers, and forget none that was
    overwritten. The new one stands where the old one did, so that weights keep
    their order.
    """
    tracker = layer._tracker
    if not tracker.is_in_store("layers", old):
        return
    if tracker.is_in_store("layers", new):
        tracker.untrack(old)
    else:
        tracker.replace_tracked_value("layers", old, new)


def keep_registered_name(cls: type, parent: type) -> None:
    """Makes `cls` save under the name that `parent` is registered with."""
    if parent in GLOBAL_CUSTOM_NAMES:
        GLOBAL_CUSTOM_NAMES[cls] = GLOBAL_CUSTOM_NAMES[parent]


def attributes_of(layer: Any) -> dict[str, Any]:
    """What was assigned to a layer, by name, and what Keras keeps there.

    PyTorch has modules in a dict of their own, of which its public methods
    list each module once, under one of its names.
    """
    return {**vars(layer), **getattr(layer, "_modules", {})}


def array_inputs(adapter: Any) -> Any:
    """The arrays of an adapter, checked and packed as its batches are.

    Its own `tf.data.Dataset` shuffles by a random state that is not ours.
    """
    return adapter._inputs


def graph_structure(model: Any) -> tuple[Any, Any]:
    """Inputs and outputs of a functional model as the user nested them.

    `model.inputs` and `model.outputs` are flat lists.
    """
    return model._inputs_struct, model._outputs_struct


def is_in_a_graph(layer: Any) -> bool:
    """Whether a layer was called on symbolic tensors.

    It knows its calls in no public attribute that tells without an error.
    """
    return bool(layer._inbound_nodes)


def producing_node(tensor: Any) -> Any:
    """The call that made a symbolic tensor: its `operation` and its inputs.

    For walks through a graph, in which layers know their successors alone by
    the tensors between them.
    """
    operation, node_index, _ = tensor._keras_history
    return operation._inbound_nodes[node_index]


def make_step_function(model: Any, step: Any) -> Any:
    """Compiles `step(batch)` as Keras compiles `train_step`.

    It brings `jit_compile`, `run_eagerly` and distribution for a second step
    at no code of our own.
    """
    return model._make_function(step)


def all_layers(model: Any) -> list[Any]:
    """Every layer at every depth, each once, in the order of the network.

    `model.layers` stops at the first level.
    """
    return list(model._flatten_layers(include_self=False))


def compute_loss(model: Any, x: Any, y: Any, y_pred: Any, weight: Any) -> Any:
    """`model.compute_loss` whether or not an override takes `training`."""
    return model._compute_loss(
        x=x, y=y, y_pred=y_pred, sample_weight=weight, training=False
    )


def loss_axis(loss: Any) -> int:
    """The axis of the classes, which a loss of Keras's keeps to itself."""
    return int(getattr(loss, "_fn_kwargs", {}).get("axis", -1))


def variables_of_loss_metrics(model: Any) -> list[Any]:
    """Of the means of the loss of each output, which `compute_loss` updates.

    Among the metrics of a model they are told from others by no public name.
    """
    loss = model._compile_loss
    metrics = [] if loss is None else loss.metrics
    return [v for metric in metrics for v in metric.variables]


def call_losses(model: Any) -> list[Any]:
    """What the last call of the model added by `add_loss`.

    `model.losses` has those of weights behind them, which no call makes.
    """
    of_weights = len(model._get_regularization_losses())
    return list(model.losses[: len(model.losses) - of_weights])


def losses_by_layer(model: Any) -> list[list[Any]]:
    """What the last call added by `add_loss`, layer by layer.

    `model.losses` is made of these, and of no other.
    """
    return [
        layer._get_own_losses()
        for layer in model._flatten_layers(include_self=True)
    ]


def set_losses_by_layer(model: Any, losses: list[list[Any]] | None) -> None:
    """Sets what `losses_by_layer` gives, or clears all."""
    layers = list(model._flatten_layers(include_self=True))
    model._clear_losses()
    for layer, of_layer in zip(
        layers, losses or [[]] * len(layers), strict=True
    ):
        if of_layer:
            layer.add_loss(of_layer)


def is_in_cluster(strategy: Any) -> bool:
    """Whether a `MultiWorkerMirroredStrategy` has several machines.

    It has one where no cluster is set up, which TensorFlow says nowhere else.
    """
    return bool(strategy.extended._in_multi_worker_mode())


def build_metrics(metrics: CompileMetrics, *symbolic: Any) -> None:
    """Creates the state of metrics from `KerasTensor`s, as Keras's own is.

    Some create it only when they are updated, which inside a compiled step of
    a strategy is too late.
    """

    def update(*args: Any) -> Any:
        metrics.update_state(*args)
        # PyTorch wants to see a tensor.
        return keras.ops.zeros(())

    compute_output_spec(update, *symbolic)


def inner_optimizer(optimizer: Any) -> Any:
    """The optimizer itself, where loss scaling wraps it."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def averages_of(optimizer: Any) -> list[Any]:
    """The moving averages of weights that `use_ema` keeps, in their order.

    They are among its variables, under names alone.
    """
    return list(getattr(optimizer, "_model_variables_moving_average", []))


def learning_rate_of(optimizer: Any) -> Any:
    """The variable or the schedule that the learning rate comes from.

    `optimizer.learning_rate` is the number that a schedule gives now.
    """
    return optimizer._learning_rate


def optimized_variables(optimizer: Any) -> list[Any]:
    """What an optimizer was built on, for gradients that come alone.

    `optimizer.variables` are its own.
    """
    return list(optimizer._trainable_variables)


def set_lower_is_better(metric: Any) -> None:
    """Tells callbacks with `mode="auto"` what an improvement is.

    They ask each metric for this attribute, which has no public name.
    """
    metric._direction = "down"


def take_initial_epoch(model: Any) -> int:
    """Where a callback says that a run goes on; it is not said again.

    `BackupAndRestore` writes it on the model, and `fit` reads it.
    """
    epoch, model._initial_epoch = model._initial_epoch, None
    return epoch or 0


def count_examples(model: Any) -> int:
    """Examples that the mean of the training loss is of, since its reset.

    What comes in batches says nowhere else how large they are.
    """
    return int(model._loss_tracker.count.numpy())


def count_steps(optimizer: Any) -> int:
    """Training steps that this optimizer has seen.

    `optimizer.iterations` counts updates, which `gradient_accumulation_steps`
    makes fewer.
    """
    if optimizer is None:
        return 0
    return int(inner_optimizer(optimizer)._iterations.numpy())


def set_steps(optimizer: Any, steps: int) -> None:
    """Sets what `count_steps` counts, which has no public name."""
    inner_optimizer(optimizer)._iterations.assign(steps)
