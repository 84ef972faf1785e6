"""The arrays of a structure, and their masks beside them.

Masks are attributes of arrays, which no transformation of a function keeps.
"""

from __future__ import annotations

from typing import Any

from keras import tree

from keras_crossreg._keras import get_keras_mask
from keras_crossreg._keras import set_keras_mask

Tensors = list[Any]


def flatten(structure: Any) -> tuple[Tensors, Any]:
    """Arrays alone, and what it takes to make the structure of them."""
    flat = tree.flatten(structure)
    arrays = [x for x in flat if x is not None]
    masks = [get_keras_mask(x) for x in arrays]
    present = [m for m in masks if m is not None]
    shape = (
        tree.map_structure(lambda x: None if x is None else 0, structure),
        [x is not None for x in flat],
        [m is not None for m in masks],
    )
    return [*arrays, *present], shape


def unflatten(leaves: Tensors, structure: Any) -> Any:
    """The structure of which `flatten` told how it is made."""
    like, is_there, has_mask = structure
    rest = iter(leaves)
    flat = [next(rest) if there else None for there in is_there]
    arrays = [x for x in flat if x is not None]
    for array, masked in zip(arrays, has_mask, strict=True):
        if masked:
            set_keras_mask(array, next(rest))
    return tree.pack_sequence_as(like, flat)


def with_gaps(gradients: Tensors, flat: list[Any]) -> list[Any]:
    """`None` where the structure has one; what is of masks comes last."""
    rest = iter(gradients)
    return [None if x is None else next(rest) for x in flat]
