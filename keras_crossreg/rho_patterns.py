"""Weights of any layer that `compile(rho=)` makes rho."""

from __future__ import annotations

import re
from typing import Any

import keras

from keras_crossreg.rho import is_rho
from keras_crossreg.rho import mark_rho

# Of paths that an error names.
_MOST_NAMED = 20


def check_patterns(rho: Any) -> tuple[str, ...]:
    """What `compile(rho=)` was given, as regular expressions.

    Raises:
        ValueError: If it is no regular expression, nor a list of them.
    """
    if rho is None:
        return ()
    patterns = (rho,) if isinstance(rho, str) else rho
    try:
        for pattern in patterns:
            re.compile(pattern)
        return tuple(patterns)
    except (TypeError, re.error) as error:
        raise ValueError(
            "`rho` must be a regular expression, or a list of them, that "
            f"paths of weights contain ({error}). Received: rho={rho}"
        ) from error


def mark_by_path(
    weights: list[keras.Variable], patterns: tuple[str, ...]
) -> list[keras.Variable]:
    """Marks as rho what the patterns match, and returns it.

    Args:
        weights: The trainable weights of a model and its rho.
        patterns: Regular expressions, looked for anywhere in a path.

    Raises:
        ValueError: If a pattern matches no weight, or all of them match every
            weight.
    """
    chosen: dict[int, keras.Variable] = {}
    for pattern in patterns:
        matched = [v for v in weights if re.search(pattern, v.path)]
        if not matched:
            paths = [v.path for v in weights[:_MOST_NAMED]]
            more = ", ..." if len(weights) > len(paths) else ""
            raise ValueError(
                "No trainable weight has a path that the pattern is found "
                f"in. The paths are {', '.join(paths)}{more}. "
                f"Received: rho={pattern}"
            )
        chosen.update((id(v), v) for v in matched)
    if patterns and len(chosen) == len(weights):
        raise ValueError(
            "The patterns are found in the path of every trainable weight: "
            f"no theta is left. Received: rho={list(patterns)}"
        )
    marked = [v for v in chosen.values() if not is_rho(v)]
    for variable in marked:
        start = keras.ops.convert_to_numpy(variable)
        mark_rho(variable, meaning=variable.name, start=start)
    return marked
