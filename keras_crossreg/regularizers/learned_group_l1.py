"""The sum of the norms of groups of a weight, learned."""

from __future__ import annotations

import numbers
from typing import Any

import keras
from keras import ops

from keras_crossreg.regularizers.learned_regularizer import LearnedRegularizer


@keras.saving.register_keras_serializable(package="keras_crossreg")
class LearnedGroupL1(LearnedRegularizer):
    """Learns the sum of the norms of groups: `R = sum_g |weight_g|`.

    What the group lasso sets by a strength. Whole groups become zero,
    exactly: a step that would take a group through zero ends there, and the
    way back onto the level set is the Euclidean projection onto the ball of
    radius R, which shortens all groups by the same length. A group that is
    zero comes back where the loss falls along it more steeply than along
    those that are not, in proportion to their length.

    Steps of mini-batches are noisy, and so is then which groups are zero: let
    the learning rate decay, or train on whole batches.

    Args:
        axis: Integer or tuple of integers: the axes of the weight that have a
            group for every index. In the kernel of a `Dense` layer `0` makes
            groups of all weights of an input, and leaves out whole inputs;
            `-1` leaves out outputs.

    Raises:
        ValueError: If an axis is out of range.

    Example:

    >>> layer = keras.layers.Dense(
    ...     64, kernel_regularizer=kcr.regularizers.LearnedGroupL1(axis=0)
    ... )

    Reference:

    - [Brito, 2025](https://arxiv.org/abs/2506.19755), section 3.
    - [Yuan and Lin, 2006](https://doi.org/10.1111/j.1467-9868.2005.00532.x),
      the group lasso.
    - [Duchi et al., 2008](https://doi.org/10.1145/1390156.1390191), projection
      onto the ball.
    """

    name = "group_l1_norm"

    def __init__(self, axis: int | tuple[int, ...]) -> None:
        self.axis = tuple(axis) if isinstance(axis, (list, tuple)) else axis
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        if not all(isinstance(a, numbers.Integral) for a in axes):
            raise ValueError(
                "`axis` must be an integer or a tuple of integers. "
                f"Received: axis={axis}"
            )

    def _other_axes(self, weight: Any) -> tuple[int, ...]:
        """Those that the norm of a group is over."""
        rank = len(weight.shape)
        own = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        if not all(-rank <= a < rank for a in own):
            raise ValueError(
                f"`axis` must name axes of a weight of rank {rank}. "
                f"Received: axis={self.axis}"
            )
        return tuple(sorted(set(range(rank)) - {a % rank for a in own}))

    def _dot(self, a: Any, b: Any) -> Any:
        """Of each group, with its axes kept."""
        axes = self._other_axes(a)
        return ops.sum(a * b, axis=axes, keepdims=True) if axes else a * b

    def _norms(self, weight: Any) -> Any:
        squared = self._dot(weight, weight)
        # The derivative at zero is zero, and not infinite.
        safe = ops.where(squared > 0, squared, ops.ones_like(squared))
        return ops.where(squared > 0, ops.sqrt(safe), ops.zeros_like(squared))

    def complexity(self, weight: Any) -> Any:
        return ops.sum(self._norms(weight))

    def _active(self, weight: Any) -> Any:
        return ops.cast(self._dot(weight, weight) > 0, weight.dtype)

    def _unit(self, weight: Any) -> Any:
        """`weight_g / |weight_g|`, 0 where the group is."""
        return ops.divide_no_nan(weight, self._norms(weight))

    def move(self, weight: Any, level: Any) -> Any:
        # Groups that are zero stay so, in the derivatives too.
        return self._active(weight) * super().move(weight, level)

    def tangent(self, weight: Any, gradient: Any) -> Any:
        """Minus the projection of `-g` on the directions that keep R.

        To the first order R grows by `u_g . d_g` where the group is not zero,
        u being its direction, and by `|d_g|` where it is.
        """
        unit, active = self._unit(weight), self._active(weight)
        slope, norms = -self._dot(unit, gradient), self._norms(gradient)
        common = _threshold(
            ops.where(active > 0, slope, norms), active > 0, target=0.0
        )
        inside = -gradient - common * unit
        left = ops.maximum(norms - ops.maximum(common, 0), 0)
        entering = -ops.divide_no_nan(left, norms) * gradient
        return -ops.where(active > 0, inside, entering)

    def after_step(self, before: Any, direction: Any, after: Any) -> Any:
        """Ends at zero what would go through it; keeps what is not entering."""
        heading = ops.where(
            self._active(before) > 0, self._unit(before), direction
        )
        kept = ops.cast(self._dot(heading, after) > 0, after.dtype) * after
        # A step that leaves nothing was too large, and is not taken.
        return ops.where(ops.any(kept != 0), kept, before)

    def retract(self, weight: Any, level: Any, num_steps: int = 3) -> Any:
        """The Euclidean projection onto the ball, or outwards to its edge."""
        norms = self._norms(weight)
        active = norms > 0
        outwards = ops.sum(norms) <= level
        shorter = _threshold(
            norms, ops.logical_and(active, outwards), target=level
        )
        shorter = ops.where(
            outwards, shorter, ops.maximum(shorter, ops.zeros_like(shorter))
        )
        length = ops.where(active, ops.maximum(norms - shorter, 0), 0)
        return ops.divide_no_nan(length, norms) * weight

    def get_config(self) -> dict[str, Any]:
        return {"axis": self.axis}


def _threshold(values: Any, always: Any, target: Any) -> Any:
    """Solves `sum_always (v - t) + sum_others max(v - max(t, 0), 0) = target`.

    For t. Others take part where `v > t`: sorted from the largest, the first
    so many. `values` of others are not negative.
    """
    values, always = ops.reshape(values, (-1,)), ops.reshape(always, (-1,))
    target = ops.cast(target, values.dtype)
    count = ops.sum(ops.cast(always, values.dtype))
    total = ops.sum(ops.where(always, values, 0)) - target
    # Values that take part anyway come last, with nothing to add.
    others = -ops.sort(-ops.where(always, ops.zeros_like(values), values))
    places = ops.cumsum(ops.ones_like(others))
    thresholds = ops.divide_no_nan(total + ops.cumsum(others), count + places)
    # A value takes part as long as it is above the threshold that follows.
    taking = ops.cast(others > thresholds, values.dtype) * ops.cast(
        others > 0, values.dtype
    )
    number = ops.sum(taking)
    sums = ops.sum(others * ops.cast(places <= number, values.dtype))
    found = ops.divide_no_nan(total + sums, count + number)
    # A threshold below zero does not make the others larger.
    alone = ops.divide_no_nan(total + sums, count)
    return ops.where(ops.logical_and(found < 0, count > 0), alone, found)
