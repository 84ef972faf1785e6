"""The contract of layers that own a rho, as one call."""

from __future__ import annotations

import contextlib
import inspect
import math
import pathlib
import tempfile
import warnings
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_crossreg._keras import get_keras_mask
from keras_crossreg._keras import set_keras_mask
from keras_crossreg.cross_reg_model import CrossRegModel
from keras_crossreg.primitives import gradient
from keras_crossreg.rho import is_rho

DTYPE_POLICIES = ("float32", "mixed_float16", "mixed_bfloat16", "float64")


def check_rho_layer(
    layer_cls: type[keras.layers.Layer],
    init_kwargs: dict[str, Any] | None = None,
    input_shape: Any = None,
    *,
    input_data: Any = None,
    call_kwargs: dict[str, Any] | None = None,
    supports_masking: bool = True,
    dtype_policies: Sequence[str] = DTYPE_POLICIES,
    jit_compile: bool = True,
) -> None:
    """Checks that a layer keeps the contract of layers that own a rho.

    For the tests of a layer of one's own. In this order:

    - its config: every argument of the constructor is in it, and
      `from_config` gives the same layer;
    - `call` takes `sampling=None`;
    - under each of `dtype_policies` it builds and owns a rho, which is not
      trainable and is read as float32; outputs are of the compute dtype; the
      gradient of rho is finite;
    - `compute_output_shape`, and calls of unknown and of other batch sizes;
    - a sampling pass, alone and in a model, has a gradient for every rho; a
      training pass has none;
    - a plain pass is deterministic; sampling passes differ if, and only if,
      the layer is `stochastic`;
    - a mask goes through;
    - a copy that loads the weights goes on with the same noise;
    - `CrossRegModel.fit` moves every rho, and none after `freeze_rho()`; a
      `.keras` file of the model gives the same rho and predictions;
    - a compiled sampling pass.

    It takes a few seconds, most of them for the last two.

    Args:
        layer_cls: The class of the layer.
        init_kwargs: Dict of arguments of its constructor. Defaults to none.
        input_shape: Tuple of integers, the batch size first, or a structure
            of tuples where the layer takes several inputs; `None` in it
            stands for 4. The inputs are drawn from a standard normal
            distribution.
        input_data: Array, or a structure of arrays: inputs to use instead,
            where those do not do (token ids, for one).
        call_kwargs: Dict of further arguments of every call. Defaults to
            none.
        supports_masking: Boolean, whether a mask must go through the layer.
            Defaults to `True`.
        dtype_policies: Names of the dtype policies that the layer is for.
            Defaults to `"float32"`, `"mixed_float16"`, `"mixed_bfloat16"` and
            `"float64"`.
        jit_compile: Boolean, whether XLA must compile a sampling pass.
            Defaults to `True`.

    Raises:
        AssertionError: If the layer breaks the contract. It says where, and
            how to mend it.
        ValueError: Unless one of `input_shape` and `input_data` is given.

    Example:

    >>> def test_jitter():
    ...     kcr.testing.check_rho_layer(Jitter, {"start": 0.2}, (8, 3))
    """
    if (input_shape is None) == (input_data is None):
        raise ValueError(
            "Pass one of `input_shape` and `input_data`. Received: "
            f"input_shape={input_shape}, input_data={input_data}"
        )
    if input_data is None:
        rng = np.random.default_rng(0)

        def draw(shape: Any) -> Any:
            sizes = [4 if size is None else size for size in shape]
            return np.float32(rng.normal(size=sizes))

        input_data = tree.map_shape_structure(draw, input_shape)
    contract = _Contract(
        layer_cls, init_kwargs or {}, input_data, call_kwargs or {}
    )
    contract.check_config(init_kwargs or {})
    contract.check_signature()
    for policy in dtype_policies:
        contract.check_dtypes(policy)
    contract.check_output_shape()
    contract.check_symbolic_call()
    contract.check_gradients()
    contract.check_noise()
    if supports_masking:
        contract.check_masks()
    with tempfile.TemporaryDirectory() as folder:
        contract.check_weights_file(pathlib.Path(folder))
        contract.check_fit_and_keras_file(pathlib.Path(folder))
    contract.check_compiled(jit_compile)


class _Contract:
    """A layer class, with what it takes to make, build and call one."""

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

    # ---- Layers, calls and models --------------------------------------------

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
                ops.sum(ops.cast(y, "float32") * rng.normal(size=y.shape))
                for y in outputs
                if keras.backend.is_float_dtype(y.dtype)
            )

        return gradient(projection, _rho(layer))

    def symbolic(self, layer: Any) -> tuple[Any, Any]:
        """Inputs and outputs of a graph, with an open batch size."""

        def placeholder(array: Any, name: str | None = None) -> Any:
            return keras.Input(
                array.shape[1:], dtype=array.dtype.name, name=name
            )

        if isinstance(self.x, dict):
            # Keras wants their names to be the keys.
            inputs: Any = {k: placeholder(a, k) for k, a in self.x.items()}
        else:
            inputs = tree.map_structure(placeholder, self.x)
        return inputs, layer(inputs, **self.call_kwargs)

    def model(self, **compile_kwargs: Any) -> tuple[Any, Any]:
        """A new layer in a compiled `CrossRegModel`, before a `Dense`."""
        layer = self.make()
        inputs, outputs = self.symbolic(layer)
        # Operations, as a `Flatten` would complain of masks.
        features = ops.concatenate(
            [
                ops.reshape(y, (-1, math.prod(y.shape[1:])))
                for y in tree.flatten(outputs)
            ],
            axis=-1,
        )
        model = CrossRegModel(inputs, keras.layers.Dense(1)(features))
        model.compile(
            "sgd",
            "mse",
            rho_optimizer=keras.optimizers.Adam(0.1),
            num_samples=2,
            reg_freq=1,
            **compile_kwargs,
        )
        return model, layer

    # ---- The contract --------------------------------------------------------

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
            # Anew, as some take it to pieces.
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
        rho = _rho(layer)
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

    def check_gradients(self) -> None:
        layer = self.make()
        rho = _rho(layer)
        for v, g in zip(
            rho,
            self.gradients(layer, self.bind(layer), sampling=True),
            strict=True,
        ):
            self.expect(
                _is_something(g),
                f"no gradient reaches the rho '{v.path}' in a sampling pass, "
                "`call(..., sampling=True)`, so that it cannot learn.",
            )
        for v, g in zip(
            rho,
            self.gradients(layer, self.bind(layer), training=True),
            strict=True,
        ):
            self.expect(
                not _is_something(g),
                f"a gradient reaches the rho '{v.path}' in a training pass, "
                "`call(..., training=True)`, which would drive noise to zero. "
                "Read it with `self.rho_value(rho, sampling)`, or with "
                "`keras.ops.stop_gradient` unless `sampling`.",
            )
        model = CrossRegModel(*self.symbolic(layer))
        self.expect(
            all(
                map(_is_something, self.gradients(layer, model, sampling=True))
            ),
            "`sampling` does not reach it inside a model. Derive it from "
            "`kcr.layers.RhoLayer`, and call `super().__init__(**kwargs)`.",
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

    def check_symbolic_call(self) -> None:
        layer = self.make()
        with self.trying("a symbolic call with an open batch size"):
            inputs, outputs = self.symbolic(layer)
        real = self.call(layer)
        shapes = [tuple(y.shape) for y in tree.flatten(outputs)]
        expected = [(None, *y.shape[1:]) for y in real]
        self.expect(
            shapes == expected,
            "a symbolic call with an open batch size must give outputs of "
            f"shapes {expected}. Received: {shapes}",
        )
        model = CrossRegModel(inputs, outputs)
        with self.trying("a sampling pass with another batch size"):
            twice = tree.map_structure(lambda a: np.concatenate([a, a]), self.x)
            model(twice, sampling=True)

    def check_masks(self) -> None:
        layer = self.make()

        def masked(array: Any) -> Any:
            tensor = ops.convert_to_tensor(array)
            set_keras_mask(tensor, ops.ones(array.shape[:-1], "bool"))
            return tensor

        with warnings.catch_warnings():
            # Keras's own, of a mask that is lost.
            warnings.simplefilter("ignore")
            x = tree.map_structure(masked, self.x)
            outputs = self.bind(layer)(x, sampling=True)
        self.expect(
            all(get_keras_mask(y) is not None for y in tree.flatten(outputs)),
            "a mask must go through: set `self.supports_masking = True` in "
            "the constructor, as `RhoLayer` does. If it cannot, check with "
            "`supports_masking=False`.",
        )

    def check_weights_file(self, folder: pathlib.Path) -> None:
        path = folder / "model.weights.h5"
        layer, copy = self.make(), self.make()
        # Moves the noise on.
        self.call(layer, sampling=True)
        with self.trying("saving and loading weights"):
            CrossRegModel(*self.symbolic(layer)).save_weights(path)
            CrossRegModel(*self.symbolic(copy)).load_weights(path)
        self.expect(
            self.same(layer.weights, copy.weights),
            "a copy that loads its weights must have the same weights.",
        )
        for flags in ({"sampling": True}, {"training": True}):
            self.expect(
                self.same(self.call(layer, **flags), self.call(copy, **flags)),
                "a copy that loads its weights must go on with the same "
                "noise. Keep the generator in `self.seed_generator`, which "
                "`RhoLayer` saves; save any other state yourself, in "
                "`save_own_variables()` and `load_own_variables()`.",
            )

    def check_fit_and_keras_file(self, folder: pathlib.Path) -> None:
        model, layer = self.model(run_eagerly=True)
        rho = _rho(layer)
        before = [ops.convert_to_numpy(v) for v in rho]
        self.fit(model)
        still = [
            v.path
            for v, b in zip(rho, before, strict=True)
            if self.same([v], [b])
        ]
        self.expect(
            not still,
            f"`CrossRegModel.fit` does not move {still}. The rho of a layer "
            "that is not `trainable` do not learn.",
        )
        model.freeze_rho()
        before = [ops.convert_to_numpy(v) for v in rho]
        self.fit(model)
        self.expect(
            self.same(rho, before),
            "a rho moved in `CrossRegModel.fit` after `freeze_rho()`: nothing "
            "but the rho step may assign it.",
        )
        with self.trying("saving a model as a `.keras` file and loading it"):
            model.save(folder / "model.keras")
            loaded = keras.models.load_model(
                folder / "model.keras",
                custom_objects={self.layer_cls.__name__: self.layer_cls},
            )
        predictions = [m.predict(self.x, verbose=0) for m in (model, loaded)]
        self.expect(
            model.get_rho().keys() == loaded.get_rho().keys()
            and self.same(model.rho_variables, loaded.rho_variables)
            and self.same(predictions[:1], predictions[1:]),
            "a model that is loaded from a `.keras` file must have the same "
            "rho and the same predictions.",
        )

    def fit(self, model: Any) -> None:
        size = len(tree.flatten(self.x)[0])
        y = np.random.default_rng(2).normal(size=(size, 1)).astype("float32")
        with self.trying("`CrossRegModel.fit`"), warnings.catch_warnings():
            # A few rows do for both.
            warnings.filterwarnings("ignore", ".* regularization examples")
            model.fit(
                self.x, y, reg_data=(self.x, y), batch_size=size, verbose=0
            )

    def check_compiled(self, jit_compile: bool) -> None:
        model, _ = self.model(jit_compile=jit_compile)
        with self.trying(
            f"a compiled sampling pass with `jit_compile={jit_compile}`"
        ):
            model.predict(self.x, verbose=0)


def _rho(layer: Any) -> list[keras.Variable]:
    return [v for v in layer.weights if is_rho(v)]


def _is_something(gradient: Any) -> bool:
    return gradient is not None and bool(ops.any(gradient != 0))


def _with_policy(config: Any, policy: str) -> Any:
    """The config of a layer, and of those in it, under a dtype policy."""
    if isinstance(config, (list, tuple)):
        return type(config)(_with_policy(item, policy) for item in config)
    if not isinstance(config, dict):
        return config
    return {
        name: policy
        # Where this is a string, it is no layer's.
        if name == "dtype" and isinstance(value, dict)
        else _with_policy(value, policy)
        for name, value in config.items()
    }
