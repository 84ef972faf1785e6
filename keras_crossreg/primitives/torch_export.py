"""What PyTorch writes for other runtimes, by way of `torch.export`.

Keras goes by TorchScript to ONNX and OpenVINO, which takes the sizes that it
sees for those of every batch. `torch.export` keeps them open, or says why not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import torch
from keras import tree

from keras_crossreg._keras import torch_device


def draw_in_runtime(kind: str, shape: Any, dtype: str, seed: int) -> Any:
    """`"uniform"` or `"normal"` numbers of whatever runs the graph.

    PyTorch's operations take no seed.
    """
    draw = torch.randn if kind == "normal" else torch.rand
    return draw(
        tuple(shape), dtype=getattr(torch, dtype), device=torch_device()
    )


def write_torch(
    model: keras.Model,
    filepath: Any,
    input_signature: Any,
    verbose: bool | None = None,
    **options: Any,
) -> None:
    """Keras's own `.pt2`, for inputs of any open size."""
    options.setdefault("dynamic_shapes", _open_sizes(input_signature))
    with _in_evaluation_mode(model):
        keras.Model.export(
            model, filepath, "torch", verbose, input_signature, **options
        )


def write_onnx(
    model: keras.Model,
    filepath: Any,
    input_signature: Any,
    verbose: bool | None = None,
    opset_version: int | None = None,
) -> None:
    """An ONNX file for inputs of any open size."""
    torch.onnx.export(
        _program(model, input_signature),
        f=str(filepath),
        input_names=_names(input_signature),
        opset_version=opset_version,
        dynamo=True,
        verbose=verbose,
    )


def write_openvino(
    model: keras.Model,
    filepath: Any,
    input_signature: Any,
    verbose: bool | None = None,
) -> None:
    """The two files of OpenVINO, for inputs of any open size."""
    import openvino

    converted = openvino.convert_model(_program(model, input_signature))
    names = _names(input_signature)
    for port, name in zip(converted.inputs, names, strict=True):
        port.get_node().set_friendly_name(name)
        port.tensor.set_names({name})
    openvino.serialize(converted, str(filepath))


#: By format: what writes it in the place of Keras.
writers: dict[str, Callable[..., None]] = {
    "onnx": write_onnx,
    "openvino": write_openvino,
    "torch": write_torch,
}


def _program(model: keras.Model, input_signature: Any) -> Any:
    inputs = tree.map_structure(_example, tuple(input_signature))
    with _in_evaluation_mode(model):
        return torch.export.export(
            model,
            inputs,
            dynamic_shapes=_open_sizes(input_signature),
            strict=False,
        )


def _example(spec: Any) -> Any:
    # PyTorch takes a size of 1 for a constant.
    shape = [2 if size is None else size for size in spec.shape]
    return keras.ops.ones(shape, spec.dtype)


def _open_sizes(input_signature: Any) -> Any:
    """In the form that `torch.export` takes: `forward` has `*args`."""
    dynamic = torch.export.Dim.DYNAMIC
    sizes = tree.map_structure(
        lambda spec: {
            axis: dynamic for axis, n in enumerate(spec.shape) if n is None
        },
        tuple(input_signature),
    )
    return [sizes]


def _names(input_signature: Any) -> list[str]:
    return [
        getattr(spec, "name", None) or f"input_{i}"
        for i, spec in enumerate(tree.flatten(input_signature))
    ]


@contextlib.contextmanager
def _in_evaluation_mode(model: Any) -> Iterator[None]:
    """Modules of PyTorch that a model has, and what they were before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
