"""A rho layer, made and called in every way that its contract names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_crossreg.primitives import gradient
from keras_crossreg.rho import is_rho


class RhoLayerProbe:
    """A layer class, with what it takes to make, build and call one.

    Args:
        layer_cls: See `check_rho_layer`.
        init_kwargs: See `check_rho_layer`.
        x: The inputs, an array or a structure of arrays.
        call_kwargs: See `check_rho_layer`.
    """

    def __init__(
        self,
        layer_cls: Any,
        init_kwargs: dict[str, Any],
        x: Any,
        call_kwargs: dict[str, Any],
    ) -> None:
        self.layer_cls = layer_cls
        self.call_kwargs = call_kwargs
        self.x = tree.map_structure(np.asarray, x)
        with self.trying("the constructor"):
            self.layer = layer_cls(**init_kwargs)
        with self.trying("`get_config()`"):
            self.config: dict[str, Any] = self.layer.get_config()

    # ---- Verdicts ------------------------------------------------------------

    def expect(self, condition: Any, message: str) -> None:
        if not condition:
            raise AssertionError(f"{self.layer_cls.__name__}: {message}")

    @contextlib.contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Whatever is raised within breaks the contract."""
        try:
            yield
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(
                f"{self.layer_cls.__name__}: {what} failed with "
                f"{type(error).__name__}: {error}"
            ) from error

    # ---- Layers and calls ----------------------------------------------------

    def make(self, policy: str = "float32") -> Any:
        """A new layer, built."""
        layer = self.layer_cls.from_config(_with_policy(self.config, policy))
        self.call(layer)
        return layer

    def call(self, layer: Any, **flags: Any) -> list[Any]:
        """Its outputs, flat."""
        return list(tree.flatten(self.bind(layer)(self.x, **flags)))

    def bind(self, layer: Any) -> Any:
        """The layer as a function of its inputs and flags."""
        return lambda x, **flags: layer(x, **self.call_kwargs, **flags)

    def same(self, first: list[Any], second: list[Any]) -> bool:
        return all(
            np.array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))
            for a, b in zip(first, second, strict=True)
        )

    def gradients(self, layer: Any, model: Any, **flags: Any) -> list[Any]:
        """For every rho of the layer, of a random projection of outputs.

        Of outputs that sum to a constant, a sum would have none.
        """

        def projection() -> Any:
            rng = np.random.default_rng(1)
            outputs = tree.flatten(model(self.x, **flags))
            return sum(
                ops.sum(
                    ops.cast(y, "float32")
                    * ops.cast(rng.normal(size=y.shape), "float32")
                )
                for y in outputs
                if keras.backend.is_float_dtype(y.dtype)
            )

        return gradient(projection, rho_of(layer))


def rho_of(layer: Any) -> list[keras.Variable]:
    return [v for v in layer.weights if is_rho(v)]


def is_something(gradient: Any) -> bool:
    return gradient is not None and bool(ops.any(gradient != 0))


def _with_policy(config: Any, policy: str) -> Any:
    """The config of a layer, and of those in it, under a dtype policy."""
    if isinstance(config, (list, tuple)):
        return type(config)(_with_policy(item, policy) for item in config)
    if not isinstance(config, dict):
        return config
    return {
        name: policy
        # A dtype that is a string is not that of a layer.
        if name == "dtype" and isinstance(value, dict)
        else _with_policy(value, policy)
        for name, value in config.items()
    }
