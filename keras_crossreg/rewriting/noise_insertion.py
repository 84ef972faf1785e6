"""Noise put into a graph of layers."""

from __future__ import annotations

import collections
from typing import Any

import keras
from keras import tree

from keras_crossreg._keras import producing_node
from keras_crossreg.layers.gaussian_noise_scale import GaussianNoiseScale
from keras_crossreg.layers.normalized_noise_scale import NormalizedNoiseScale
from keras_crossreg.layers.normalized_noise_scale import find_gain
from keras_crossreg.rewriting.activations import NORMALIZATIONS
from keras_crossreg.rewriting.activations import WITH_ACTIVATION
from keras_crossreg.rewriting.activations import is_hidden
from keras_crossreg.rewriting.activations import is_nonlinear
from keras_crossreg.rewriting.graph import distinct_layers
from keras_crossreg.rewriting.graph import final_operations
from keras_crossreg.rewriting.graph import is_graph
from keras_crossreg.rewriting.graph import nodes_of
from keras_crossreg.rewriting.graph import variables_of
from keras_crossreg.rewriting.graph_clone import GraphClone
from keras_crossreg.rewriting.layer_choice import After
from keras_crossreg.rewriting.layer_choice import LayerChoice


class NoiseInsertion(GraphClone):
    """One run of `add_noise`, over a model and the models nested in it.

    Args:
        graph: A plain functional model.
        after: See `add_noise`.
        relative: See `add_noise`.
        axis: See `add_noise`.
        initial_scale: See `add_noise`.
        seed: See `add_noise`.

    Raises:
        ValueError: If `after` matches no layer or all of them.
    """

    def __init__(
        self,
        graph: keras.Model,
        after: After,
        relative: bool | None,
        axis: Any,
        initial_scale: float,
        seed: int | None,
    ) -> None:
        super().__init__()
        self.relative = relative
        self.arguments = dict(axis=axis, initial_scale=initial_scale)
        self.seed = seed

        nodes = nodes_of(graph.outputs)
        self.choice = LayerChoice(after, distinct_layers(nodes))
        self.names = {node.operation.name for node in nodes}
        calls = collections.Counter(id(node.operation) for node in nodes)
        #: Layers of the output, unless they are hidden ones as well.
        self.final = {
            i for i in final_operations(graph.outputs) if calls[i] == 1
        }
        #: Layers with noise behind them.
        self.noisy = {
            id(producing_node(tensor).operation)
            for node in nodes
            if isinstance(node.operation, GaussianNoiseScale)
            for tensor in node.input_tensors
        }
        #: How many noise layers were made, and those that are used again.
        self.num_noise = 0
        self.noise: dict[Any, Any] = {}
        self.activations: dict[int, Any] = {}

    # ---- Places --------------------------------------------------------------

    def call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a copy, with noise before or behind it."""
        old = self.originals[id(layer)]
        if self.choice.is_made:
            outputs = layer(*args, **kwargs)
            if old in self.choice:
                outputs = self.add(outputs, old)
            return outputs
        if isinstance(old, NORMALIZATIONS) and id(old) not in self.noisy:
            return self.add(layer(*args, **kwargs), old)
        if not is_hidden(old) or id(old) in self.final:
            return layer(*args, **kwargs)
        if not isinstance(old, WITH_ACTIVATION):
            if self.needs_noise(args[0]):
                args = (self.add(args[0], old), *args[1:])
            return layer(*args, **kwargs)
        if id(old) not in self.activations:
            self.activations[id(old)] = self.split(layer, args[0])
        activation = self.activations[id(old)]
        outputs = layer(*args, **kwargs)
        if activation is None:
            return outputs
        return activation(self.add(outputs, old))

    def split(self, layer: Any, inputs: Any) -> Any:
        """Takes the activation off a layer, if noise has to go between."""
        if not self.needs_noise(inputs):
            return None
        name = self.unique(f"{layer.name}_activation")
        activation = layer.activation
        if isinstance(activation, keras.layers.Layer):
            # On PyTorch no function takes the place of a layer.
            del layer.activation
        layer.activation = keras.activations.linear
        if isinstance(activation, keras.layers.Layer):
            config = {**activation.get_config(), "name": name}
            return type(activation).from_config(config)
        return keras.layers.Activation(
            activation, name=name, dtype=layer.dtype_policy
        )

    def needs_noise(self, inputs: Any) -> bool:
        """Whether no noise reaches a place since the last activation."""
        stack, seen = [inputs], set()
        while stack:
            tensor = stack.pop()
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            node = producing_node(tensor)
            if isinstance(node.operation, GaussianNoiseScale):
                return False
            if is_graph(node.operation):
                stack += node.operation.outputs
            elif not is_nonlinear(node.operation):
                stack += node.input_tensors
        return True

    # ---- Noise ---------------------------------------------------------------

    def add(self, tensors: Any, layer: Any) -> Any:
        """Noise on each tensor that a layer returns, or is called on."""
        flat = tree.flatten(tensors)
        added = [self.add_one(t, layer, i) for i, t in enumerate(flat)]
        return tree.pack_sequence_as(tensors, added)

    def add_one(self, tensor: Any, layer: Any, index: int) -> Any:
        is_float = keras.backend.is_float_dtype(tensor.dtype)
        # A single number has no deviation to measure.
        is_single = not self.choice.is_made and set(tensor.shape[1:]) <= {1}
        if not is_float or is_single:
            return tensor
        key = (id(layer), index, tuple(tensor.shape))
        noise = self.noise.get(key) if variables_of(layer) else None
        if noise is None:
            noise = self.noise[key] = self.make_noise(layer, tensor.dtype)
        return noise(tensor)

    def make_noise(self, layer: Any, dtype: str) -> GaussianNoiseScale:
        cls, relative = GaussianNoiseScale, self.relative
        if relative is None:
            is_normalized = isinstance(layer, NORMALIZATIONS)
            if is_normalized and find_gain(layer) is not None:
                cls, relative = NormalizedNoiseScale, False
            else:
                # The outputs of `UnitNormalization` are of norm 1, not of
                # variance 1.
                is_unit = isinstance(layer, keras.layers.UnitNormalization)
                relative = not is_normalized or is_unit
        seed = None if self.seed is None else self.seed + self.num_noise
        self.num_noise += 1
        return cls(
            relative=relative,
            seed=seed,
            name=self.unique(f"{layer.name}_noise"),
            dtype=getattr(layer, "dtype_policy", dtype),
            **self.arguments,
        )

    def unique(self, name: str) -> str:
        unique, count = name, 0
        while unique in self.names:
            count += 1
            unique = f"{name}_{count}"
        self.names.add(unique)
        return unique
