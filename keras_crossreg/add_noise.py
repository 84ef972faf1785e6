"""Learned noise in a model that was made without."""

from __future__ import annotations

import collections
import re
import warnings
from collections.abc import Callable
from typing import Any

import keras
from keras import tree

from keras_crossreg._keras import Functional
from keras_crossreg._keras import all_layers
from keras_crossreg._keras import graph_structure
from keras_crossreg._keras import producing_node
from keras_crossreg.cross_reg_model import CrossRegModel
from keras_crossreg.layers.gaussian_noise_scale import GaussianNoiseScale
from keras_crossreg.layers.normalized_noise_scale import NormalizedNoiseScale
from keras_crossreg.layers.normalized_noise_scale import find_gain
from keras_crossreg.rho import check_start

NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
    keras.layers.UnitNormalization,
)
ACTIVATIONS = (
    keras.layers.Activation,
    keras.layers.ELU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ReLU,
)
OTHER_NONLINEAR = (
    keras.layers.Bidirectional,
    keras.layers.RNN,
    keras.layers.Softmax,
)
# `call` ends with `activation`, and nothing else uses it.
WITH_ACTIVATION = (
    keras.layers.Conv1D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3D,
    keras.layers.Conv3DTranspose,
    keras.layers.Dense,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.EinsumDense,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
# Activations that are operations in the graph, by the names of their classes.
OPERATIONS = {name.replace("_", "") for name in dir(keras.activations)}
NOT_HIDDEN = (
    keras.activations.linear,
    keras.activations.softmax,
    keras.activations.log_softmax,
)

After = (
    type | tuple[type, ...] | list[type] | str | Callable[[Any], bool] | None
)


def add_noise(
    model: keras.Model,
    after: After = None,
    relative: bool | None = None,
    axis: int | tuple[int, ...] | None = None,
    initial_scale: float = 0.3,
    seed: int | None = None,
) -> CrossRegModel:
    """A `CrossRegModel` clone of a model, with noise whose scale is learned.

    The clone has the weights of the model, layers of the same names and
    configuration, and a `GaussianNoiseScale` at each of these places, so that
    every hidden activation sees noise once:

    - after each normalization layer of Keras. With a trainable gain gamma,
      sigma is in units of the *normalized* input,
      `outputs = inputs + sigma * gamma * eps`: what
      `gamma * (normalized + sigma * eps) + beta` gives. No gamma can outgrow
      that noise, in any single channel, as it could noise that is measured
      over all channels;
    - before each hidden activation that no such noise reaches, with
      `relative=True`: in units of the standard deviation of each example's
      own pre-activation. An `activation=` of a `Dense` or a convolution
      becomes an `Activation` layer of its own, `<name>_activation`.

    Softmax, and what is between the last layer with weights and the output,
    get none. The noise layers are called `<name>_noise`. As the noise goes to
    zero, the predictions become those of the model.

    Nested functional and sequential models are rewritten too, and become
    functional. A layer with weights that is called twice has one noise layer,
    as it has one set of weights (where its outputs are of the same shape); a
    layer without, such as one `ReLU` for a whole network, has one for each
    call. Noise that is there already is kept, and no other is put beside it.
    Layers inside of others, such as those of a transformer block that is one
    layer, and inside of subclassed models, are left as they are: name the
    block by `after`.

    A model that was trained without noise is disturbed less by a smaller
    `initial_scale`.

    Args:
        model: A functional or a built sequential `keras.Model`. It is not
            changed.
        after: Where the noise goes, instead: after each layer of this type or
            of these types; after each layer in whose name this regular
            expression is found (`re.search`); or after each layer for which
            this callable returns `True`. Defaults to `None`, the places above.
        relative: Boolean, for all of the noise: `True` for units of the
            standard deviation of each example's own input, `False` for units
            of the input. Defaults to `None`: in units of the normalized input
            after a normalization layer, `True` elsewhere.
        axis: As in `GaussianNoiseScale`: `-1` for a sigma per channel, `None`
            for one in each place. Defaults to `None`.
        initial_scale: Float, the first sigma. Not negative. Defaults to
            `0.3`.
        seed: Integer, optional random seed.

    Returns:
        A functional `CrossRegModel`, to be compiled.

    Raises:
        ValueError: If `model` is not a functional or a built sequential model,
            if one of its layers cannot be copied, if there is no place for
            noise, or if `after` matches no layer or all of them.

    Example:

    >>> model = keras.applications.MobileNetV2(weights="imagenet")
    >>> model = kcr.add_noise(model, initial_scale=0.1)
    >>> head = kcr.add_noise(other, after="head_dense|pooled", axis=-1)

    Reference:

    - [Brito, 2025](https://arxiv.org/abs/2506.19755), section 4: noise on the
      normalized pre-activation.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "`add_noise` expects a `keras.Model`. "
            f"Received: model={model} of type {type(model).__name__}"
        )
    if not _is_graph(model):
        raise ValueError(
            "`add_noise` rewrites functional models and sequential models "
            "that were built. Build a sequential model with "
            "`model.build(input_shape)`. In a model with a `call` of its own, "
            "put `keras_crossreg.layers.GaussianNoiseScale` behind each "
            "normalization yourself, and `keras_crossreg.wrap(model)`. "
            f"Received: model={model} of type {type(model).__name__}"
        )
    graph = _graph(model)
    rewriting = _Rewriting(
        graph,
        _matcher(after),
        relative=relative,
        axis=axis,
        initial_scale=check_start("initial_scale", initial_scale),
        seed=seed,
    )
    rewriting.check_matches(after)
    clone = rewriting.clone(graph)
    rewriting.check_noise(after)
    rewriting.copy_state()
    inputs, outputs = graph_structure(clone)
    return CrossRegModel(
        inputs, outputs, name=model.name, trainable=model.trainable
    )


class _Rewriting:
    """One run of `add_noise`, over a model and the models nested in it."""

    def __init__(
        self,
        graph: keras.Model,
        matches: Callable[[Any], bool] | None,
        relative: bool | None,
        axis: Any,
        initial_scale: float,
        seed: int | None,
    ) -> None:
        self.matches = matches
        self.relative = relative
        self.arguments = dict(axis=axis, initial_scale=initial_scale)
        self.seed = seed
        self.num_noise = 0

        nodes = _nodes(graph.outputs)
        self.names = {node.operation.name for node in nodes}
        self.layers = _distinct_layers(nodes)
        calls = collections.Counter(id(node.operation) for node in nodes)
        #: Layers of the output, unless they are hidden ones as well.
        self.final = {i for i in _final(graph.outputs) if calls[i] == 1}
        #: Layers with noise behind them.
        self.noisy = {
            id(producing_node(tensor).operation)
            for node in nodes
            if isinstance(node.operation, GaussianNoiseScale)
            for tensor in node.input_tensors
        }
        self.matched = {id(v) for v in self.layers if matches and matches(v)}

        self.copies: dict[int, Any] = {}
        self.originals: dict[int, Any] = {}
        #: In the order of the copies, a nested model after its layers.
        self.pairs: list[tuple[Any, Any]] = []
        self.noise: dict[Any, Any] = {}
        self.activations: dict[int, Any] = {}

    # Copies

    def clone(self, graph: keras.Model) -> keras.Model:
        def copy_input(tensor: Any) -> Any:
            layer = producing_node(tensor).operation
            return keras.Input(
                batch_shape=tensor.shape,
                dtype=tensor.dtype,
                sparse=tensor.sparse,
                name=layer.name,
                optional=layer.optional,
            )

        inputs = tree.map_structure(copy_input, graph_structure(graph)[0])
        return keras.models.clone_model(
            graph,
            input_tensors=inputs,
            clone_function=self.copy,
            call_function=self.call,
        )

    def copy(self, operation: Any) -> Any:
        """A layer or an operation anew, or a nested model rewritten."""
        if id(operation) not in self.copies:
            if _is_graph(operation):
                copy = self.clone(_graph(operation))
            else:
                copy = _copy(operation)
            self.copies[id(operation)] = copy
            self.originals[id(copy)] = operation
            self.pairs.append((operation, copy))
        return self.copies[id(operation)]

    def copy_state(self) -> None:
        """Gives the copies what is not in a layer's config."""
        for old, new in self.pairs:
            if isinstance(new, Functional) or old is new:
                continue
            if _variables(old):
                new.set_weights(old.get_weights())
            if hasattr(new, "finalize_state"):
                new.finalize_state()
        # A nested model first: it hands its flag down to its layers.
        for old, new in reversed(self.pairs):
            if not isinstance(new, keras.layers.Layer):
                continue
            parts = [(old, new)]
            if not isinstance(new, Functional):
                parts += zip(all_layers(old), all_layers(new), strict=True)
            for one, other in parts:
                if other.trainable != one.trainable:
                    other.trainable = one.trainable

    # Places

    def call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a copy, with noise before or behind it."""
        old = self.originals[id(layer)]
        if self.matches is not None:
            outputs = layer(*args, **kwargs)
            if id(old) in self.matched:
                outputs = self.add(outputs, old)
            return outputs
        if isinstance(old, NORMALIZATIONS) and id(old) not in self.noisy:
            return self.add(layer(*args, **kwargs), old)
        if not _is_hidden(old) or id(old) in self.final:
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
            if _is_graph(node.operation):
                stack += node.operation.outputs
            elif not _is_nonlinear(node.operation):
                stack += node.input_tensors
        return True

    # Noise

    def add(self, tensors: Any, layer: Any) -> Any:
        """Noise on each tensor that a layer returns, or is called on."""
        flat = tree.flatten(tensors)
        added = [self.add_one(t, layer, i) for i, t in enumerate(flat)]
        return tree.pack_sequence_as(tensors, added)

    def add_one(self, tensor: Any, layer: Any, index: int) -> Any:
        is_float = keras.backend.is_float_dtype(tensor.dtype)
        # Nothing to measure a deviation of.
        is_single = self.matches is None and set(tensor.shape[1:]) <= {1}
        if not is_float or is_single:
            return tensor
        key = (id(layer), index, tuple(tensor.shape))
        noise = self.noise.get(key) if _variables(layer) else None
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
                # Its outputs are of norm 1, not of variance 1.
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

    def check_matches(self, after: After) -> None:
        """Raises a ValueError if `after` matches no layer, or all."""
        if self.matches is None:
            return
        if not self.matched:
            raise ValueError(
                f"`after` matches no layer of the model: {self.there}. "
                f"Received: after={after}"
            )
        if len(self.matched) == len(self.layers):
            raise ValueError(
                "`after` matches every layer of the model, that of the output "
                f"with them: {self.there}. Received: after={after}"
            )

    def check_noise(self, after: After) -> None:
        """Raises a ValueError if no noise was added."""
        if self.num_noise:
            return
        if self.matches is None:
            raise ValueError(
                "The model has no place for noise: no normalization layer of "
                "Keras and no hidden activation that is still without. Say "
                f"by `after` where it goes. The layers: {self.there}. "
                f"Received: after={after}"
            )
        raise ValueError(
            "`after` matches no layer whose outputs are of floating point. "
            f"The layers: {self.there}. Received: after={after}"
        )

    @property
    def there(self) -> str:
        """The layers there are, for messages."""
        shown = [f"{v.name} ({type(v).__name__})" for v in self.layers[:30]]
        if len(self.layers) > len(shown):
            shown.append(f"and {len(self.layers) - len(shown)} more")
        return ", ".join(shown)


def _matcher(after: After) -> Callable[[Any], bool] | None:
    if after is None:
        return None
    if isinstance(after, str):
        try:
            pattern = re.compile(after)
        except re.error as error:
            raise ValueError(
                f"`after` is no regular expression: {error}. "
                f"Received: after={after}"
            ) from error
        return lambda layer: pattern.search(layer.name) is not None
    types: Any = tuple(after) if isinstance(after, (list, tuple)) else (after,)
    if types and all(isinstance(t, type) for t in types):
        return lambda layer: isinstance(layer, types)
    if not callable(after):
        raise ValueError(
            "Expected `after` to be a layer type or several, a regular "
            "expression for names of layers, or a callable from a layer to a "
            f"boolean. Received: after={after}"
        )
    return lambda layer: bool(after(layer))


def _is_graph(model: Any) -> bool:
    """Whether a model is no more than a graph of layers."""
    for kind in (keras.Sequential, Functional):
        if isinstance(model, kind):
            own_call = type(model).call is not kind.call
            return not own_call and bool(getattr(model, "inputs", None))
    return False


def _graph(model: Any) -> Any:
    """A plain functional model of the same layers.

    Plain, as `clone_model` would compile its clones like the originals.
    """
    if isinstance(model, keras.Sequential):
        inputs, outputs = model.inputs[0], model.outputs
        outputs = outputs[0] if len(outputs) == 1 else outputs
    else:
        inputs, outputs = graph_structure(model)
    return keras.Model(inputs, outputs, name=model.name)


def _copy(operation: Any) -> Any:
    """The same layer or operation, of the same name, without its weights."""
    if hasattr(operation, "adapt") and not _variables(operation):
        # Its vocabulary is not in its config.
        return operation
    try:
        with warnings.catch_warnings():
            # That a file with a `lambda` is unsafe.
            warnings.simplefilter("ignore")
            return type(operation).from_config(operation.get_config())
    except (NotImplementedError, TypeError, ValueError) as error:
        if not _variables(operation):
            return operation
        raise ValueError(
            f"A layer cannot be copied: {error}. Give its class a "
            "`get_config()` that returns the arguments of its constructor, "
            "and put `keras.saving.register_keras_serializable` on every class "
            f"and function of your own, as saving needs too. Received: "
            f"layer={operation.name} of type {type(operation).__name__}"
        ) from error


def _nodes(outputs: Any) -> list[Any]:
    """Every call in a graph and in those nested in it, the first ones first."""
    nodes: dict[int, Any] = {}
    stack = list(outputs)
    while stack:
        node = producing_node(stack.pop())
        if id(node) not in nodes:
            nodes[id(node)] = node
            stack += node.input_tensors
            if _is_graph(node.operation):
                stack += node.operation.outputs
    return list(nodes.values())[::-1]


def _distinct_layers(nodes: list[Any]) -> list[Any]:
    layers = {id(node.operation): node.operation for node in nodes}
    return [
        v
        for v in layers.values()
        if isinstance(v, keras.layers.Layer)
        and not isinstance(v, keras.layers.InputLayer)
    ]


def _final(outputs: Any) -> set[int]:
    """What is between the last layers with weights and the outputs."""
    found: set[int] = set()
    stack = list(outputs)
    while stack:
        node = producing_node(stack.pop())
        found.add(id(node.operation))
        if _is_graph(node.operation):
            found |= _final(node.operation.outputs)
        elif not _variables(node.operation):
            stack += node.input_tensors
    return found


def _variables(operation: Any) -> Any:
    """Weights and states of a layer; an operation has none."""
    return getattr(operation, "variables", None)


def _is_nonlinear(operation: Any) -> bool:
    if not isinstance(operation, keras.layers.Layer):
        return type(operation).__name__.lower() in OPERATIONS
    activation = getattr(operation, "activation", keras.activations.linear)
    return (
        activation not in (None, keras.activations.linear)
        or isinstance(operation, ACTIVATIONS[1:])
        or isinstance(operation, OTHER_NONLINEAR)
    )


def _is_hidden(operation: Any) -> bool:
    """Whether noise may go before this activation."""
    if not isinstance(operation, keras.layers.Layer):
        name = type(operation).__name__.lower()
        return name in OPERATIONS and "softmax" not in name
    if isinstance(operation, ACTIVATIONS[1:]):
        return True
    activation = getattr(operation, "activation", None)
    if activation is None or activation in NOT_HIDDEN:
        return False
    # A subclass may do something after its activation.
    return isinstance(operation, keras.layers.Activation) or (
        type(operation) in WITH_ACTIVATION and not _variables(activation)
    )
