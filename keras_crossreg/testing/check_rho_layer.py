"""The contract of layers that own a rho, as one call."""

from __future__ import annotations

import pathlib
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_crossreg.testing.layer_contract import LayerContract
from keras_crossreg.testing.model_contract import ModelContract

DTYPE_POLICIES = ("float32", "mixed_float16", "mixed_bfloat16", "float64")


def check_rho_layer(
    layer_cls: type[keras.layers.Layer],
    init_kwargs: dict[str, Any] | None = None,
    input_shape: Any = None,
    *,
    input_data: Any = None,
    call_kwargs: dict[str, Any] | None = None,
    supports_masking: bool = True,
    dtype_policies: Sequence[str] | None = None,
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
            Defaults to `"float32"`, `"mixed_float16"`, `"mixed_bfloat16"` and,
            where the backend computes in it, `"float64"`: JAX has to be asked
            to, by `jax_enable_x64`.
        jit_compile: Boolean, whether XLA must compile a sampling pass. Not
            looked at on PyTorch, which has none. Defaults to `True`.

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
    arguments = layer_cls, init_kwargs or {}, input_data, call_kwargs or {}
    layer = LayerContract(*arguments)
    layer.check_config(init_kwargs or {})
    layer.check_signature()
    if dtype_policies is None:
        dtype_policies = [
            policy
            for policy in DTYPE_POLICIES
            if policy != "float64" or _has_float64()
        ]
    for policy in dtype_policies:
        layer.check_dtypes(policy)
    layer.check_output_shape()
    model = ModelContract(*arguments)
    model.check_symbolic_call()
    layer.check_gradients()
    model.check_gradients()
    layer.check_noise()
    if supports_masking:
        layer.check_masks()
    with tempfile.TemporaryDirectory() as folder:
        model.check_weights_file(pathlib.Path(folder))
        model.check_fit_and_keras_file(pathlib.Path(folder))
    model.check_compiled(jit_compile and keras.backend.backend() != "torch")


def _has_float64() -> bool:
    """Whether the backend makes tensors of float64 now."""
    with warnings.catch_warnings():
        # JAX warns, and makes one of float32.
        warnings.simplefilter("ignore")
        dtype = keras.ops.zeros((), "float64").dtype
    return bool(keras.backend.standardize_dtype(dtype) == "float64")
