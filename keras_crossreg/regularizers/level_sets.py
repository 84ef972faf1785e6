"""Weights that training keeps in a level set of their complexity."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_crossreg import primitives
from keras_crossreg._keras import inner_optimizer
from keras_crossreg._keras import optimized_variables
from keras_crossreg.parametrization import LOG
from keras_crossreg.regularizers.learned_regularizer import LearnedRegularizer
from keras_crossreg.rho import is_rho
from keras_crossreg.rho import mark_rho

# Newton takes so many steps where the way may be long.
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
        rho.rho_info = dataclasses.replace(rho.rho_info, source=self)
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
        """Sets rho to the complexity of the weight."""
        self.rho.assign(LOG.from_human(ops.cast(self.complexity, "float32")))

    def write(self, **kwargs: Any) -> None:
        """Moves the weight to the level set of rho."""
        weight = ops.convert_to_tensor(self.weight)
        self.weight.assign(
            self.regularizer.retract(weight, self.level, **kwargs)
        )

    def write_far(self) -> None:
        """Moves the weight to the level set of rho, from any other."""
        self.write(num_steps=_FAR)

    def moved(self) -> Any:
        """The weight as a function of itself and of rho."""
        return self.regularizer.move(
            ops.convert_to_tensor(self.weight), self.level
        )

    def rho_gradient(self, gradient: Any) -> Any:
        """`g_rho`: of a gradient, what moves the weight across level sets."""
        return primitives.vector_jacobian(self.moved, self.rho, gradient)

    def project(self, vector: Any) -> Any:
        """The part of a vector that lies within the level set."""
        return primitives.vector_jacobian(self.moved, self.weight, vector)

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


def level_set_of(weight: keras.Variable) -> LevelSet | None:
    """The level set that a weight stays in, made when it is first asked for.

    The weight keeps it, as it keeps its regularizer: models that share the
    weight share its rho. Files need not know it.
    """
    if not _is_learned(weight):
        return None
    if misses_level_set(weight):
        weight.level_set = LevelSet(weight)
    level_set: LevelSet = weight.level_set
    return level_set


def misses_level_set(weight: keras.Variable) -> bool:
    """Whether a weight is to have a level set that was not made yet."""
    return _is_learned(weight) and not hasattr(weight, "level_set")


def _is_learned(weight: keras.Variable) -> bool:
    return isinstance(getattr(weight, "regularizer", None), LearnedRegularizer)


def level_sets_of(weights: list[keras.Variable]) -> list[LevelSet]:
    """The level sets of the weights that stay in one."""
    found = map(level_set_of, weights)
    return [level_set for level_set in found if level_set is not None]


@contextlib.contextmanager
def project_theta_steps(
    level_sets: list[LevelSet], optimizer: Any
) -> Iterator[None]:
    """Steps of `optimizer` within leave weights in their level sets.

    The optimizer is given `g_perp`, so that its averages, clipping and decay
    see nothing of `g_rho`; and after its step each weight goes back.
    """
    if not level_sets:
        yield
        return
    by_weight = {id(level_set.weight): level_set for level_set in level_sets}
    # The inner one applies gradients that are no longer scaled.
    optimizer = inner_optimizer(optimizer)
    keras_apply = optimizer.apply

    def apply(gradients: Any, trainable_variables: Any = None) -> None:
        variables = trainable_variables
        if variables is None:
            variables = optimized_variables(optimizer)
        given, steps = [], []
        for gradient, variable in zip(gradients, variables, strict=True):
            level_set = by_weight.get(id(variable))
            if level_set is not None and gradient is not None:
                before = ops.copy(ops.convert_to_tensor(variable))
                gradient = level_set.regularizer.tangent(
                    before, ops.convert_to_tensor(gradient)
                )
                steps.append((level_set, before, gradient))
            given.append(gradient)
        keras_apply(given, variables)
        for level_set, before, gradient in steps:
            regularizer = level_set.regularizer
            stepped = regularizer.after_step(
                before, -gradient, ops.convert_to_tensor(level_set.weight)
            )
            level = regularizer.complexity(before)
            level_set.weight.assign(regularizer.retract(stepped, level))

    # `apply` is what the `train_step` of every backend comes to, and it has
    # no other place for this.
    object.__setattr__(optimizer, "apply", apply)
    try:
        yield
    finally:
        object.__delattr__(optimizer, "apply")
