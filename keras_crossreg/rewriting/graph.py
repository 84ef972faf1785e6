"""The graph of layers that a model is."""

from __future__ import annotations

from typing import Any

import keras

from keras_crossreg._keras import Functional
from keras_crossreg._keras import graph_structure
from keras_crossreg._keras import producing_node


def is_graph(model: Any) -> bool:
    """Whether a model is no more than a graph of layers."""
    for kind in (keras.Sequential, Functional):
        if isinstance(model, kind):
            own_call = type(model).call is not kind.call
            return not own_call and bool(getattr(model, "inputs", None))
    return False


def plain_graph(model: Any) -> Any:
    """A plain functional model of the same layers.

    Plain, as `clone_model` would compile its clones like the originals.
    """
    if isinstance(model, keras.Sequential):
        inputs, outputs = model.inputs[0], model.outputs
        outputs = outputs[0] if len(outputs) == 1 else outputs
    else:
        inputs, outputs = graph_structure(model)
    return keras.Model(inputs, outputs, name=model.name)


def nodes_of(outputs: Any) -> list[Any]:
    """Every call in a graph and in those nested in it, the first ones first."""
    nodes: dict[int, Any] = {}
    stack = list(outputs)
    while stack:
        node = producing_node(stack.pop())
        if id(node) not in nodes:
            nodes[id(node)] = node
            stack += node.input_tensors
            if is_graph(node.operation):
                stack += node.operation.outputs
    return list(nodes.values())[::-1]


def distinct_layers(nodes: list[Any]) -> list[Any]:
    layers = {id(node.operation): node.operation for node in nodes}
    return [
        v
        for v in layers.values()
        if isinstance(v, keras.layers.Layer)
        and not isinstance(v, keras.layers.InputLayer)
    ]


def final_operations(outputs: Any) -> set[int]:
    """What is between the last layers with weights and the outputs."""
    found: set[int] = set()
    stack = list(outputs)
    while stack:
        node = producing_node(stack.pop())
        found.add(id(node.operation))
        if is_graph(node.operation):
            found |= final_operations(node.operation.outputs)
        elif not variables_of(node.operation):
            stack += node.input_tensors
    return found


def variables_of(operation: Any) -> Any:
    """Weights and states of a layer; an operation has none."""
    return getattr(operation, "variables", None)
