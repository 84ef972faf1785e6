"""When rho step: every r training steps, after a warm-up."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import keras

from keras_crossreg.trainers.batch_statistics import moving_normalizations

# The start of a moving average has a part of exp(-2), 14 %, in it after so
# many time constants.
TIME_CONSTANTS = 2
# The part of a training that a warm-up takes, at the most: a short training
# is spent learning rho all the same.
MOST = 0.25
# With the default optimizer, a stored rho moves by a tenth in a step, at the
# most: so many steps take it by 5.
ENOUGH = 50
# Where a run has more, a rho step that looks at both sets is as rare as its
# work asks for.
MANY = 200
# A regularization batch has this part of the examples of a training batch.
PART = 8


@dataclasses.dataclass(frozen=True)
class Work:
    """What a rho step costs, and the defaults that follow from that.

    A rho step of B_reg examples adds `K B_reg / B * 2/3` of the work of a
    training step of B examples: K forward passes, and a backward pass through
    activations alone. Every r training steps, that is a ninth for
    `r = 6 K B_reg / B`, of a training in which rho learn from end to end. In
    others, rho steps are as many, and closer to each other.

    Where as many training examples take part, a rho step costs twice as much.
    A long run has half as many of them then, for a ninth again; a run that
    would have fewer than 200 has more, for two ninths at the most.

    Args:
        num_samples: Integer K.
        num_sets: Integer, the sets whose gradient a rho step takes: 1 or 2.
        steps: Integer, the training steps in which rho may learn; `None` where
            that is not known.
        all_steps: Integer, the steps of the whole training, as well.
    """

    num_samples: int
    num_sets: int = 1
    steps: int | None = None
    all_steps: int | None = None

    def reg_freq(self, reg_batch_size: int, batch_size: float) -> int:
        """The r of which rho steps add a ninth of the work.

        `B_reg / B` is 1 where B is not known, which is 0: in a training step of
        one's own that measures no loss.
        """
        part = reg_batch_size / batch_size if batch_size else 1.0
        # The r of whole numbers is not missed for rounding.
        r = 6 * self.num_samples * part * self._share - 1e-6
        of_one_set = max(1, math.ceil(r))
        of_all_sets = max(1, math.ceil(self.num_sets * r))
        if self.steps is None:
            return of_all_sets
        return min(of_all_sets, max(of_one_set, self.steps // MANY))

    @property
    def _share(self) -> float:
        """The part of the training in which rho learn."""
        if self.steps is None or not self.all_steps:
            return 1.0
        return self.steps / self.all_steps

    @property
    def most_reg_freq(self) -> int | None:
        """The r that leaves enough rho steps; `None` where it is not known."""
        return None if self.steps is None else max(1, self.steps // ENOUGH)

    def reg_batch_size(self, batch_size: int) -> int:
        """An eighth of B; fewer in a run that would have few rho steps.

        The more frequent steps add no more work, as long as there is an example
        for each.
        """
        return self.smaller_batch_size(max(1, batch_size // PART), batch_size)

    def smaller_batch_size(self, reg_batch_size: int, batch_size: int) -> int:
        """B_reg itself where that leaves enough rho steps."""
        most = self.most_reg_freq
        if most is None or self.reg_freq(reg_batch_size, batch_size) <= most:
            return reg_batch_size
        size = most * batch_size / (6 * self.num_samples * self._share)
        return max(1, int(size))


@dataclasses.dataclass
class RhoSchedule:
    """Counts training steps, and tells how many rho steps they make due.

    Args:
        reg_freq: Integer r, training steps per rho step; `None` until the
            first batches tell what the default is.
        reg_warmup: Integer, training steps before rho start to learn.
        work: What rho steps cost.
        steps: Integer, the training steps that were taken so far.
        has_enough: Whether r is small enough for enough rho steps, at any
            cost: where the regularization batches are as small as they can be.
    """

    reg_freq: int | None
    reg_warmup: int
    work: Work
    steps: int = 0
    has_enough: bool = False

    def advance(self, steps: int) -> int:
        """The number of rho steps that are due when so many were taken."""
        before, self.steps = self.steps, steps
        return self._rho_steps(steps) - self._rho_steps(before)

    def _rho_steps(self, steps: int) -> int:
        """Multiples of r, after the warm-up, in so many training steps."""
        assert self.reg_freq is not None
        return max(0, steps - self.reg_warmup) // self.reg_freq

    def choose_reg_freq(self, reg_batch_size: int, batch_size: float) -> None:
        """Sets the default r, from the first batches."""
        self.reg_freq = self.work.reg_freq(reg_batch_size, batch_size)
        most = self.work.most_reg_freq
        if self.has_enough and most is not None:
            self.reg_freq = min(self.reg_freq, most)


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
    momenta = [float(la.momentum) for la in moving_normalizations(layers)]
    if not momenta:
        return 0
    warmup = TIME_CONSTANTS / (1 - max(momenta))
    return round(warmup if steps is None else min(warmup, MOST * steps))


@dataclasses.dataclass(frozen=True)
class Epochs:
    """The epochs of a call of `fit`.

    Args:
        count: Integer, all of them.
        learning: Integer, those in which rho learn.
        steps: Integer, training steps of each; `None` where that is not known.
    """

    count: int
    learning: int
    steps: int | None

    def until(self, taken: int) -> int | None:
        """Training steps until the end, with those taken before."""
        return None if not self.steps else taken + self.count * self.steps

    def learning_until(self, taken: int, reg_warmup: int) -> int | None:
        """The same, until rho stop learning, and without a warm-up."""
        if not self.steps or self.learning <= 0:
            return None
        return max(1, taken + self.learning * self.steps - reg_warmup)
