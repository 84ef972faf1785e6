"""Whether what is exported can be written, and loaded where it is to run."""

from __future__ import annotations

import importlib.util
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import keras
from keras import tree

from keras_crossreg.user_warnings import warn_user

# What a format is written with, by backend, beside the backend itself.
_PACKAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "onnx": {
        "tensorflow": ("onnx", "tf2onnx"),
        "jax": ("onnx", "jax2onnx"),
        "torch": ("onnx", "onnxscript"),
    },
    "openvino": {"tensorflow": ("openvino",), "torch": ("openvino",)},
    "litert": {"torch": ("litert_torch",)},
    "tf_saved_model": {
        "jax": ("tensorflow",),
        "torch": ("tensorflow", "torch_xla"),
    },
}
_OF_THE_EXTRA = ("onnx", "onnxscript", "openvino", "tf2onnx")
# What files of a format draw from, where they have random numbers at all.
_SEEDS, _RUNTIME = "seeds", "runtime"
_NOISE = {
    "tensorflow": {
        "tf_saved_model": _SEEDS,
        "onnx": _RUNTIME,
        "litert": _RUNTIME,
    },
    "jax": {"tf_saved_model": _SEEDS},
    "torch": {"onnx": _RUNTIME, "torch": _RUNTIME},
}
# The domain of ONNX itself has two names.
_STANDARD = ("", "ai.onnx")
# Operations of TensorFlow that LiteRT asks a delegate for.
_FLEX = re.compile(rb"Flex[A-Z][A-Za-z0-9]+")


def check_format(format: str, draws: bool, input_signature: Any) -> None:
    """Refuses a format that cannot be written.

    Keras refuses those that it does not have on a backend.

    Args:
        format: As given to `export`.
        draws: Whether the model draws random numbers.
        input_signature: Its inputs.

    Raises:
        ImportError: If packages are not there. It says how to get them.
        ValueError: If files of this format have no random numbers; or if
            they need inputs of known sizes.
    """
    backend = keras.backend.backend()
    if format == "openvino" and backend == "jax":
        raise ValueError(
            "OpenVINO cannot read what JAX writes. Export ONNX, or save the "
            "model and load it on another backend. Received: format=openvino "
            "with the backend jax"
        )
    _check_packages(format, _PACKAGES.get(format, {}).get(backend, ()))
    is_known = format == "torch" or format in _PACKAGES
    if draws and is_known and format not in _NOISE[backend]:
        raise ValueError(
            f"There is no noise in what is written by {backend} for "
            f"{format}. Draw it ahead: `kcr.averaged(model, num_samples, "
            'noise="fixed").export(...)`. Received: noise=random with '
            f"format={format}"
        )
    shapes = [tuple(spec.shape) for spec in tree.flatten(input_signature)]
    if (format, backend) == ("onnx", "jax") and any(None in s for s in shapes):
        raise ValueError(
            "What writes ONNX on JAX, jax2onnx, takes inputs of known sizes: "
            "pass them, as in `input_signature=[keras.InputSpec(shape=(32, "
            '10), dtype="float32")]`. Received: input_signature with the '
            f"shapes {shapes}"
        )


def has_runtime_noise(format: str) -> bool:
    """Whether files of this format draw by what runs them."""
    return _NOISE[keras.backend.backend()].get(format) == _RUNTIME


def check_file(filepath: Any, format: str) -> None:
    """Refuses a file that no runtime could load, and deletes it.

    Converters write what they do not know as it is.

    Raises:
        ValueError: If ONNX does not have an operation of the model.
    """
    path = pathlib.Path(filepath)
    if format == "onnx":
        unknown = _unknown_to_onnx(path)
        if unknown:
            path.unlink()
            raise ValueError(
                "ONNX has no form of an operation of this model, and no "
                'runtime could load the file. Noise with `noise="fixed"` is '
                "constants; of layers, leave out those that do it, or export "
                "a SavedModel. Received: model with the operations "
                f"{unknown}"
            )
    if format == "litert":
        found = sorted(set(_FLEX.findall(path.read_bytes())))
        if found:
            warn_user(
                "LiteRT alone cannot run this file: it needs the Flex "
                "delegate, which brings operations of TensorFlow, "
                f"{[name.decode()[4:] for name in found]}."
            )


def _check_packages(format: str, needed: tuple[str, ...]) -> None:
    missing = [name for name in needed if not importlib.util.find_spec(name)]
    if not missing:
        return
    names = " ".join(missing).replace("_", "-")
    if all(name in _OF_THE_EXTRA for name in missing):
        names = "'keras-crossreg[export]'"
    raise ImportError(
        f'`format="{format}"` needs {" and ".join(missing)} on the backend '
        f"{keras.backend.backend()}: run `pip install {names}`. "
        f"Received: format={format}"
    )


def _unknown_to_onnx(path: pathlib.Path) -> list[str]:
    import onnx

    model = onnx.load(str(path))
    version = next(
        entry.version
        for entry in model.opset_import
        if entry.domain in _STANDARD
    )
    unknown = {
        node.op_type
        for node in _nodes(model.graph)
        if node.domain in _STANDARD
        and not onnx.defs.has(node.op_type, version, "")
    }
    return sorted(unknown)


def _nodes(graph: Any) -> Iterator[Any]:
    """Those of a graph, and of the graphs within."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
