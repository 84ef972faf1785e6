"""Layers of a model that a user names."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

After = (
    type | tuple[type, ...] | list[type] | str | Callable[[Any], bool] | None
)


class LayerChoice:
    """The layers that `after` names.

    Args:
        after: As given to `add_noise`.
        layers: The layers of the model.

    Raises:
        ValueError: If `after` is of no known kind, or matches no layer or
            all of them.
    """

    def __init__(self, after: After, layers: list[Any]) -> None:
        self.after, self.layers = after, layers
        matches = _matcher(after)
        #: Whether a user named any.
        self.is_made = matches is not None
        self.chosen = {id(v) for v in layers if matches and matches(v)}
        if not self.is_made:
            return
        if not self.chosen:
            raise ValueError(
                f"`after` matches no layer of the model: {self.there}. "
                f"Received: after={after}"
            )
        if len(self.chosen) == len(layers):
            raise ValueError(
                "`after` matches every layer of the model, that of the output "
                f"with them: {self.there}. Received: after={after}"
            )

    def __contains__(self, layer: Any) -> bool:
        return id(layer) in self.chosen

    @property
    def there(self) -> str:
        """The layers there are, for messages."""
        shown = [f"{v.name} ({type(v).__name__})" for v in self.layers[:30]]
        if len(self.layers) > len(shown):
            shown.append(f"and {len(self.layers) - len(shown)} more")
        return ", ".join(shown)

    def no_place(self) -> ValueError:
        """The error where no noise went anywhere."""
        if not self.is_made:
            return ValueError(
                "The model has no place for noise: no normalization layer of "
                "Keras and no hidden activation that is still without. Say "
                f"by `after` where it goes. The layers: {self.there}. "
                f"Received: after={self.after}"
            )
        return ValueError(
            "`after` matches no layer whose outputs are of floating point. "
            f"The layers: {self.there}. Received: after={self.after}"
        )


def _matcher(after: After) -> Callable[[Any], bool] | None:
    if after is None:
        return None
    if isinstance(after, str):
        try:
            pattern = re.compile(after)
        except re.error as error:
            raise ValueError(
                f"`after` is no regular expression: {error}. "
                f"Received: after={after}"
            ) from error
        return lambda layer: pattern.search(layer.name) is not None
    types: Any = tuple(after) if isinstance(after, (list, tuple)) else (after,)
    if types and all(isinstance(t, type) for t in types):
        return lambda layer: isinstance(layer, types)
    if not callable(after):
        raise ValueError(
            "Expected `after` to be a layer type or several, a regular "
            "expression for names of layers, or a callable from a layer to a "
            f"boolean. Received: after={after}"
        )
    return lambda layer: bool(after(layer))
