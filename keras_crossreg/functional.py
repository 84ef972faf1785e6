"""Functional models of a class, with no change to the class."""

from __future__ import annotations

import functools
from typing import Any

from keras_crossreg._keras import Functional
from keras_crossreg._keras import GraphModel
from keras_crossreg._keras import keep_registered_name


@functools.cache
def functional_class(cls: Any) -> Any:
    """`cls` and `Functional` in one, with no change to either.

    `Sub(inputs, outputs)` on a plain Keras subclass rewrites the bases of
    `Sub` and of every class above it, for the whole process.
    """
    if issubclass(cls, Functional):
        return cls
    names = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    functional = type(cls.__name__, (cls, GraphModel), names)
    functional.__qualname__ = cls.__qualname__
    keep_registered_name(functional, cls)
    return functional
