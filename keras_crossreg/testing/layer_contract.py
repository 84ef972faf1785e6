"""What the contract of rho layers asks of a layer alone."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_crossreg._keras import get_keras_mask
from keras_crossreg._keras import set_keras_mask
from keras_crossreg.testing.rho_layer_probe import RhoLayerProbe
from keras_crossreg.testing.rho_layer_probe import is_something
from keras_crossreg.testing.rho_layer_probe import rho_of


class LayerContract(RhoLayerProbe):
    """Checks of one layer, called by itself."""

    def check_config(self, init_kwargs: dict[str, Any]) -> None:
        parameters = inspect.signature(self.layer_cls).parameters.values()
        kinds = (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        )
        names = [p.name for p in parameters if p.kind not in kinds]
        missing = [n for n in {*names, *init_kwargs} if n not in self.config]
        self.expect(
            not missing,
            "`get_config()` must return every argument of the constructor, on "
            f"top of `super().get_config()`. It lacks: {sorted(missing)}",
        )
        with self.trying(
            "`from_config(get_config())`, which needs a constructor that "
            "takes `**kwargs` and passes them to `super().__init__()`,"
        ):
            # The config is made anew, as some layers take it to pieces.
            copy = self.layer_cls.from_config(self.layer.get_config())
            config = copy.get_config()
        with self.trying("serializing its config"):
            one, other = map(
                keras.saving.serialize_keras_object, (self.config, config)
            )
        changed = sorted(n for n in one if one[n] != other.get(n))
        self.expect(
            not changed,
            "`from_config(get_config())` must give a layer of the same "
            f"config. These arguments changed: {changed}",
        )

    def check_signature(self) -> None:
        parameters = inspect.signature(self.layer_cls.call).parameters
        self.expect(
            "sampling" in parameters,
            "`call` must take an argument `sampling=None`, which tells it "
            "that this is a sampling pass, whose gradient moves rho.",
        )
        default = parameters["sampling"].default
        self.expect(
            default is None,
            "the default of `sampling` in `call` must be `None`: Keras writes "
            "any other into the graph of a functional model, for good. "
            f"Received: sampling={default}",
        )

    def check_dtypes(self, policy: str) -> None:
        where = f"under the dtype policy '{policy}'"
        with self.trying(f"a call {where}"):
            layer = self.make(policy)
        rho = rho_of(layer)
        self.expect(
            rho,
            "it has no rho. Create one in `build()` with `self.add_rho(...)`, "
            "or with `kcr.mark_rho(self.add_weight(...))`.",
        )
        trainable = {id(v) for v in layer.trainable_variables}
        self.expect(
            not trainable & set(map(id, rho)),
            "rho must not be among its `trainable_variables`, which the "
            "training batch moves.",
        )
        read: set[Any] = set()
        call = layer.call

        def spy(*args: Any, **kwargs: Any) -> Any:
            read.update(ops.convert_to_tensor(v).dtype for v in rho)
            return call(*args, **kwargs)

        layer.call = spy
        for flags in ({}, {"training": True}, {"sampling": True}):
            with self.trying(f"a call with {flags} {where}"):
                outputs = self.call(layer, **flags)
            wrong = [
                keras.backend.standardize_dtype(y.dtype)
                for y in outputs
                if keras.backend.is_float_dtype(y.dtype)
            ]
            wrong = [dtype for dtype in wrong if dtype != layer.compute_dtype]
            self.expect(
                not wrong,
                f"its outputs must be of its compute dtype: {where} that is "
                f"{layer.compute_dtype}. Received: {wrong} with {flags}",
            )
        read = {keras.backend.standardize_dtype(dtype) for dtype in read}
        self.expect(
            read == {"float32"},
            f"`call` must read rho in float32 {where}: create them with "
            '`dtype="float32", autocast=False`. Received: ' + str(sorted(read)),
        )
        layer.call = call
        for g in self.gradients(layer, self.bind(layer), sampling=True):
            self.expect(
                g is None or np.isfinite(ops.convert_to_numpy(g)).all(),
                "the gradient of every rho must be finite in a sampling pass "
                f"{where}.",
            )

    def check_output_shape(self) -> None:
        layer = self.make()
        shapes: list[Any] = []
        with self.trying("`compute_output_shape()`"):
            tree.map_shape_structure(
                lambda shape: shapes.append(tuple(shape)),
                layer.compute_output_shape(
                    tree.map_structure(lambda a: a.shape, self.x)
                ),
            )
        real = [tuple(y.shape) for y in self.call(layer)]
        self.expect(
            shapes == real,
            "`compute_output_shape()` must return the shape of the outputs, "
            f"{real}. Received: {shapes}",
        )

    def check_gradients(self) -> None:
        layer = self.make()
        rho = rho_of(layer)
        for v, g in zip(
            rho,
            self.gradients(layer, self.bind(layer), sampling=True),
            strict=True,
        ):
            self.expect(
                is_something(g),
                f"no gradient reaches the rho '{v.path}' in a sampling pass, "
                "`call(..., sampling=True)`, so that it cannot learn.",
            )
        for v, g in zip(
            rho,
            self.gradients(layer, self.bind(layer), training=True),
            strict=True,
        ):
            self.expect(
                not is_something(g),
                f"a gradient reaches the rho '{v.path}' in a training pass, "
                "`call(..., training=True)`, which would drive noise to zero. "
                "Read it with `self.rho_value(rho, sampling)`, or with "
                "`keras.ops.stop_gradient` unless `sampling`.",
            )

    def check_noise(self) -> None:
        layer = self.make()
        for flags in ({}, {"training": False}):
            self.expect(
                self.same(self.call(layer, **flags), self.call(layer, **flags)),
                "a plain pass, neither `training` nor `sampling`, must be "
                "deterministic: two of them differ.",
            )
        first, second = (self.call(layer, sampling=True) for _ in range(2))
        if getattr(layer, "stochastic", True):
            self.expect(
                not self.same(first, second),
                "two sampling passes must differ, as it is `stochastic`: "
                "draw anew, from a `keras.random.SeedGenerator`, in every "
                "call; or set `stochastic = False` on the class.",
            )
        else:
            self.expect(
                self.same(first, second),
                "two sampling passes differ though `stochastic` is `False`: "
                "predictions would not be averaged. Leave it at `True`.",
            )

    def check_masks(self) -> None:
        layer = self.make()

        def masked(array: Any) -> Any:
            tensor = ops.convert_to_tensor(array)
            set_keras_mask(tensor, ops.ones(array.shape[:-1], "bool"))
            return tensor

        with warnings.catch_warnings():
            # Keras warns of a mask that is lost.
            warnings.simplefilter("ignore")
            x = tree.map_structure(masked, self.x)
            outputs = self.bind(layer)(x, sampling=True)
        self.expect(
            all(get_keras_mask(y) is not None for y in tree.flatten(outputs)),
            "a mask must go through: set `self.supports_masking = True` in "
            "the constructor, as `RhoLayer` does. If it cannot, check with "
            "`supports_masking=False`.",
        )
