"""What `compile` said of the regularization pass."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import keras
from keras import tree

from keras_crossreg import hypergradients
from keras_crossreg._keras import CompileMetrics
from keras_crossreg.checks import check_integer
from keras_crossreg.hypergradients import GeneralizationGap
from keras_crossreg.hypergradients import Hypergradient
from keras_crossreg.optimizers import AnchoredAdam
from keras_crossreg.rho import check_patterns
from keras_crossreg.user_warnings import warn_user


@dataclasses.dataclass(frozen=True)
class CompileOptions:
    """The arguments of `compile` that are not Keras's, checked.

    Every default stands here, and here alone. They were found on three data
    sets; the grid is in docs/grids.md.

    Args:
        num_samples: See `CrossRegModel.compile`, and so for all others.
            `eval_num_samples=None` becomes `num_samples`.

    Raises:
        ValueError: If an integer is too small, `averaging` or `hypergradient`
            is unknown, or `rho` is no regular expression.
    """

    num_samples: int = 16
    reg_freq: int | None = None
    reg_warmup: int | None = None
    averaging: Any = "auto"
    hypergradient: Any = "auto"
    eval_num_samples: int | None = None
    rho: Any = None
    samples_per_pass: int = 16

    def __post_init__(self) -> None:
        self._set("num_samples", 1)
        self._set("samples_per_pass", 1)
        if self.eval_num_samples is None:
            object.__setattr__(self, "eval_num_samples", self.num_samples)
        for name, least in (
            ("reg_freq", 1),
            ("reg_warmup", 0),
            ("eval_num_samples", 1),
        ):
            if getattr(self, name) is not None:
                self._set(name, least)
        _check_averaging(self.averaging)
        check_patterns(self.rho)
        hypergradients.get(self.hypergradient)

    def _set(self, name: str, least: int) -> None:
        value = check_integer(name, getattr(self, name), least)
        object.__setattr__(self, name, value)

    def on_several_devices(self) -> CompileOptions:
        """What `"auto"` means there: training batches are not looked at."""
        if self.hypergradient != "auto":
            return self
        return dataclasses.replace(self, hypergradient="direct")

    @functools.cached_property
    def correction(self) -> Hypergradient | None:
        """`hypergradient` as an object; `None` for `"direct"`."""
        return hypergradients.get(self.hypergradient)

    @property
    def gap(self) -> GeneralizationGap | None:
        """The same where it is of first order."""
        found = self.correction
        return found if isinstance(found, GeneralizationGap) else None

    @property
    def second_order(self) -> Hypergradient | None:
        """The same where it is of second order."""
        return None if self.gap else self.correction

    def as_arguments(self) -> dict[str, Any]:
        """The arguments, by name."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
        }


def _check_averaging(averaging: Any) -> None:
    """Raises a ValueError for an unknown `averaging`."""
    if averaging in ("auto", "outputs", "probabilities"):
        return
    if not callable(averaging):
        raise ValueError(
            'Expected `averaging` to be "auto", "outputs", "probabilities" or '
            "a callable from an array of samples `(K, n, ...)` to their "
            f"average `(n, ...)`. Received: averaging={averaging}"
        )


@dataclasses.dataclass(frozen=True)
class GivenArguments:
    """What `compile` was given beside `CompileOptions`, for files and copies.

    Attributes:
        keras_arguments: Those of `keras.Model.compile` but for the optimizer.
        optimizer: The config of that of theta, as it was given: before a
            callback moved a learning rate. `None` where Keras cannot copy it.
        rho_optimizer: The same of that of rho.
    """

    keras_arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    optimizer: dict[str, Any] | None = None
    rho_optimizer: dict[str, Any] | None = None

    @classmethod
    def of(cls, model: Any, keras_arguments: dict[str, Any]) -> GivenArguments:
        """Those of a model that is being compiled."""
        return cls(
            keras_arguments,
            _config_of(model.optimizer),
            _config_of(model.rho_optimizer),
        )

    def optimizers(self, model: Any) -> dict[str, dict[str, Any]]:
        """The configs of both optimizers, by the names of the arguments.

        Raises:
            ValueError: If Keras cannot copy one; it names that of the model.
        """
        configs = {}
        for name in ("optimizer", "rho_optimizer"):
            config = getattr(self, name)
            if config is None:
                raise ValueError(
                    f"`{name}` cannot be copied. It, and a learning rate "
                    "schedule in it, need a `get_config()` that returns the "
                    "arguments of the constructor. Received: "
                    f"{name}={getattr(model, name)}"
                )
            configs[name] = config
        return configs


def _config_of(optimizer: Any) -> dict[str, Any] | None:
    """An optimizer serialized; `None` where it, or its schedule, cannot be."""
    try:
        config: dict[str, Any] = keras.saving.serialize_keras_object(optimizer)
    except (NotImplementedError, TypeError, ValueError):
        return None
    return config


def copy_metrics(
    metrics: Any, weighted_metrics: Any, output_names: list[str] | None
) -> CompileMetrics | None:
    """The compiled metrics again, with a state of their own.

    Where Keras cannot copy them, a warning and `None`.
    """
    if metrics is None and weighted_metrics is None:
        return None
    try:
        copies = tree.map_structure(_copy_metric, (metrics, weighted_metrics))
        return CompileMetrics(*copies, output_names=output_names)
    except (NotImplementedError, TypeError, ValueError) as error:
        warn_user(
            "Only `reg_loss` is measured on the regularization batches, since "
            f"Keras cannot copy the metrics: {error}. It takes a "
            "`get_config()` that returns the arguments of the constructor, "
            "and `keras.saving.register_keras_serializable` on every class "
            "and function of your own."
        )
        return None


def _copy_metric(metric: Any) -> Any:
    if isinstance(metric, keras.metrics.Metric):
        return metric.__class__.from_config(metric.get_config())
    return metric


def get_rho_optimizer(rho_optimizer: Any) -> Any:
    """What `compile(rho_optimizer=)` was given, as an optimizer."""
    if rho_optimizer is None:
        return AnchoredAdam()
    return keras.optimizers.get(rho_optimizer)
