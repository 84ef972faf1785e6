"""A copy of a graph of layers, made layer by layer."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import keras
from keras import tree

from keras_crossreg._keras import Functional
from keras_crossreg._keras import all_layers
from keras_crossreg._keras import graph_structure
from keras_crossreg._keras import producing_node
from keras_crossreg.rewriting.graph import is_graph
from keras_crossreg.rewriting.graph import plain_graph
from keras_crossreg.rewriting.graph import variables_of


class GraphClone:
    """Copies a model and the models nested in it.

    The copies have the names, the configuration and, after `copy_state`, the
    weights of the layers. A subclass says how each is called in the copy.
    """

    def __init__(self) -> None:
        self.copies: dict[int, Any] = {}
        self.originals: dict[int, Any] = {}
        #: In the order of the copies, a nested model after its layers.
        self.pairs: list[tuple[Any, Any]] = []

    def call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a copy, which `originals` knows the original of."""
        return layer(*args, **kwargs)

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
            if is_graph(operation):
                copy = self.clone(plain_graph(operation))
            else:
                copy = self.make(operation)
            self.copies[id(operation)] = copy
            self.originals[id(copy)] = operation
            self.pairs.append((operation, copy))
        return self.copies[id(operation)]

    def make(self, operation: Any) -> Any:
        """A layer or an operation anew."""
        return copy_of(operation)

    def copy_weights(self, old: Any, new: Any) -> None:
        new.set_weights(old.get_weights())

    def parts(self, old: Any, new: Any) -> Iterable[tuple[Any, Any]]:
        """A layer with all the layers in it, and the same of its copy."""
        inner = zip(all_layers(old), all_layers(new), strict=True)
        return [(old, new), *inner]

    def copy_state(self) -> None:
        """Gives the copies what is not in a layer's config."""
        for old, new in self.pairs:
            if isinstance(new, Functional) or old is new:
                continue
            if variables_of(old):
                self.copy_weights(old, new)
            if hasattr(new, "finalize_state"):
                new.finalize_state()
        # A nested model comes before its layers: it hands its flag down.
        for old, new in reversed(self.pairs):
            if not isinstance(new, keras.layers.Layer):
                continue
            one_layer = isinstance(new, Functional)
            parts = [(old, new)] if one_layer else self.parts(old, new)
            for one, other in parts:
                if other.trainable != one.trainable:
                    other.trainable = one.trainable


def copy_of(operation: Any) -> Any:
    """The same layer or operation, of the same name, without its weights."""
    if hasattr(operation, "adapt") and not variables_of(operation):
        # The vocabulary of such a layer is not in its config.
        return operation
    try:
        with warnings.catch_warnings():
            # Keras warns that a file with a `lambda` is unsafe.
            warnings.simplefilter("ignore")
            return type(operation).from_config(operation.get_config())
    except (NotImplementedError, TypeError, ValueError) as error:
        if not variables_of(operation):
            return operation
        raise ValueError(
            f"A layer cannot be copied: {error}. Give its class a "
            "`get_config()` that returns the arguments of its constructor, "
            "and put `keras.saving.register_keras_serializable` on every class "
            f"and function of your own, as saving needs too. Received: "
            f"layer={operation.name} of type {type(operation).__name__}"
        ) from error
