"""Warnings that name the line of the user's code."""

from __future__ import annotations

import inspect
import warnings


def warn_user(message: str) -> None:
    """Warns at the line of the user's that called into the package."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and _is_within(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level + 1)


def _is_within(module: str) -> bool:
    """Whether code of this module runs between the user's and a warning."""
    # `contextlib` leaves what `fit` keeps.
    return module.partition(".")[0] in ("keras_crossreg", "keras", "contextlib")
