"""What makes a Keras variable a regularization weight."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from typing import Any
from typing import Protocol

import keras
import numpy as np
from keras import ops

from keras_crossreg.parametrization import IDENTITY
from keras_crossreg.parametrization import Parametrization

# An error names so many paths at the most.
_MOST_NAMED = 20


class RhoSource(Protocol):
    """What holds the value of a rho that is no state of its own."""

    def read(self) -> None:
        """Sets rho to what its source says."""

    def write_far(self) -> None:
        """Sets the source to what rho says, from any value."""


@dataclasses.dataclass(frozen=True)
class RhoInfo:
    """What `mark_rho` notes on a variable."""

    meaning: str
    parametrization: Parametrization
    start: Any
    #: Where the value of rho is read from; `None` where that is the variable.
    source: RhoSource | None = None


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
    variable.rho_info = RhoInfo(meaning, parametrization, start)
    return variable


def unmark_rho(variable: keras.Variable) -> None:
    """Makes a rho a trainable weight again."""
    del variable.rho_info
    variable.trainable = True


def is_rho(variable: keras.Variable) -> bool:
    """Whether `mark_rho` was called on this variable.

    Example:

    >>> layer = kcr.layers.GaussianNoiseScale()
    >>> layer.build((None, 8))
    >>> [kcr.is_rho(v) for v in layer.weights]
    [True]
    """
    return hasattr(variable, "rho_info")


def rho_variables_of(model: Any) -> list[keras.Variable]:
    """Every rho of a `CrossRegModel` or of any other `keras.Model`."""
    if hasattr(type(model), "rho_variables"):
        found: list[keras.Variable] = model.rho_variables
        return found
    return [v for v in model.weights if is_rho(v)]


def rho_by_key(model: Any) -> dict[str, keras.Variable]:
    """Every rho of a model, in order, each by a key of its own.

    The key is the path of the variable. Where several rho have one path, as
    layers of one name in two nested models have, the names of those models
    come first; and where that does not tell them apart, a number comes last,
    as in the names that Keras makes: `noise/scale`, `noise/scale_1`. Keys stay
    the same when the model is saved and loaded, cloned or refitted.
    """
    rho = rho_variables_of(model)
    counts = collections.Counter(v.path for v in rho)
    within = _names_of_models_around(model)
    found: dict[str, keras.Variable] = {}
    for variable in rho:
        key = variable.path
        if counts[key] > 1:
            key = "/".join([*within.get(id(variable), ()), key])
        unique, number = key, 0
        while unique in found:
            number += 1
            unique = f"{key}_{number}"
        found[unique] = variable
    return found


def _names_of_models_around(model: Any) -> dict[int, tuple[str, ...]]:
    """Of each variable, by its `id`, the nested models that it is in."""
    found: dict[int, tuple[str, ...]] = {}
    stack: list[tuple[Any, tuple[str, ...]]] = [(model, ())]
    while stack:
        outer, names = stack.pop()
        for layer in outer.layers:
            if isinstance(layer, keras.Model):
                inner = (*names, layer.name)
                # A deeper model comes later, and has the last word.
                found.update((id(v), inner) for v in layer.weights)
                stack.append((layer, inner))
    return found


def rho_info(variable: keras.Variable) -> RhoInfo:
    """The notes that `mark_rho` left on a rho."""
    info: RhoInfo = variable.rho_info
    return info


def read_rho(variable: keras.Variable) -> keras.Variable:
    """The rho, which holds the value of its source from now on."""
    source = rho_info(variable).source
    if source is not None:
        source.read()
    return variable


def assign_rho(variable: keras.Variable, stored: Any) -> None:
    """Sets a rho, as it is stored, and its source."""
    # Of another variable it would be the same array, which a backend may give
    # away in the next step of either.
    variable.assign(ops.copy(ops.convert_to_tensor(stored)))
    source = rho_info(variable).source
    if source is not None:
        source.write_far()


def note_course(variable: keras.Variable, values: list[float]) -> None:
    """Leaves the means of a rho, from its start on, for `rho_summary()`."""
    variable.rho_course = values


def course_of(variable: keras.Variable) -> list[float]:
    """The means of a rho that `RhoHistory` saw, while they hold."""
    course: list[float] = getattr(variable, "rho_course", [])
    now = float(np.mean(human_value(variable)))
    is_last = bool(course) and math.isclose(
        course[-1], now, rel_tol=1e-4, abs_tol=1e-6
    )
    return course if is_last else []


def human_value(variable: keras.Variable) -> Any:
    """A rho in human units: a float, or a NumPy array where it has a shape."""
    stored = ops.convert_to_tensor(read_rho(variable))
    value = rho_info(variable).parametrization.to_human(stored)
    value = ops.convert_to_numpy(value)
    return float(value) if value.ndim == 0 else value


def stored_value(variable: keras.Variable, value: Any) -> np.ndarray:
    """A value in human units as the rho stores it.

    Raises:
        ValueError: If the value is not finite, out of the range of the
            parametrization, or of a shape that does not fit.
    """
    try:
        array = np.asarray(value, "float64")
    except (TypeError, ValueError):
        # No number, which is refused below.
        array = np.asarray(np.nan)
    parametrization = rho_info(variable).parametrization
    least, most = parametrization.least, parametrization.most
    inside = np.isfinite(array) & (array >= least) & (array <= most)
    if not inside.all():
        raise ValueError(
            f"A rho takes finite values, here from {least:g} to {most:g}. "
            f"Received: {variable.path}={value}"
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
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    # The comparison is false for "not a number" too.
    if not (0 < number < below or (zero and number == 0)):
        allowed = "that is not negative" if zero else "above 0"
        if below < math.inf:
            allowed += f" and below {below:g}"
        raise ValueError(
            f"`{name}` must be a finite number {allowed}. "
            f"Received: {name}={value}"
        )
    return number


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
