"""Checks of what several places take: the backend, and arguments."""

from __future__ import annotations

import numbers
from typing import Any

import keras

#: Backends of Keras that models train on.
BACKENDS = ("tensorflow",)


def check_backend() -> str:
    """The backend of Keras that is in use.

    Raises:
        ImportError: If models do not train on it.
    """
    backend: str = keras.backend.backend()
    if backend not in BACKENDS:
        raise ImportError(
            "keras_crossreg trains on the TensorFlow backend so far. Install "
            "it with `pip install 'keras-crossreg[tensorflow]'`, and set "
            "`KERAS_BACKEND=tensorflow` before Keras is imported. "
            f"Received: keras.backend.backend()={backend}"
        )
    return backend


def check_integer(name: str, value: Any, least: int) -> int:
    """The value, or a ValueError where it is no integer or too small."""
    is_integer = isinstance(value, numbers.Integral)
    if isinstance(value, bool) or not is_integer or value < least:
        raise ValueError(
            f"`{name}` must be an integer of {least} or more. "
            f"Received: {name}={value}"
        )
    return int(value)
