"""When rho step: every r training steps, after a warm-up."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import keras

# The start of a moving average has a part of exp(-2), 14 %, in it after so
# many time constants.
TIME_CONSTANTS = 2
# The part of a training that a warm-up takes, at the most: a short training
# is spent learning rho all the same.
MOST = 0.25


@dataclasses.dataclass
class RhoSchedule:
    """Counts training steps, and tells how many rho steps they make due.

    Args:
        reg_freq: Integer r, training steps per rho step; `None` until the
            first batches tell what the default is.
        reg_warmup: Integer, training steps before rho start to learn.
        steps: Integer, the training steps that were taken so far.
    """

    reg_freq: int | None
    reg_warmup: int
    steps: int = 0

    def advance(self, steps: int) -> int:
        """The number of rho steps that are due when so many were taken."""
        before, self.steps = self.steps, steps
        return self._rho_steps(steps) - self._rho_steps(before)

    def _rho_steps(self, steps: int) -> int:
        """Multiples of r, after the warm-up, in so many training steps."""
        assert self.reg_freq is not None
        return max(0, steps - self.reg_warmup) // self.reg_freq


def default_reg_freq(
    num_samples: int, reg_batch_size: int, batch_size: float
) -> int:
    """The r of which rho steps add a ninth of the work of training at most.

    They add `K B_reg / (r B) * 2/3`. `B_reg / B` is 1 where B is not known,
    which is 0: in a training step of one's own that measures no loss.
    """
    part = reg_batch_size / batch_size if batch_size else 1.0
    return max(1, math.ceil(6 * num_samples * part))


def default_reg_warmup(
    layers: Iterable[keras.layers.Layer], steps: int | None = None
) -> int:
    """Training steps until batch normalization predicts as it trains.

    The regularization pass normalizes as predictions do, by moving averages,
    which start at 0 and 1 and forget that by `momentum` a step. Before, the
    regularization loss is that of a network that no one trained, and rho that
    follow it may not come back: noise, and more so the width of an
    augmentation, falls to where its gradient is nearly 0.

    Args:
        layers: Of the model, at every depth.
        steps: Of the whole training, where that is known.

    Returns:
        `2 / (1 - momentum)`, of the slowest layer that follows theta: 200 of
        Keras's default, 0 without such a layer. At most a quarter of `steps`.
    """
    momenta = [
        float(layer.momentum)
        for layer in layers
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable
        and layer.momentum < 1
    ]
    if not momenta:
        return 0
    warmup = TIME_CONSTANTS / (1 - max(momenta))
    return round(warmup if steps is None else min(warmup, MOST * steps))
