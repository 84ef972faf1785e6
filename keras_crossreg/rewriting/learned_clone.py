"""A copy of a model in which what regularizes is learned."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from keras_crossreg._keras import all_layers
from keras_crossreg._keras import is_keras_layer
from keras_crossreg._keras import was_called
from keras_crossreg.layers.rho_layer import RhoLayer
from keras_crossreg.rewriting.graph import is_graph
from keras_crossreg.rewriting.graph import nodes_of
from keras_crossreg.rewriting.graph_clone import GraphClone
from keras_crossreg.rewriting.graph_clone import copy_of
from keras_crossreg.rewriting.layer_parts import GRAPHS
from keras_crossreg.rewriting.layer_parts import LayerWithParts
from keras_crossreg.rewriting.layer_parts import Path
from keras_crossreg.rewriting.layer_parts import inner_layers
from keras_crossreg.rewriting.layer_parts import is_in_place
from keras_crossreg.rewriting.layer_parts import layer_pairs
from keras_crossreg.rewriting.layer_parts import own_weights
from keras_crossreg.rewriting.layer_parts import regularizer_attribute
from keras_crossreg.rewriting.layer_parts import with_parts
from keras_crossreg.rewriting.learned_cells import dropout_parts
from keras_crossreg.rewriting.learned_cells import kind_of
from keras_crossreg.rewriting.learned_cells import makes_own_masks
from keras_crossreg.rewriting.learned_forms import ZERO
from keras_crossreg.rewriting.learned_forms import Form
from keras_crossreg.rewriting.learned_forms import Learned
from keras_crossreg.rewriting.learned_forms import Left
from keras_crossreg.rewriting.learned_forms import noise_form
from keras_crossreg.rewriting.learned_images import image_form
from keras_crossreg.rewriting.learned_weights import weight_form

# It calls the `call` of the layer in it, which so does not hear of a sampling
# pass.
_DEAF = keras.layers.TimeDistributed
_DEAF_REASON = (
    "`TimeDistributed` tells no layer in it that a pass samples: put the layer "
    "outside, with `noise_shape=` if need be"
)
# They set the weights of the layer in them.
_SETS_WEIGHTS = keras.layers.SpectralNormalization

_UNHEARD_REASON = (
    "the layer around it calls it in training alone, and not in a pass that "
    "samples"
)

Parts = list[tuple[Path, Any]]
#: A layer, by its `id`, and what it draws by itself, if that is meant.
Key = tuple[int, str]


@dataclasses.dataclass(frozen=True)
class Row:
    """One regularizer of the model, and what became of it."""

    name: str
    kind: str
    form: Learned | Left


class LearnedClone(GraphClone):
    """One run of `learn_regularizers`, over a model and all that is in it.

    Args:
        unheard: Layers, by their keys, that an earlier run found to be called
            in training alone.
    """

    def __init__(self, unheard: frozenset[Key] = frozenset()) -> None:
        super().__init__()
        self.unheard = unheard
        #: In the order in which they are met.
        self.rows: list[Row] = []
        self.shapes: dict[int, Any] = {}
        #: Layers that were made here, and what was looked at inside of others.
        self.made: dict[Key, RhoLayer] = {}
        self.seen: set[int] = set()
        #: Cells of recurrent layers whose dropout goes before the layer.
        self.idle_cells: set[int] = set()
        self.is_deaf = False

    def find_unheard(self) -> frozenset[Key]:
        """Which of the layers made here no inference pass has called.

        Nor would a sampling pass, which is one.
        """
        return frozenset(k for k, v in self.made.items() if not was_called(v))

    @property
    def num_learned(self) -> int:
        return sum(isinstance(row.form, Learned) for row in self.rows)

    def clone(self, graph: keras.Model) -> keras.Model:
        for node in nodes_of(graph.outputs):
            if node.input_tensors:
                shape = node.input_tensors[0].shape
                self.shapes.setdefault(id(node.operation), shape)
        return super().clone(graph)

    # ---- Layers --------------------------------------------------------------

    def make(self, operation: Any) -> Any:
        """A layer that learns, one with parts that learn, or a plain copy."""
        if not isinstance(operation, keras.layers.Layer):
            return copy_of(operation)
        layer, name = operation, operation.name
        form = self.note(name, layer, self.form_of(layer))
        if isinstance(form, Learned):
            return self.keep(layer, form.by)
        attributes, parts = self.parts_at_top(layer)
        copy = self.copy_with(layer, parts) if parts else copy_of(layer)
        for attribute, regularizer in attributes.items():
            setattr(copy, attribute, regularizer)
        return copy

    def make_whole(self, model: keras.Model) -> keras.Model:
        """A model with a `call` of its own, as one layer; not built."""
        _, parts = self.parts_at_top(model)
        copy: keras.Model = self.copy_with(model, parts)
        self.pairs.append((model, copy))
        return copy

    def form_of(self, layer: Any) -> Form:
        shape = self.shapes.get(id(layer))
        form = noise_form(layer, shape) or image_form(layer, shape)
        return self.heard(form, (id(layer), ""))

    def heard(self, form: Form, key: Key) -> Form:
        """A form, unless what learns would not hear of a sampling pass."""
        if self.is_deaf and isinstance(form, Learned):
            return Left(_DEAF_REASON)
        return Left(_UNHEARD_REASON) if key in self.unheard else form

    def copy_with(self, layer: Any, parts: Parts) -> Any:
        try:
            return with_parts(layer, parts, kind_of(layer, LayerWithParts))
        except (NotImplementedError, TypeError, ValueError) as error:
            raise ValueError(
                f"What regularizes inside of a layer or a model is learned in "
                f"a copy of it, which cannot be made: {error}. Give its class "
                "a `get_config()` that returns the arguments of its "
                "constructor, and put "
                "`keras.saving.register_keras_serializable` on every class "
                "and function of your own, as saving needs too. Received: "
                f"{layer.name} of type {type(layer).__name__}"
            ) from error

    def note(self, name: str, what: Any, form: Form) -> Form:
        if form is not None:
            self.rows.append(Row(name, type(what).__name__, form))
        return form

    def keep(self, original: Any, layer: Any, attribute: str = "") -> Any:
        self.made[id(original), attribute] = layer
        return layer

    # ---- Inside of layers ----------------------------------------------------

    def parts_at_top(self, layer: Any) -> tuple[dict[str, Any], Parts]:
        """Attributes to set, and parts to put into a copy of a layer."""
        attributes: dict[str, Any] = {}
        if not self.may_change(layer):
            return attributes, []
        parts = self.dropouts(layer, layer.name)
        for key, learned in self.weights(layer, layer.name):
            if key.endswith("_regularizer") and is_keras_layer(layer):
                attributes[key] = learned
            else:
                parts.append(((key,), learned))
        parts += self.inside(layer, layer.name)
        self.note_out_of_reach(layer)
        return attributes, parts

    def note_out_of_reach(self, layer: Any) -> None:
        for inner in all_layers(layer):
            if id(inner) not in self.seen and id(inner) not in self.copies:
                if isinstance(self.form_of(inner), Learned):
                    reason = "the layer around it keeps it out of reach"
                    name = f"{layer.name}: {inner.name}"
                    self.note(name, inner, Left(reason))

    def may_change(self, layer: Any) -> bool:
        return not isinstance(layer, (RhoLayer, _SETS_WEIGHTS))

    def inside(self, layer: Any, name: str, path: Path = ()) -> Parts:
        """What goes in the place of what is inside of a layer.

        Args:
            layer: The layer.
            name: What the table calls it.
            path: Where it is.
        """
        before, self.is_deaf = (
            self.is_deaf,
            self.is_deaf or isinstance(layer, _DEAF),
        )
        parts: Parts = []
        if not isinstance(layer, GRAPHS):
            for step, inner in inner_layers(layer):
                where = f"{name}.{'.'.join(map(str, step))}"
                parts += self.part(inner, where, (*path, *step))
        self.is_deaf = before
        return parts

    def part(self, layer: Any, name: str, path: Path) -> Parts:
        """What goes in the place of a layer, or inside of it."""
        if id(layer) in self.copies:
            # What is in two places is one layer in the copy too.
            return [(path, self.copies[id(layer)])]
        if id(layer) in self.seen or not self.may_change(layer):
            return []
        self.seen.add(id(layer))
        if is_graph(layer):
            return self.graph_part(layer, path)
        form = self.form_of(layer)
        # Attention without dropout has a `Dropout` too.
        if not isinstance(form, Left) or form.reason != ZERO:
            self.note(name, layer, form)
        if isinstance(form, Learned):
            self.copies[id(layer)] = self.keep(layer, form.by)
            return [(path, form.by)]
        dropouts = self.dropouts(layer, name)
        own = [((key,), learned) for key, learned in self.weights(layer, name)]
        if dropouts:
            parts = dropouts + own + self.inside(layer, name)
            copy = self.copies[id(layer)] = self.copy_with(layer, parts)
            return [(path, copy)]
        own = [((*path, *step), learned) for step, learned in own]
        return own + self.inside(layer, name, path)

    def graph_part(self, graph: Any, path: Path) -> Parts:
        """A model of layers inside of a layer."""
        learned, pairs = self.num_learned, len(self.pairs)
        copy = self.copy(graph)
        if self.num_learned > learned:
            return [(path, copy)]
        # The copy of the layer around it brings one of its own.
        del self.copies[id(graph)], self.pairs[pairs:]
        return []

    def dropouts(self, layer: Any, name: str) -> Parts:
        """What a recurrent layer or a cell gets for its own dropout."""
        parts: Parts = []
        if id(layer) in self.idle_cells:
            return parts
        if not makes_own_masks(layer):
            self.idle_cells.add(id(layer.cell))
        for key, form in dropout_parts(layer):
            shown = f"{name}.{key.removeprefix('learned_')}"
            heard = self.note(shown, layer, self.heard(form, (id(layer), key)))
            if isinstance(heard, Learned):
                parts.append(((key,), self.keep(layer, heard.by, key)))
        return parts

    def weights(self, layer: Any, name: str) -> list[tuple[str, Any]]:
        """Learned regularizers of the weights of a layer itself.

        Returns:
            Pairs of an attribute and the regularizer: the attribute of the
            layer that `build` reads, or else that of the weight.
        """
        found = []
        for key, weight in own_weights(layer):
            form = weight_form(weight)
            self.note(f"{name}.{weight.name}", weight.regularizer, form)
            if isinstance(form, Learned):
                attribute = regularizer_attribute(layer, weight)
                found.append((attribute or key, form.by))
        return found

    # ---- State ---------------------------------------------------------------

    def check_in_place(self) -> None:
        """Raises a ValueError where a part of a copy found no place."""
        for old, new in self.pairs:
            for path, part in getattr(new, "given_parts", list)():
                if not is_in_place(new, path, part):
                    raise ValueError(
                        "A copy from the config of a layer or a model has no "
                        f"`{'.'.join(map(str, path))}`, which the original "
                        f"has. Received: {old.name} of type "
                        f"{type(old).__name__}"
                    )

    def parts(self, old: Any, new: Any) -> Iterable[tuple[Any, Any]]:
        return layer_pairs(old, new)

    def copy_weights(self, old: Any, new: Any) -> None:
        """Weights of the same layers, in the same order.

        Those of models inside are copied on their own, and what was made here
        has its start values.
        """
        graphs = {
            id(graph)
            for pair in self.pairs
            for graph in pair
            if is_graph(graph)
        }
        skipped = {
            id(w)
            for layer in (old, new)
            for inner in all_layers(layer)
            if id(inner) in graphs
            for w in inner.weights
        }
        skipped |= {
            id(w) for layer in self.made.values() for w in layer.weights
        }
        theirs, ours = (
            [w for w in layer.weights if id(w) not in skipped]
            for layer in (old, new)
        )
        if [w.shape for w in theirs] != [w.shape for w in ours]:
            raise ValueError(
                "A copy from the config of a layer or a model has other "
                "weights than the original. Received: "
                f"{old.name} of type {type(old).__name__}, with weights "
                f"{[w.path for w in theirs]} and in the copy "
                f"{[w.path for w in ours]}"
            )
        for one, other in zip(theirs, ours, strict=True):
            other.assign(ops.copy(one.value))
