"""A step that reads and assigns variables, compiled by JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import keras

from keras_crossreg._keras import NestedScope
from keras_crossreg._keras import distribute_batch
from keras_crossreg._keras import stored_value


class CompiledStep:
    """`step(*batches)`, with the variables in a scope.

    None of its arguments is donated: what fails on the way leaves all
    variables as they were.

    Args:
        step: From batches to logs.
        variables: Returns the variables that it may read or assign. Others
            that it does are found when it is traced.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        variables: Callable[[], list[keras.Variable]],
    ) -> None:
        self._step = step
        self._list = variables
        self._found: list[keras.Variable] = []
        self._variables: list[keras.Variable] = []
        self._compiled = jax.jit(self._traced)

    def __call__(self, batches: tuple[Any, ...]) -> Any:
        batches = distribute_batch(batches)
        self._begin()
        while True:
            values = [stored_value(v) for v in self._variables]
            try:
                logs, updates = self._compiled(values, batches)
                break
            except _OtherVariablesError as error:
                self._found.extend(error.variables)
                self._begin()
        for place, value in updates.items():
            self._variables[place].assign(value)
        return logs

    def _begin(self) -> None:
        variables = {id(v): v for v in [*self._list(), *self._found]}
        self._variables = list(variables.values())

    def _traced(self, values: list[Any], batches: tuple[Any, ...]) -> Any:
        variables = self._variables
        pairs = list(zip(variables, values, strict=True))
        with _NotingScope(pairs) as scope:
            logs = self._step(*batches)
            places = {id(v): i for i, v in enumerate(variables)}
            others = [*scope.others.values(), *scope.updated]
            others = [v for v in others if id(v) not in places]
            if others:
                raise _OtherVariablesError(others)
            updates = {
                places[id(v)]: scope.get_current_value(v) for v in scope.updated
            }
        if keras.distribution.distribution() is not None:
            updates = {
                place: jax.lax.with_sharding_constraint(
                    value, stored_value(variables[place]).sharding
                )
                for place, value in updates.items()
            }
        return logs, updates


class _NotingScope(NestedScope):
    """Notes variables whose value would be a constant of the trace."""

    def __init__(self, pairs: Any) -> None:
        super().__init__(pairs, collect_losses=True)
        self.others: dict[int, keras.Variable] = {}

    def mapped_value(self, variable: keras.Variable) -> Any:
        value = super().mapped_value(variable)
        if value is None and stored_value(variable) is not None:
            self.others[id(variable)] = variable
        return value


class _OtherVariablesError(Exception):
    """A step reads or assigns variables that it was not given."""

    def __init__(self, variables: list[keras.Variable]) -> None:
        super().__init__()
        self.variables = variables
