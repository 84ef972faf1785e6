"""Checks of arguments that several places take."""

from __future__ import annotations

import math
import numbers
from typing import Any


def check_integer(name: str, value: Any, least: int) -> int:
    """The value, or a ValueError where it is no integer or too small."""
    is_integer = isinstance(value, numbers.Integral)
    if isinstance(value, bool) or not is_integer or value < least:
        raise ValueError(
            f"`{name}` must be an integer of {least} or more. "
            f"Received: {name}={value}"
        )
    return int(value)


def check_number(name: str, value: Any, least: int) -> float:
    """The value, or a ValueError where it is too small or not finite."""
    is_number = isinstance(value, numbers.Real)
    if not (is_number and least <= value and math.isfinite(value)):
        raise ValueError(
            f"`{name}` must be a finite number of {least} or more. "
            f"Received: {name}={value}"
        )
    return float(value)


def check_boolean(name: str, value: Any) -> bool:
    """The value, or a ValueError where it is neither true nor false."""
    is_boolean = str(getattr(value, "dtype", "")) == "bool" and not value.shape
    if not (isinstance(value, bool) or is_boolean):
        raise ValueError(
            f"`{name}` must be `True` or `False`. Received: {name}={value}"
        )
    return bool(value)
