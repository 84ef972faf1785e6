"""Weights that training keeps in a level set of their complexity."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_crossreg import backend
from keras_crossreg.regularizers.learned_regularizer import LearnedRegularizer
from keras_crossreg.rho import LOG
from keras_crossreg.rho import is_rho
from keras_crossreg.rho import mark_rho

# Newton steps where the way may be long.
_FAR = 100


class LevelSet:
    """A weight, its `LearnedRegularizer` and its rho, the complexity R.

    R is read from the weight before it is used: whatever else sets weights
    (a file, a callback, an average) sets it too.
    """

    def __init__(self, weight: keras.Variable) -> None:
        self.weight = weight
        self.regularizer: LearnedRegularizer = weight.regularizer
        if is_rho(weight):
            raise ValueError(
                "A weight that is rho learns on the regularization set "
                "already: it takes no learned regularizer. "
                f"Received: weight={weight.path} with "
                f"regularizer={self.regularizer}"
            )
        if weight.constraint is not None:
            raise ValueError(
                "A learned regularizer constrains its weight to a level set, "
                "and expects it to have no other constraint. Received: "
                f"weight={weight.path} with constraint={weight.constraint}"
            )
        with contextlib.ExitStack() as scopes:
            for part in weight.path.split("/"):
                scopes.enter_context(keras.name_scope(part))
            rho = keras.Variable(
                np.zeros((), "float32"),
                dtype="float32",
                trainable=False,
                name=self.regularizer.name,
            )
        meaning = self.regularizer.name.replace("_", " ")
        self.rho = mark_rho(rho, meaning=meaning, parametrization=LOG)
        self.read()

    @property
    def complexity(self) -> Any:
        return self.regularizer.complexity(ops.convert_to_tensor(self.weight))

    @property
    def level(self) -> Any:
        """The complexity that rho says, in the dtype of the weight."""
        level = LOG.to_human(ops.convert_to_tensor(self.rho))
        return ops.cast(level, self.weight.dtype)

    def read(self) -> None:
        """Rho of the weight."""
        self.rho.assign(LOG.from_human(ops.cast(self.complexity, "float32")))

    def write(self, **kwargs: Any) -> None:
        """Moves the weight to the level set of rho."""
        weight = ops.convert_to_tensor(self.weight)
        self.weight.assign(
            self.regularizer.retract(weight, self.level, **kwargs)
        )

    def moved(self) -> Any:
        """The weight as a function of itself and of rho."""
        return self.regularizer.move(
            ops.convert_to_tensor(self.weight), self.level
        )

    def rho_gradient(self, gradient: Any) -> Any:
        """`g_rho`: of a gradient, what moves the weight across level sets."""
        return backend.vector_jacobian(self.moved, self.rho, gradient)

    def project(self, vector: Any) -> Any:
        """Onto the directions within the level set."""
        return backend.vector_jacobian(self.moved, self.weight, vector)

    def check(self) -> None:
        """Raises a ValueError where there is no level set to stay in."""
        complexity = ops.convert_to_numpy(self.complexity)
        if complexity.ndim or not 0 < complexity < np.inf:
            raise ValueError(
                "A learned regularizer expects weights of a complexity above "
                "0 to start from: no initializer of zeros, nor of what it "
                "does not count. Received: "
                f"weight={self.weight.path} with complexity={complexity}"
            )


class LevelSets:
    """The level sets of a model, by the `id` of their weights.

    A plain object, so that Keras does not count rho among the model's own
    variables: files need not know them.
    """

    def __init__(self) -> None:
        self._known: dict[int, LevelSet] = {}

    def of(self, weights: list[keras.Variable]) -> dict[int, LevelSet]:
        found = {}
        for weight in weights:
            regularizer = getattr(weight, "regularizer", None)
            if isinstance(regularizer, LearnedRegularizer):
                if id(weight) not in self._known:
                    self._known[id(weight)] = LevelSet(weight)
                found[id(weight)] = self._known[id(weight)]
        return found


@contextlib.contextmanager
def within(level_sets: dict[int, LevelSet], optimizer: Any) -> Iterator[None]:
    """Steps of `optimizer` within leave weights in their level sets.

    It is given `g_perp`, so that its averages, clipping and decay see nothing
    of `g_rho`; and after its step each weight goes back.
    """
    if not level_sets:
        yield
        return
    keras_step = optimizer.apply_gradients

    def apply_gradients(grads_and_vars: Any) -> Any:
        pairs, done = [], []
        for gradient, variable in grads_and_vars:
            level_set = level_sets.get(id(variable))
            if level_set is not None and gradient is not None:
                before = ops.copy(ops.convert_to_tensor(variable))
                gradient = level_set.regularizer.tangent(
                    before, ops.convert_to_tensor(gradient)
                )
                done.append((level_set, before, gradient))
            pairs.append((gradient, variable))
        result = keras_step(pairs)
        for level_set, before, gradient in done:
            regularizer = level_set.regularizer
            after = regularizer.after_step(
                before, -gradient, ops.convert_to_tensor(level_set.weight)
            )
            level = regularizer.complexity(before)
            level_set.weight.assign(regularizer.retract(after, level))
        return result

    # Keras's own `train_step` calls it, and has no other place for this.
    object.__setattr__(optimizer, "apply_gradients", apply_gradients)
    try:
        yield
    finally:
        object.__delattr__(optimizer, "apply_gradients")


def write_far(level_set: LevelSet) -> None:
    """As `write`, from anywhere."""
    level_set.write(num_steps=_FAR)
