"""Sums of gradients, some of which are not there."""

from __future__ import annotations

from typing import Any


def add_gradients(a: Any, b: Any) -> Any:
    """`a + b`, where `None` stands for no gradient."""
    if a is None or b is None:
        return b if a is None else a
    return a + b
