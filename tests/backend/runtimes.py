"""Runs files that `export` wrote, each in its own runtime.

Each function gives the flat outputs of each batch, which is a list of arrays
in the order of the names of the inputs.
"""

import keras
import numpy as np

ENDINGS = {
    "onnx": ".onnx",
    "litert": ".tflite",
    "openvino": ".xml",
    "torch": ".pt2",
    "executorch": ".pte",
    "tf_saved_model": "",
}
NEEDED = {
    "onnx": "onnxruntime",
    "litert": "ai_edge_litert",
    "openvino": "openvino",
    "torch": "torch",
    "executorch": "executorch",
    "tf_saved_model": "tensorflow",
}


def run(format, path, batches):
    return RUN[format](str(path), batches)


def run_onnx(path, batches):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    names = sorted(value.name for value in session.get_inputs())
    return [
        session.run(None, dict(zip(names, batch, strict=True)))
        for batch in batches
    ]


def run_litert(path, batches):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path)
    inputs = interpreter.get_input_details()
    inputs = sorted(inputs, key=lambda place: place["name"])
    results = []
    for batch in batches:
        for place, x in zip(inputs, batch, strict=True):
            interpreter.resize_tensor_input(place["index"], x.shape)
        interpreter.allocate_tensors()
        for place, x in zip(inputs, batch, strict=True):
            interpreter.set_tensor(place["index"], x)
        interpreter.invoke()
        results.append(
            [
                interpreter.get_tensor(place["index"])
                for place in interpreter.get_output_details()
            ]
        )
    return results


def run_openvino(path, batches):
    import openvino

    # Some processors compute in sixteen bits otherwise.
    precise = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", precise)
    names = sorted(port.any_name for port in compiled.inputs)
    return [
        [
            np.array(y)
            for y in compiled(dict(zip(names, batch, strict=True))).values()
        ]
        for batch in batches
    ]


def run_torch(path, batches):
    import torch

    program = torch.export.load(path)
    module = program.module()
    (example,), _ = program.example_inputs
    results = []
    for batch in batches:
        tensors = [torch.tensor(x) for x in batch]
        x = keras.tree.pack_sequence_as(example, tensors)
        outputs = keras.tree.flatten(module(x))
        results.append([y.detach().numpy() for y in outputs])
    return results


def run_executorch(path, batches):
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    return [
        [y.numpy() for y in method.execute([torch.tensor(x) for x in batch])]
        for batch in batches
    ]


def run_tf_saved_model(path, batches):
    import tensorflow

    loaded = tensorflow.saved_model.load(path)
    serve = loaded.signatures["serving_default"]
    names = sorted(serve.structured_input_signature[1])
    results = []
    for batch in batches:
        outputs = serve(
            **{
                name: tensorflow.constant(x)
                for name, x in zip(names, batch, strict=True)
            }
        )
        results.append([y.numpy() for _, y in sorted(outputs.items())])
    return results


RUN = {
    "onnx": run_onnx,
    "litert": run_litert,
    "openvino": run_openvino,
    "torch": run_torch,
    "executorch": run_executorch,
    "tf_saved_model": run_tf_saved_model,
}
