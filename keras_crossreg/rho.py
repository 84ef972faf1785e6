"""What makes a Keras variable a regularization weight."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
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


@dataclasses.dataclass(frozen=True)
class RhoInfo:
    """What `mark_rho` notes on a variable."""

    meaning: str
    parametrization: Parametrization
    start: Any


def mark_rho(
    variable: keras.Variable,
    meaning: str = "",
    parametrization: Parametrization = IDENTITY,
    start: Any = None,
) -> keras.Variable:
    """Makes a Keras variable rho: learned on the regularization set alone.

    Call it from inside a custom layer's `build`. The variable leaves the
    model's `trainable_variables`, so that no optimizer of theta, with its
    weight decay, clipping and averages, can touch it, in a `CrossRegModel` or
    in a plain `keras.Model`. `CrossRegModel.fit` moves it by the gradient of
    the regularization loss.

    Args:
        variable: A `keras.Variable` of dtype `"float32"`. Pass
            `dtype="float32", autocast=False` to `add_weight`, so that it is
            one under every dtype policy.
        meaning: String, what it means, for `rho_summary()`, e.g.
            `"noise sigma"`.
        parametrization: How the stored value reads in human units. Defaults
            to the value itself.
        start: The start value in human units, for `rho_summary()`. `None`
            where it is not known before the first data.

    Returns:
        The variable.

    Raises:
        ValueError: If `variable` is not a `keras.Variable` of dtype
            `"float32"`.

    Example:

    >>> class Shift(keras.layers.Layer):
    ...     def build(self, input_shape):
    ...         self.shift = kcr.mark_rho(
    ...             self.add_weight(
    ...                 dtype="float32", autocast=False, trainable=False
    ...             )
    ...         )
    ...     def call(self, inputs):
    ...         return inputs + ops.cast(self.shift, inputs.dtype)

    Reference:

    - [Brito, 2025](https://arxiv.org/abs/2506.19755), section 3: the two
      groups of parameters.
    """
    if not isinstance(variable, keras.Variable):
        raise ValueError(
            "`mark_rho` expects a `keras.Variable`. "
            f"Received: variable={variable}"
        )
    if keras.backend.standardize_dtype(variable.dtype) != "float32":
        raise ValueError(
            "Rho are float32 under every dtype policy: pass "
            '`dtype="float32", autocast=False` to `add_weight`. '
            f"Received: variable={variable.path} of dtype {variable.dtype}"
        )
    variable.trainable = False
    variable._rho_info = RhoInfo(meaning, parametrization, start)
    return variable


def unmark_rho(variable: keras.Variable) -> None:
    """Makes a rho a trainable weight again."""
    del variable._rho_info
    variable.trainable = True


def is_rho(variable: keras.Variable) -> bool:
    """Whether `mark_rho` was called on this variable.

    Example:

    >>> layer = kcr.layers.GaussianNoiseScale()
    >>> layer.build((None, 8))
    >>> [kcr.is_rho(v) for v in layer.weights]
    [True]
    """
    return hasattr(variable, "_rho_info")


def rho_variables_of(model: Any) -> list[keras.Variable]:
    """Of a `CrossRegModel` or of any other `keras.Model`, as they are now."""
    if hasattr(type(model), "rho_variables"):
        model._read_level_sets()
        found: list[keras.Variable] = model.rho_variables
        return found
    return [v for v in model.weights if is_rho(v)]


def rho_info(variable: keras.Variable) -> RhoInfo:
    """The notes that `mark_rho` left on a rho."""
    info: RhoInfo = variable._rho_info
    return info


def human_value(variable: keras.Variable) -> Any:
    """A rho in human units: a float, or a NumPy array where it has a shape."""
    stored = ops.convert_to_tensor(variable)
    value = rho_info(variable).parametrization.to_human(stored)
    value = ops.convert_to_numpy(value)
    return float(value) if value.ndim == 0 else value


def assign_human_value(variable: keras.Variable, value: Any) -> None:
    """Sets a rho from human units; see `stored_value`."""
    variable.assign(stored_value(variable, value))


def stored_value(variable: keras.Variable, value: Any) -> np.ndarray:
    """A value in human units as the rho stores it.

    Raises:
        ValueError: If the value is not finite, out of the range of the
            parametrization, or of a shape that does not fit.
    """
    array = np.asarray(value, "float64")
    parametrization = rho_info(variable).parametrization
    least, most = parametrization.least, parametrization.most
    inside = np.isfinite(array) & (array >= least) & (array <= most)
    if not inside.all():
        raise ValueError(
            f"A rho takes finite values, here from {least:g} to {most:g}. "
            f"Received: {variable.path}={array}"
        )
    if array.ndim and tuple(array.shape) != tuple(variable.shape):
        raise ValueError(
            f"Expected a scalar or a value of shape {tuple(variable.shape)} "
            f"for the rho '{variable.path}'. Received: value={value} of shape "
            f"{array.shape}"
        )
    array = np.broadcast_to(array, tuple(variable.shape))
    stored: np.ndarray = parametrization.from_human(array).astype("float32")
    return stored


def check_start(
    name: str, value: Any, zero: bool = True, below: float = math.inf
) -> float:
    """A start value of a positive rho, as a float.

    Args:
        name: String, of the argument.
        value: As given.
        zero: Whether it may be 0.
        below: What it must be smaller than.

    Raises:
        ValueError: If it is out of range or not finite.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    # Not true of "not a number" either.
    if not (0 < number < below or (zero and number == 0)):
        allowed = "that is not negative" if zero else "above 0"
        if below < math.inf:
            allowed += f" and below {below:g}"
        raise ValueError(
            f"`{name}` must be a finite number {allowed}. "
            f"Received: {name}={value}"
        )
    return number
