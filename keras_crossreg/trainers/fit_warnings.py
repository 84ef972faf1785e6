"""Warnings about regularization that will not do what it should.

Each has a condition that ordinary runs do not meet; where chance could, the
docstring says how often.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_crossreg._keras import can_convert_arrays
from keras_crossreg._keras import count_steps
from keras_crossreg._keras import inner_optimizer
from keras_crossreg.optimizers import AnchoredAdam
from keras_crossreg.rho import human_value
from keras_crossreg.rho import rho_info
from keras_crossreg.trainers.missing_classes import missing_classes
from keras_crossreg.trainers.reg_data import num_rows
from keras_crossreg.trainers.rho_schedule import RhoSchedule
from keras_crossreg.trainers.shared_rows import count_shared_rows
from keras_crossreg.trainers.shared_rows import has_rows
from keras_crossreg.trainers.shared_rows import most_by_chance
from keras_crossreg.user_warnings import warn_user

# Rho hardly learn in fewer rho steps than the first number, of which a run of
# as many training steps as the second number has room for more.
_FEW_RHO_STEPS, _MANY_STEPS = 10, 50
# Nothing is said of what rho learned before so many rho steps.
_LEAST_STEPS = 20
# A rho is at its bound where a change of 1 in what is stored, ten steps of
# the default optimizer, changes the value in human units by less.
_BOUND = 1e-4
# A rho has not moved if the optimizer might have gone ten times as far.
_STILL = 1e-3
# A regularization loss rises if it does by this part, in so many standard
# errors, and has been measured in so many epochs.
_RISE, _ERRORS, _LEAST_EPOCHS = 0.25, 5.0, 15
# A rho has grown much if it is so many times its start value; a loss is no
# better than another one above this part of it.
_GROWTH, _NO_BETTER = 10.0, 0.98


def warn_of_no_rho() -> None:
    """Warns where a regularization set is given and nothing learns on it."""
    warn_user("The model has no rho: `reg_data` is not used.")


def warn_of_held_rho(rho: list[keras.Variable]) -> None:
    """Warns where a regularization set is given and all rho are held."""
    warn_user(
        f"No rho learns: the layers of all {len(rho)} rho have "
        "`trainable=False`, so that `reg_data` is not used. Set "
        "`trainable=True`, or call `model.freeze_rho()` to say that this is "
        f"meant. Received: rho={_paths(rho)}"
    )


def warn_of_reg_data(
    data: tuple[Any, Any, Any],
    reg_data: Any,
    validation_data: Any,
    rho: list[keras.Variable],
) -> None:
    """Warns where the regularization set is not held out, or too small.

    - It is the validation set, whose scores then say too much.
    - Training examples are in it, so that rho sees what theta memorized.
      Equal to the last bit, and more of them than chance makes of tables with
      few different values, as the training data show: with any two random
      parts of one table it warns in less than 1 of 300 cases. Of arrays
      alone.
    - It lacks a class of the training data of which a random part of that size
      would have twelve examples or more: in less than 1 of 100,000 cases.
    - It has less than ten examples for each number in rho: the excess loss
      grows as `sqrt(k / m)` in the number k of rho and the size m of the set.

    Args:
        data: Training data `(x, y, sample_weight)`.
        reg_data: As given to `fit`.
        validation_data: As given to `fit`, or `None`.
        rho: The rho to learn.
    """
    if _is_same(reg_data, validation_data):
        warn_user(
            "`reg_data` is also the `validation_data`. Training consumes the "
            "regularization set, so that validation scores on it are too "
            "good: hold out another set."
        )
    reg = keras.utils.unpack_x_y_sample_weight(reg_data)
    if not can_convert_arrays(reg):
        return
    size = num_rows(reg[0])
    numbers = sum(math.prod(v.shape) for v in rho)
    if numbers > size / 10:
        warn_user(
            f"{numbers} rho learn from {size} regularization examples. Rho "
            "overfit them too: give `reg_data` ten examples or more for each, "
            "or share rho between units (`axis=None`)."
        )
    if can_convert_arrays(data):
        missing = missing_classes(data[1], reg[1])
        if missing:
            warn_user(
                f"`reg_data` has no example of the classes {missing}, which "
                "the training data have, and which no random part would lack. "
                "Rho learn what is best for the other classes alone. Shuffle "
                "the examples before `reg_data` or `reg_split` is cut off "
                "them."
            )
        shared = count_shared_rows(data[:2], reg[:2])
        if shared and shared > most_by_chance(data[:2], size):
            warn_user(
                f"{shared} of {size} regularization examples are also among "
                "the training examples. Theta memorizes those, and rho sees "
                "less need for regularization than there is: hold "
                "`reg_data` out of the training data."
            )


def warn_of_no_rho_step(schedule: RhoSchedule) -> None:
    """Warns where training ended before the first step of rho."""
    reg_freq, reg_warmup = schedule.reg_freq, schedule.reg_warmup
    first = reg_warmup + (reg_freq or 0)
    warn_user(
        f"Rho have not learned yet: the first rho step comes after {first} "
        f"training steps, and there were {schedule.steps}. Train longer, or "
        "give `compile` a smaller `reg_freq` or `reg_warmup`. "
        f"Received: reg_freq={reg_freq}, reg_warmup={reg_warmup}"
    )


def warn_of_few_rho_steps(
    rho_steps: int, schedule: RhoSchedule, reg_batch_size: int
) -> None:
    """Warns where rho took so few steps that they can hardly have learned.

    Fewer than 10 in 50 training steps or more: with the default optimizer, a
    rho can change by 1 in its stored value by then.
    """
    steps = schedule.steps
    if steps < _MANY_STEPS or rho_steps >= _FEW_RHO_STEPS:
        return
    enough = max(1, (steps - schedule.reg_warmup) // _MANY_STEPS)
    warn_user(
        f"Rho took {rho_steps} steps in {steps} training steps, and can hardly "
        f"have learned. Give `compile` about `reg_freq={enough}`, and, so that "
        "this adds no more work, `reg_data` smaller batches "
        "(`reg_batch_size` for arrays). "
        f"Received: reg_freq={schedule.reg_freq}, "
        f"reg_warmup={schedule.reg_warmup}, regularization batches of "
        f"{reg_batch_size} examples"
    )


class RhoWatch:
    """Looks at rho before and after `fit`, and warns of what went wrong.

    Args:
        rho: The rho to learn.
        optimizer: The optimizer that moves them.
    """

    def __init__(self, rho: list[keras.Variable], optimizer: Any) -> None:
        self.optimizer = optimizer
        self.steps = count_steps(optimizer)
        self.before = [(v, _stored(v)) for v in rho]

    def report_targets(
        self, logs: dict[str, Any], prior: float | None, penalty: float
    ) -> None:
        """Warns where targets seem not to go with inputs, at the end of `fit`.

        A rho is above ten times its start value, after 20 rho steps, and the
        mean of `reg_loss` over the last third of the epochs is not 2 % below
        the loss of one prediction for all examples. So it is where targets or
        inputs of the regularization set were shuffled apart, and where these
        say nothing of those. Not seen: targets that are wrong in part, and
        models whose normalization keeps noise from growing.

        Args:
            logs: What `History` recorded.
            prior: See `prior_loss`.
            penalty: What weights add to `reg_loss`.
        """
        steps = count_steps(self.optimizer) - self.steps
        losses = np.asarray(logs.get("reg_loss", ()), "float64")
        losses = losses[np.isfinite(losses)]
        if prior is None or steps < _LEAST_STEPS or not losses.size:
            return
        last = float(losses[-max(1, losses.size // 3) :].mean())
        grown = [v for v, _ in self.before if _has_grown(v)]
        if grown and last - penalty > _NO_BETTER * prior:
            warn_user(
                f"These rho grew to more than ten times their start values: "
                f"{_paths(grown)}. And `reg_loss`, {last:.3g}, is no better "
                f"than the {prior:.3g} of one prediction for all examples. "
                "The targets of `reg_data` do not go with its inputs, as "
                "where one of the two was shuffled alone, or the inputs say "
                "nothing of the targets."
            )

    def _was_pushed(self, variable: keras.Variable) -> bool:
        """Whether one that is where it was has come back there."""
        optimizer = inner_optimizer(self.optimizer)
        if not isinstance(optimizer, AnchoredAdam):
            return False
        return optimizer.has_pushed(variable)

    def report(self, logs: dict[str, Any]) -> None:
        """Warns at the end of `fit`.

        - Rho sit at their bound, such as a sigma of 0: the stored value has
          gone so far that a step no longer changes anything. After 20 rho
          steps.
        - Rho have not moved, although the optimizer would: they have no
          effect on the predictions. After 20 rho steps.
        - The regularization loss rises while the training loss falls: its
          mean over the last third of the epochs is a quarter above that of
          the first or second third, by five standard errors. After 15
          epochs with a rho step. A loss that only scatters does so in about
          1 of 1,000 runs.

        Args:
            logs: What `History` recorded.
        """
        steps = count_steps(self.optimizer) - self.steps
        if steps >= _LEAST_STEPS:
            at_bound = [v for v, _ in self.before if _is_at_bound(v)]
            reach = steps * float(_stored(self.optimizer.learning_rate))
            still = [
                v
                for v, before in self.before
                if np.abs(_stored(v) - before).max() < _STILL
                and reach > 10 * _STILL
                and not _is_at_bound(v)
                and not self._was_pushed(v)
            ]
            if at_bound:
                warn_user(
                    "These rho are at their bound, where the gradient that "
                    f"could bring them back vanishes: {_paths(at_bound)}. If "
                    "that is what the regularization set asks for, leave "
                    "their layers out. Otherwise give them a larger start "
                    "value, `rho_optimizer` a smaller learning rate, or "
                    "`compile` a larger `num_samples`."
                )
            if still:
                warn_user(
                    f"These rho have not moved in {steps} steps: "
                    f"{_paths(still)}. They have next to no effect on the "
                    "regularization loss: see that what follows them does "
                    "not undo what they do."
                )
        rise = _rise(logs)
        if rise is not None:
            warn_user(
                "The regularization loss rose from {:.3g} to {:.3g} while "
                "the training loss fell from {:.3g} to {:.3g}. Theta "
                "overfits faster than rho learn, or `reg_data` are not like "
                "the training data. Train for fewer epochs, or give rho "
                "larger start values or `compile` a smaller "
                "`reg_freq`.".format(*rise)
            )


def warn_of_curvature(bad: int, rho_steps: int, last: int) -> None:
    """Warns where the training loss was not convex in theta at a rho step."""
    warn_user(
        "The curvature of the training loss was not positive, or not finite, "
        f"at {bad} of {rho_steps} rho steps, the last after training step "
        f"{last}: theta were not at a minimum of it. These steps were as with "
        '`hypergradient="direct"`. At the start of training that is to be '
        "expected, and `reg_warmup` lets theta arrive first; later, a larger "
        "`damping` helps: see `kcr.hypergradients.Implicit`."
    )


def _stored(variable: Any) -> np.ndarray:
    # NumPy reads a copy: it warns of how it reads a variable, and has no
    # number for one of several replicas.
    value: np.ndarray = ops.convert_to_numpy(ops.copy(variable))
    return value


def _has_grown(variable: keras.Variable) -> bool:
    start = rho_info(variable).start
    if start is None:
        return False
    least = _GROWTH * float(np.mean(start))
    return bool(np.mean(human_value(variable)) > least > 0)


def _paths(rho: list[keras.Variable]) -> list[str]:
    return [v.path for v in rho]


def _is_at_bound(variable: keras.Variable) -> bool:
    """Whether a step of any element changes its value no more."""
    to_human = rho_info(variable).parametrization.to_human
    stored = ops.convert_to_tensor(variable)
    change = ops.abs(to_human(stored + 0.5) - to_human(stored - 0.5))
    return bool(ops.all(change < _BOUND))


def _rise(logs: dict[str, Any]) -> tuple[float, float, float, float] | None:
    """Regularization loss at its best and at last, and the training loss."""
    reg_loss = np.asarray(logs.get("reg_loss", ()), "float64")
    loss = np.asarray(logs.get("loss", ()), "float64")
    if len(reg_loss) != len(loss):
        return None
    # An epoch without a rho step repeats the loss of the one before.
    new = np.isfinite(reg_loss) & (np.diff(reg_loss, prepend=np.nan) != 0)
    reg_loss, loss = reg_loss[new], loss[new]
    if len(loss) < _LEAST_EPOCHS:
        return None
    parts = np.array_split(reg_loss, 3)
    means = [float(part.mean()) for part in parts]
    trained = [float(part.mean()) for part in np.array_split(loss, 3)]
    best = int(means[1] < means[0])
    variances = [parts[i].var(ddof=1) / parts[i].size for i in (best, 2)]
    rise = means[2] - means[best]
    if (
        rise > _RISE * abs(means[best])
        and rise > _ERRORS * math.sqrt(sum(variances))
        and trained[2] < trained[best]
    ):
        return means[best], means[2], trained[best], trained[2]
    return None


def _is_same(reg_data: Any, validation_data: Any) -> bool:
    """Whether both are one object, or hold the same inputs."""
    if validation_data is None:
        return False
    if isinstance(reg_data, (tuple, list)) and isinstance(
        validation_data, (tuple, list)
    ):
        pair = reg_data[:1], validation_data[:1]
        flat, other = (tree.flatten(part) for part in pair)
        return len(flat) == len(other) and all(map(_is_same_array, flat, other))
    return reg_data is validation_data


def _is_same_array(a: Any, b: Any) -> bool:
    if not (can_convert_arrays((a, b)) and has_rows(a) and has_rows(b)):
        return a is b
    return np.array_equal(np.asarray(a), np.asarray(b))
