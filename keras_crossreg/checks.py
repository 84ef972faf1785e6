"""Checks of arguments that several places take."""

from __future__ import annotations

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
