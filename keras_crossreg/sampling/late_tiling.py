"""Layers before the first noise, once for all samples of a tiled pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import tree

from keras_crossreg._keras import graph_tensors
from keras_crossreg.sampling.averaging import tile
from keras_crossreg.sampling.stochastic_layers import draws


class LateTiling:
    """Walks the graph of a model, and repeats the batch only where it must.

    What does not depend on noise is the same for all K samples. A tensor is
    repeated where an operation that draws takes it, or one that also takes
    what depends on noise; then all have the values that they would have if the
    inputs had been repeated.

    Args:
        inputs: Those of the model.
        num_samples: Integer K.
    """

    def __init__(self, inputs: Any, num_samples: int) -> None:
        self.num_samples = num_samples
        # Tensors of the graph that are no batch of samples, and those that
        # are, by their `id`: the values keep them alive.
        self.once = _by_id(inputs)
        self.tiled: dict[int, Any] = {}
        # What tensors of the first kind are when they are repeated.
        self.repeated: dict[int, Any] = {}

    def wrap(
        self, operation: Any, call: Callable[..., Any]
    ) -> Callable[..., Any]:
        """What to call in the place of an operation."""

        def call_once_or_tiled(*args: Any, **kwargs: Any) -> Any:
            taken = tree.flatten((args, kwargs))
            if draws(operation) or any(id(x) in self.tiled for x in taken):
                args, kwargs = tree.map_structure(self._tile, (args, kwargs))
                outputs = call(*args, **kwargs)
                self.tiled |= _by_id(outputs)
            else:
                outputs = call(*args, **kwargs)
                self.once |= _by_id(outputs)
            return outputs

        return call_once_or_tiled

    def finish(self, outputs: Any) -> Any:
        """The outputs of the model, all of them tiled."""
        return tree.map_structure(self._tile, outputs)

    def _tile(self, x: Any) -> Any:
        # Constants of the graph are of neither kind.
        if id(x) not in self.once:
            return x
        if id(x) not in self.repeated:
            self.repeated[id(x)] = tile(x, self.num_samples)
        return self.repeated[id(x)]


def can_tile_late(model: Any) -> bool:
    """Whether every tensor of a functional model is a batch along axis 0."""
    return all(
        len(tensor.shape) > 0 and tensor.shape[0] is None
        for tensor in graph_tensors(model)
    )


def _by_id(structure: Any) -> dict[int, Any]:
    return {id(x): x for x in tree.flatten(structure) if x is not None}
