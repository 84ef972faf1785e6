"""How a stored rho, free to take any value, reads in human units."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops


@dataclasses.dataclass(frozen=True)
class Parametrization:
    """How a stored rho, free to take any value, reads in human units.

    Args:
        name: String, as shown in error messages.
        to_human: Callable from a tensor of rho to a tensor in human units.
        from_human: Callable from a NumPy array, or a tensor, in human units
            to one of rho.
        least: Float, the smallest value in human units.
        most: Float, the largest.
    """

    name: str
    to_human: Callable[[Any], Any]
    from_human: Callable[[Any], Any]
    least: float = -math.inf
    most: float = math.inf


# Below this, `softplus` has no inverse in float32.
_SMALLEST_POSITIVE = 1e-8
# Above this, float32 knows 1 alone.
_LARGEST_RATE = 1 - 1e-7


def _inverse_softplus(value: Any) -> Any:
    xp, value = _namespace(value)
    value = xp.maximum(value, _SMALLEST_POSITIVE)
    return value + xp.log(-xp.expm1(-value))


def _logit(value: Any) -> Any:
    xp, value = _namespace(value)
    value = xp.clip(value, _SMALLEST_POSITIVE, _LARGEST_RATE)
    return xp.log(value) - xp.log1p(-value)


def _log(value: Any) -> Any:
    xp, value = _namespace(value)
    return xp.log(xp.maximum(value, _SMALLEST_POSITIVE))


def _namespace(value: Any) -> tuple[Any, Any]:
    """NumPy or `keras.ops`, and the value as an array of it."""
    if ops.is_tensor(value):
        return ops, value
    return np, np.asarray(value, "float64")


IDENTITY = Parametrization("identity", lambda rho: rho, lambda value: value)

# value = log(1 + exp(rho)): multiplicative near zero, so that small values
# are reached in few steps and none is ever negative; additive where large.
POSITIVE = Parametrization(
    "positive", ops.softplus, _inverse_softplus, least=0.0
)

# value = exp(rho): multiplicative, for what has no scale of its own.
LOG = Parametrization("log", ops.exp, _log, least=0.0)

# value = 1 / (1 + exp(-rho)): a probability, multiplicative near 0 and 1.
RATE = Parametrization("rate", ops.sigmoid, _logit, least=0.0, most=1.0)
