"""Whether what was exported can be loaded where it is to run."""

from __future__ import annotations

import importlib.util
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import keras

from keras_crossreg.user_warnings import warn_user

# What Keras writes ONNX with, by backend, and what reads it again.
_ONNX = {
    "tensorflow": ("onnx", "tf2onnx"),
    "jax": ("onnx", "jax2onnx"),
    "torch": ("onnx", "onnxscript"),
}
# The domain of ONNX itself has two names.
_STANDARD = ("", "ai.onnx")
# Operations of TensorFlow that LiteRT asks a delegate for.
_FLEX = re.compile(rb"Flex[A-Z][A-Za-z0-9]+")


def check_packages(format: str) -> None:
    """Refuses a format whose packages are not there.

    Raises:
        ImportError: It names the extra.
    """
    if format != "onnx":
        return
    needed = _ONNX[keras.backend.backend()]
    missing = [name for name in needed if not importlib.util.find_spec(name)]
    if missing:
        raise ImportError(
            f'`format="onnx"` needs {" and ".join(missing)}: run '
            "`pip install 'keras-crossreg[export]'`. "
            f"Received: format={format}"
        )


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
