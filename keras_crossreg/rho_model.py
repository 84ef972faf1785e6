"""A model with two groups of variables: theta, and its regularization rho."""

from __future__ import annotations

import collections.abc
import dataclasses
from typing import Any

import keras

from keras_crossreg._keras import all_layers
from keras_crossreg.regularizers.level_sets import LevelSet
from keras_crossreg.regularizers.level_sets import level_set_of
from keras_crossreg.regularizers.level_sets import level_sets_of
from keras_crossreg.regularizers.level_sets import misses_level_set
from keras_crossreg.rho import assign_rho
from keras_crossreg.rho import check_patterns
from keras_crossreg.rho import human_value
from keras_crossreg.rho import is_rho
from keras_crossreg.rho import mark_by_path
from keras_crossreg.rho import rho_by_key
from keras_crossreg.rho import stored_value
from keras_crossreg.rho import unmark_rho
from keras_crossreg.rho_summary import print_rho_summary
from keras_crossreg.sampling.sampled_model import SampledModel


@dataclasses.dataclass
class _MarkedWeights:
    """Weights that `compile(rho=)` made rho; `None` until there are weights.

    A plain object: Keras would track variables in a list.
    """

    variables: list[keras.Variable] | None = None


class RhoModel(SampledModel):
    """Tells rho from theta; reads, sets and freezes rho."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rho_frozen = False
        self._marked = _MarkedWeights()

    # `layer.trainable = True` makes every weight of the layer trainable, rho
    # with them.

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        return [v for v in super().trainable_variables if not is_rho(v)]

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        return [v for v in super().trainable_weights if not is_rho(v)]

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        trainable = {id(v) for v in self.trainable_variables}
        return [v for v in self.variables if id(v) not in trainable]

    @property
    def theta_variables(self) -> list[keras.Variable]:
        """Every trainable weight that is not rho."""
        return self.trainable_variables

    @property
    def rho_variables(self) -> list[keras.Variable]:
        """Every regularization weight, in the order of the network."""
        self._make_level_sets()
        found = []
        for v in self.weights:
            if is_rho(v):
                found.append(v)
            level_set = level_set_of(v)
            if level_set is not None:
                found.append(level_set.rho)
        return found

    @property
    def _level_sets(self) -> list[LevelSet]:
        self._make_level_sets()
        return level_sets_of(self.weights)

    def _make_level_sets(self) -> None:
        """Creates the rho of learned regularizers where weights are created."""
        weights = self.weights
        if any(map(misses_level_set, weights)):
            with self._creation_scope():
                level_sets_of(weights)

    def _learning_rho(self) -> list[keras.Variable]:
        """The rho that a rho step moves: none when frozen."""
        if self._rho_frozen:
            return []
        held = {
            id(v)
            for layer in all_layers(self)
            if not layer.trainable
            for v in layer.weights
        }
        held |= {
            id(level_set.rho)
            for level_set in self._level_sets
            if id(level_set.weight) in held
        }
        return [v for v in self.rho_variables if id(v) not in held]

    def _learning_level_sets(self) -> list[LevelSet]:
        learning = {id(v) for v in self._learning_rho()}
        return [s for s in self._level_sets if id(s.rho) in learning]

    # ---- Weights that `compile(rho=)` makes rho ------------------------------

    @property
    def _is_built(self) -> bool:
        return bool(self.built) and all(
            layer.built for layer in all_layers(self)
        )

    def _mark_rho(self) -> None:
        """Makes rho what `compile(rho=)` matches, once there are weights."""
        if self._marked.variables is None and self._is_built:
            patterns = check_patterns(self._options.rho)
            weights = [v for v in self.weights if v.trainable or is_rho(v)]
            self._marked.variables = mark_by_path(weights, patterns)

    def _unmark_rho(self) -> None:
        """Makes theta again what an earlier `compile(rho=)` made rho."""
        for variable in self._marked.variables or ():
            unmark_rho(variable)
        self._marked = _MarkedWeights()

    # ---- What users read and set ---------------------------------------------

    def get_rho(self) -> dict[str, Any]:
        """What was learned: `{path: value in human units}`.

        Returns:
            A dict from the path of each rho to a float, or to a NumPy array
            where the rho has a shape. Where several rho have one path, as in
            two nested models whose layers have the same names, the names of
            those models come first, or a number comes last.
        """
        return {key: human_value(v) for key, v in rho_by_key(self).items()}

    def set_rho(self, values: dict[str, Any]) -> None:
        """Sets rho from human units.

        Args:
            values: A dict `{path: value}`, as `get_rho()` returns it; it may
                leave some out. A scalar fills a rho that has a shape.

        Raises:
            ValueError: If a path is unknown, or a value is not finite,
                negative, or of a shape that does not fit.
        """
        rho = rho_by_key(self)
        if not isinstance(values, collections.abc.Mapping):
            raise ValueError(
                "`set_rho` expects a dict of values by path, as `get_rho()` "
                f"returns it. Received: values={values}"
            )
        for path in values:
            if path not in rho:
                raise ValueError(
                    f"Expected the paths of rho, {sorted(rho)}. "
                    f"Received: path={path}"
                )
        # Every value is checked before the first one is set.
        stored = {p: stored_value(rho[p], v) for p, v in values.items()}
        for path, value in stored.items():
            assign_rho(rho[path], value)
        self._rho_were_set([rho[path] for path in stored])

    def _rho_were_set(self, rho: list[keras.Variable]) -> None:
        """Of a subclass: what follows when a user sets these."""

    def freeze_rho(self) -> None:
        """Stops rho from learning, until `unfreeze_rho()`.

        The noise stays on. `fit` then needs no `reg_data`.
        """
        self._rho_frozen = True

    def unfreeze_rho(self) -> None:
        """Lets rho learn again."""
        self._rho_frozen = False

    def rho_summary(
        self, line_length: int | None = None, print_fn: Any = None
    ) -> None:
        """Prints what was learned: layer, meaning, start value, value now.

        And what the value means, in words, where a layer says so; and its
        course over the epochs where `kcr.callbacks.RhoHistory` saw the `fit`
        that it is from. The lowest bar stands for 0.

        In a notebook it is a rich table, as `summary()` is.

        Args:
            line_length: Integer, total length of the printed lines. Defaults
                to the width of the console.
            print_fn: Callable that gets the table as one string of plain
                text. Defaults to the console.
        """
        print_rho_summary(self, line_length=line_length, print_fn=print_fn)
