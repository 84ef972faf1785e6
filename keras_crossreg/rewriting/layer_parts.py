"""Layers inside of layers: where they are, and others in their place."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras

from keras_crossreg._keras import Functional
from keras_crossreg._keras import all_layers
from keras_crossreg._keras import attributes_of
from keras_crossreg._keras import keep_registered_name
from keras_crossreg._keras import replace_tracked
from keras_crossreg.layers.rho_layer import RhoLayer

#: Keys that lead from a layer to what is in it: names of attributes, indices
#: of lists, keys of dicts.
Path = tuple[Any, ...]


@functools.cache
def _bookkeeping() -> frozenset[str]:
    """What Keras and its backend keep in every layer and model."""
    names: set[str] = set()
    # Names that are given leave those that Keras counts as they are.
    for cls in keras.layers.Layer, keras.Model:
        probe: Any = cls(name="probe")
        probe.inner = keras.layers.Layer(name="inner")
        probe.inners = [probe.inner]
        names |= set(attributes_of(probe)) - {"inner", "inners"}
    return frozenset(names)


_CONTAINERS = (list, tuple, dict)
#: Models that know their layers in more than one place.
GRAPHS = (Functional, keras.Sequential)


def members(holder: Any) -> list[tuple[Any, Any]]:
    """What a layer or a container has, by key: layers, weights, containers."""
    if isinstance(holder, dict):
        found = list(holder.items())
    elif isinstance(holder, (list, tuple)):
        found = list(enumerate(holder))
    else:
        own = attributes_of(holder).items()
        found = [(k, v) for k, v in own if k not in _bookkeeping()]
    kinds = (keras.layers.Layer, keras.Variable, *_CONTAINERS)
    return [(k, v) for k, v in found if isinstance(v, kinds)]


def inner_layers(holder: Any) -> Iterator[tuple[Path, Any]]:
    """The layers directly in a layer, in containers of any depth too."""
    for key, value in members(holder):
        if isinstance(value, keras.layers.Layer):
            yield (key,), value
        elif isinstance(value, _CONTAINERS):
            for path, layer in inner_layers(value):
                yield (key, *path), layer


def find(holder: Any, path: Path) -> Any:
    """What a path leads to; `None` where nothing is there, or not yet."""
    for key in path:
        if isinstance(holder, (list, tuple)):
            holder = holder[key] if key < len(holder) else None
        elif isinstance(holder, dict):
            holder = holder.get(key)
        else:
            holder = getattr(holder, key, None)
        if holder is None:
            return None
    return holder


def layer_pairs(old: Any, new: Any) -> Iterator[tuple[Any, Any]]:
    """A layer and its copy, and so with all the layers in them."""
    seen: set[int] = set()
    stack = [(old, new)]
    while stack:
        one, other = stack.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one, other
        if isinstance(one, GRAPHS):
            inner = all_layers(one), all_layers(other)
            if len(inner[0]) == len(inner[1]):
                yield from zip(*inner, strict=True)
            continue
        for path, layer in inner_layers(one):
            copy = find(other, path)
            if isinstance(copy, keras.layers.Layer):
                stack.append((layer, copy))


class PartsLayer:
    """What a class derived from that of a layer adds: parts of other kinds.

    A layer makes its own dropouts, some in its constructor, some in `build`.
    The derived class has all that the layer has, and puts parts in the place
    of what was made there. In a file it is the config of the layer beside
    those of the parts.
    """

    #: Which of the classes here a derived one adds to that of a layer.
    kind: type | None = None
    #: The config of the layer, and the parts by their paths. Both are
    #: functions, as Keras would track what is in a list or a dict.
    plain_config: Callable[[], dict[str, Any]]
    given_parts: Callable[[], list[tuple[Path, Any]]]

    def put_parts(self) -> None:
        """Puts parts where there is something in whose place they go."""
        for path, part in self.parts_to_put():
            put(self, path, part)

    def parts_to_put(self) -> list[tuple[Path, Any]]:
        # A layer may build itself in its constructor.
        given = getattr(self, "given_parts", None)
        return given() if given else []

    def build_parts(self) -> None:
        """Gives layers that learn their rho, under the names on the way."""
        for path, part in self.parts_to_put():
            if isinstance(part, RhoLayer) and not part.built:
                with contextlib.ExitStack() as scopes:
                    for end in range(1, len(path)):
                        layer = find(self, path[:end])
                        if isinstance(layer, keras.layers.Layer):
                            scopes.enter_context(keras.name_scope(layer.name))
                    # One rho has no need of a shape, and any image will do.
                    shape = getattr(part, "noise_shape", None)
                    part.build(shape or (None,) * 4)

    def get_config(self) -> dict[str, Any]:
        plain: Any = self.plain_config()
        if "trainable" in plain["config"]:
            plain["config"] = {**plain["config"], "trainable": self.trainable}
        # A part that goes to several places is one part in a file too.
        places: dict[int, tuple[Any, list[Any]]] = {}
        for path, part in self.given_parts():
            places.setdefault(id(part), (part, []))[1].append(list(path))
        parts = [
            [paths, _unbuilt(keras.saving.serialize_keras_object(part))]
            for part, paths in places.values()
        ]
        return {"layer": plain, "parts": parts}

    def build_from_config(self, config: Any) -> None:
        build: Any = super().build_from_config  # type: ignore[misc]
        build(config)
        # Models are built by a call, without their `build`.
        self.put_parts()
        self.build_parts()

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> Any:
        read = functools.partial(
            keras.saving.deserialize_keras_object,
            custom_objects=custom_objects,
        )
        parts = []
        for paths, part_config in config["parts"]:
            part = read(part_config)
            parts += [(tuple(path), part) for path in paths]
        return with_parts(read(config["layer"]), parts, cls.kind or cls)

    trainable: Any


@keras.saving.register_keras_serializable(package="keras_crossreg")
class LayerWithParts(PartsLayer):
    """Any layer but those that have more to change; see `derive`."""


def put(layer: Any, path: Path, part: Any) -> None:
    """Puts a part in its place, if there is something there already."""
    there = find(layer, path)
    if isinstance(part, keras.regularizers.Regularizer):
        _put_regularizer(layer, path, part)
    elif isinstance(there, keras.layers.Layer) and there is not part:
        way = [find(layer, path[:end]) for end in range(len(path))]
        owners = [v for v in way if isinstance(v, keras.layers.Layer)]
        replace_tracked(owners[-1], there, part)
        _set(layer, path, part)


def _put_regularizer(layer: Any, path: Path, part: Any) -> None:
    """Gives a weight a regularizer, or a layer before it has the weight."""
    there = find(layer, path)
    if isinstance(there, keras.Variable):
        there.regularizer = part
    elif there is not None and there is not part:
        holder = find(layer, path[:-1])
        for weight in weights_regularized_by(holder, path[-1]):
            weight.regularizer = part
        setattr(holder, path[-1], part)


def own_weights(layer: Any) -> list[tuple[str, keras.Variable]]:
    """The weights of a layer, not of layers in it, by attribute."""
    return [
        (name, value)
        for name, value in attributes_of(layer).items()
        if isinstance(value, keras.Variable)
    ]


def weights_regularized_by(layer: Any, attribute: str) -> list[keras.Variable]:
    """The weights that have their regularizer from an attribute of a layer.

    One object may be the regularizer of several: then names tell.
    """
    given = getattr(layer, attribute)
    found = [w for _, w in own_weights(layer) if w.regularizer is given]
    named = [w for w in found if f"{w.name}_regularizer" == attribute]
    return named or found


def regularizer_attribute(layer: Any, weight: keras.Variable) -> str | None:
    """The public attribute that a layer has the regularizer of a weight in.

    `build` reads it. `None` where there is none, or not of this weight alone.
    """
    name: str
    for name, value in attributes_of(layer).items():
        if (
            value is weight.regularizer
            and name.endswith("_regularizer")
            and not name.startswith("_")
        ):
            found = weights_regularized_by(layer, name)
            if len(found) == 1 and found[0] is weight:
                return name
    return None


def _set(layer: Any, path: Path, value: Any) -> None:
    """Sets what a path leads to."""
    *way, key = path
    holder = find(layer, tuple(way))
    if isinstance(holder, keras.layers.Layer):
        setattr(holder, key, value)
    elif isinstance(holder, tuple):
        items = [value if i == key else v for i, v in enumerate(holder)]
        _set(layer, tuple(way), tuple(items))
    else:
        holder[key] = value


def is_in_place(layer: Any, path: Path, part: Any) -> bool:
    there = find(layer, path)
    if isinstance(there, keras.Variable):
        return there.regularizer is part
    return there is part


def with_parts(
    layer: Any, parts: list[tuple[Path, Any]], kind: type = LayerWithParts
) -> Any:
    """A copy of a layer, without its weights, with parts put in.

    Args:
        layer: The layer. It is not changed.
        parts: Pairs of a path and of the layer that goes there, or of the
            regularizer of the weight there.
        kind: What the class of the copy adds to that of the layer.

    Raises:
        NotImplementedError, TypeError, ValueError: If the layer has no config
            to be copied from.
    """
    plain = _unbuilt(keras.saving.serialize_keras_object(layer))
    original: Any = type(layer)
    cls: Any = derive(kind, original)
    from_config: Any = type(layer).from_config
    copy: Any = getattr(from_config, "__func__", from_config)(
        cls, _unbuilt(layer.get_config())
    )
    if not isinstance(copy, cls):
        raise TypeError(
            f"`{type(layer).__name__}.from_config` does not make an object of "
            "the class that it is called on"
        )
    copy.plain_config = lambda: dict(plain)
    copy.given_parts = lambda: parts
    copy.put_parts()
    if copy.built:
        # Some layers build themselves in their constructor.
        with keras.name_scope(copy.name):
            copy.build_parts()
    return copy


def _unbuilt(config: Any) -> Any:
    """A config whose layers are built with the layer that holds them.

    Those that come with a `build_config` would be built too early to take
    parts.
    """
    if isinstance(config, dict):
        return {
            key: _unbuilt(value)
            for key, value in config.items()
            if key not in ("build_config", "compile_config")
        }
    if isinstance(config, (list, tuple)):
        return type(config)(map(_unbuilt, config))
    return config


@functools.cache
def derive(kind: Any, original: Any) -> Any:
    """A class derived from that of a layer, which builds as that one does."""

    @functools.wraps(original.build)
    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        # Keras's own `build` warns of layers inside that are not built.
        self.build_parts()
        original.build(self, *args, **kwargs)
        # Layers lock themselves at the end of this.
        self.put_parts()
        self.build_parts()

    namespace = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "kind": kind,
        "build": build,
    }
    cls = type(original.__name__, (kind, original), namespace)
    keep_registered_name(cls, kind)
    return cls
