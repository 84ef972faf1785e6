"""What `compile(hypergradient=)` takes."""

from __future__ import annotations

from typing import Any

from keras_crossreg.hypergradients.generalization_gap import GeneralizationGap
from keras_crossreg.hypergradients.options import Hypergradient
from keras_crossreg.hypergradients.options import Implicit
from keras_crossreg.hypergradients.options import OneStep

_BY_NAME: dict[str, type[Hypergradient] | None] = {
    "auto": GeneralizationGap,
    "direct": None,
    "gap": GeneralizationGap,
    "implicit": Implicit,
    "one_step": OneStep,
}


def get(hypergradient: Any) -> Hypergradient | None:
    """What `compile` was given as an object; `None` for `"direct"`.

    Raises:
        ValueError: If it is unknown.
    """
    if isinstance(hypergradient, Hypergradient):
        return hypergradient
    if isinstance(hypergradient, str) and hypergradient in _BY_NAME:
        cls = _BY_NAME[hypergradient]
        return None if cls is None else cls()
    raise ValueError(
        'Expected `hypergradient` to be "auto", "direct", "gap", "implicit", '
        '"one_step", or an object of `keras_crossreg.hypergradients`. '
        f"Received: hypergradient={hypergradient}"
    )
