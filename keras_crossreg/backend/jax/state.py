"""The state that steps on JAX are given, and give away."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras

from keras_crossreg._keras import jax_state_variables
from keras_crossreg._keras import store_value
from keras_crossreg._keras import stored_value


class HeldState:
    """Keeps the newest state of a model in its variables.

    A compiled step deletes the arrays that it is given. What interrupts a run
    between two steps must not take the arrays with it that came back.

    Attributes:
        is_noting: Whether steps that are made now are those of `fit`.
        is_newest: Whether the variables hold the newest state: while steps
            are taken, and not while Keras keeps one of `evaluate`.
    """

    def __init__(self) -> None:
        self.is_noting = False
        self.is_newest = False
        self._variables: list[list[keras.Variable]] = []
        # The state that came back last, while variables do not hold it yet.
        self._noted: list[Any] = []
        self._last: Any = None

    def noting(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A step, whose result is noted before anything can interrupt."""

        def noting_step(*args: Any) -> Any:
            self._noted.clear()
            # Python looks for a signal when a call has ended: this one is
            # the last, and the result is in the list by then.
            self._noted.extend(itertools.starmap(step, [args]))
            return self._noted[-1]

        return noting_step

    @contextlib.contextmanager
    def whole(self, model: Any, state: Any) -> Iterator[None]:
        """Within is one execution; the variables survive what it raises.

        `state`: the one that it begins with.
        """
        if state is not self._last or not self._variables:
            # Keras has read it from the variables anew.
            self._variables = jax_state_variables(model)
        self.is_newest = True
        try:
            yield
        except BaseException:
            if self._noted:
                self.write(self._noted[-1][1])
            raise

    def write(self, state: Any) -> None:
        """Makes the variables hold a state."""
        for variables, values in zip(self._variables, state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                store_value(variable, value)
        self._noted.clear()
        self._last = state

    def read(self) -> Any:
        """The state that the variables hold."""
        self._last = tuple(
            [stored_value(v) for v in variables]
            for variables in self._variables
        )
        return self._last
