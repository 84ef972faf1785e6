"""What a model's class does in training, which a model around it would not."""

from __future__ import annotations

import keras

STEPS = (
    "train_step",
    "test_step",
    "predict_step",
    "compute_loss",
    "compute_metrics",
)


def check_no_own_steps(model: keras.Model, function: str) -> None:
    """Raises a ValueError where a model of Keras's class trains otherwise.

    Args:
        model: The model.
        function: The name of the function that makes another model of it.
    """
    own = [name for name in STEPS if _is_own(type(model), name)]
    if own:
        cls = type(model).__name__
        raise ValueError(
            f"`{function}` trains with the steps of `CrossRegModel`, and would "
            f"leave out what `{cls}` does in {_listed(own)}. Derive "
            f"`{cls}` from `keras_crossreg.CrossRegModel` instead of "
            f"`keras.Model`, and use it as it is. Received: model={model}"
        )


def _is_own(cls: type, name: str) -> bool:
    """Whether the class of a method is neither Keras's nor ours."""
    (owner, *_) = [c for c in cls.__mro__ if name in vars(c)]
    return owner.__module__.split(".")[0] not in ("keras", "keras_crossreg")


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
