"""What `export` writes on each backend, run by its own runtime.

`tests/backend/tensorflow` has more of SavedModel, ONNX and LiteRT there.
"""

import importlib.util
import re

import keras
import numpy as np
import pytest
from backend.runtimes import ENDINGS
from backend.runtimes import NEEDED
from backend.runtimes import run
from test_averaged import LOSSES
from test_averaged import several

import keras_crossreg as kcr

L = keras.layers
K = 4
BACKEND = keras.backend.backend()
FORMATS = {
    "tensorflow": ["onnx", "litert", "openvino", "tf_saved_model"],
    "jax": ["onnx", "tf_saved_model"],
    "torch": ["onnx", "litert", "openvino", "torch"],
}[BACKEND]
WRITERS = {
    ("onnx", "tensorflow"): "tf2onnx",
    ("onnx", "jax"): "jax2onnx",
    ("onnx", "torch"): "onnxscript",
    ("litert", "torch"): "litert_torch",
}
# Those that are written for batches of one size.
OF_ONE_SIZE = [("onnx", "jax"), ("litert", "torch")]
ONE_SIZE = 5
pytestmark = [
    pytest.mark.backend,
    # Of Keras, and of what it writes with.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(params=FORMATS)
def format(request):
    for name in (NEEDED[request.param], WRITERS.get((request.param, BACKEND))):
        if name and not importlib.util.find_spec(name):
            pytest.skip(f"needs {name}")
    return request.param


def signature_of(inputs, format):
    """One that gives the size of the batch where a format needs it."""
    if (format, BACKEND) not in OF_ONE_SIZE:
        return None
    return [
        keras.tree.map_structure(
            lambda x: keras.InputSpec(
                shape=(ONE_SIZE, *x.shape[1:]), dtype=x.dtype, name=x.name
            ),
            inputs,
        )
    ]


def served(model, inputs, format, folder, batches):
    path = folder / f"model{ENDINGS[format]}"
    model.export(
        path,
        format=format,
        verbose=False,
        input_signature=signature_of(inputs, format),
    )
    return run(format, path, batches)


def sizes(format):
    return [ONE_SIZE] if (format, BACKEND) in OF_ONE_SIZE else [5, 2, 1]


def close(first, second):
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=2e-6)


def small():
    """Each kind of noise, and layers between them."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 3), name="x")
    x = L.Dense(3, activation="relu")(inputs)
    x = L.BatchNormalization()(kcr.layers.GaussianNoiseScale(0.5)(x))
    x = kcr.layers.LearnedDropout(0.3, axis=-1)(L.Conv1D(4, 3)(x))
    x = kcr.layers.LearnedGaussianDropout(0.3)(L.Flatten()(x))
    inner = keras.Input((8,))
    block = keras.Model(inner, kcr.layers.GaussianNoiseScale()(inner))
    outputs = L.Dense(2)(block(x))
    return kcr.CrossRegModel(inputs, outputs)


def test_fixed_noise_gives_the_numbers_of_the_model(format, tmp_path):
    model = small()
    averaged = kcr.averaged(model, K, noise="fixed")
    x = np.random.default_rng(0).normal(size=(5, 4, 3)).astype("float32")
    batches = [x[:n] for n in sizes(format)]
    results = served(
        averaged, model.inputs[0], format, tmp_path, [[b] for b in batches]
    )
    for batch, (y,) in zip(batches, results, strict=True):
        close(y, keras.ops.convert_to_numpy(averaged(batch)))


def test_several_inputs_and_outputs(format, tmp_path):
    model, x = several(loss=LOSSES)
    x = {name: a[:ONE_SIZE] for name, a in x.items()}
    # More than one pass.
    averaged = kcr.averaged(model, 20, noise="fixed")
    inputs = {
        name: keras.KerasTensor((None, 2), name=name) for name in ("a", "b")
    }
    [outputs] = served(averaged, inputs, format, tmp_path, [[x["a"], x["b"]]])
    # The formats do not keep the names of a dict.
    found = sorted(outputs, key=lambda y: (y.shape, y.sum()))
    expected = averaged.predict(x, verbose=0).values()
    expected = sorted(expected, key=lambda y: (y.shape, y.sum()))
    for one, other in zip(found, expected, strict=True):
        close(one, other)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_random_noise(kind, format, tmp_path):
    inputs = keras.Input((2,), name="x")
    # A deviation of 0.5, of either.
    layer = {
        "normal": kcr.layers.GaussianNoiseScale(0.5),
        "uniform": kcr.layers.LearnedDropout(0.2),
    }[kind]
    model = kcr.CrossRegModel(inputs, layer(inputs))
    averaged = kcr.averaged(model, 16)
    ones = np.ones((10_000, 2), "float32")
    path = tmp_path / f"model{ENDINGS[format]}"
    refused = {
        "jax": ["onnx"],
        "tensorflow": ["openvino"],
        "torch": ["litert", "openvino"],
    }[BACKEND]
    if format in refused:
        with pytest.raises(ValueError) as error:
            averaged.export(path, format=format, verbose=False)
        match = r'Draw it ahead: .*noise="fixed".*Received: noise=random with'
        assert re.search(match, str(error.value))
        assert not path.exists()
        return
    averaged.export(path, format=format, verbose=False)
    [[y], [few]] = run(format, path, [[ones], [ones[:3]]])
    assert few.shape == (3, 2)
    # sqrt(16) more precise than one sample: .125. The relative standard error
    # of the deviation of 20,000 numbers is .5 %, that of the mean .0009; we
    # allow 6: each fails with probability 2e-9.
    assert y.std() == pytest.approx(0.125, rel=0.03)
    assert y.mean() == pytest.approx(1.0, abs=0.0054)
    # Rows, and columns, have noise of their own.
    assert abs(np.corrcoef(y.T)[0, 1]) < 0.06
    assert np.unique(y[:, 0]).size > 10


def test_two_layers_draw_noise_of_their_own(format, tmp_path):
    inputs = keras.Input((2,), name="x")
    layers = [kcr.layers.GaussianNoiseScale(0.5) for _ in range(2)]
    model = kcr.CrossRegModel(inputs, [layer(inputs) for layer in layers])
    path = tmp_path / f"model{ENDINGS[format]}"
    try:
        kcr.averaged(model, 2).export(path, format=format, verbose=False)
    except ValueError:
        pytest.skip("refused, see above")
    [[a, b]] = run(format, path, [[np.ones((10_000, 2), "float32")]])
    # A standard error of .01.
    assert abs(np.corrcoef(a[:, 0], b[:, 0])[0, 1]) < 0.06


@pytest.mark.parametrize(
    "case",
    [
        ("onnx", "tensorflow", "onnx and tf2onnx", r"keras-crossreg\[export\]"),
        ("onnx", "jax", "onnx and jax2onnx", "`pip install onnx jax2onnx`"),
        ("onnx", "torch", "onnx and onnxscript", r"keras-crossreg\[export\]"),
        ("openvino", "tensorflow", "openvino", r"keras-crossreg\[export\]"),
        ("openvino", "torch", "openvino", r"keras-crossreg\[export\]"),
        ("litert", "torch", "litert_torch", "`pip install litert-torch`"),
        ("tf_saved_model", "jax", "tensorflow", "`pip install tensorflow`"),
        (
            "tf_saved_model",
            "torch",
            "tensorflow and torch_xla",
            "`pip install tensorflow torch-xla`",
        ),
    ],
)
def test_missing_packages_are_named(case, tmp_path, monkeypatch):
    format, backend, names, how = case
    if backend != BACKEND:
        pytest.skip(f"of {backend}")
    averaged = kcr.averaged(small(), K, noise="fixed")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    match = f"needs {names} on the backend.*{how}.*Received: format={format}$"
    with pytest.raises(ImportError, match=match):
        averaged.export(tmp_path / f"m{ENDINGS[format]}", format=format)


@pytest.mark.skipif(BACKEND != "jax", reason="of jax")
def test_what_jax_does_not_write_is_refused(tmp_path, monkeypatch):
    averaged = kcr.averaged(small(), K, noise="fixed")
    match = "OpenVINO cannot read what JAX writes.*Received: format=openvino"
    with pytest.raises(ValueError, match=match):
        averaged.export(tmp_path / "m.xml", format="openvino")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    with pytest.raises(ValueError, match=r"known sizes.*\(None, 4, 3\)\]$"):
        averaged.export(tmp_path / "m.onnx", format="onnx")


torch_alone = pytest.mark.skipif(BACKEND != "torch", reason="of torch")


@torch_alone
@pytest.mark.parametrize("noise", ["fixed", "random"])
def test_torch_export_itself(noise):
    torch = pytest.importorskip("torch")
    averaged = kcr.averaged(small(), K, noise=noise)
    x = torch.rand(5, 4, 3)
    program = torch.export.export(
        averaged,
        (x[:2],),
        dynamic_shapes=[({0: torch.export.Dim("batch")},)],
        strict=False,
    )
    expected = averaged(x).detach()
    found = [program.module()(x).detach() for _ in range(2)]
    if noise == "fixed":
        for y in found:
            close(y, expected)
        return
    # Noise of PyTorch itself: other numbers of the same kind.
    assert found[0].shape == expected.shape
    assert np.abs(found[0] - found[1]).max() > 1e-3


@torch_alone
def test_fixed_noise_of_an_open_size_is_refused(tmp_path):
    inputs = keras.Input((None, 3))
    layer = kcr.layers.GaussianNoiseScale(name="noise")
    model = kcr.CrossRegModel(inputs, L.Dense(1)(layer(inputs)))
    averaged = kcr.averaged(model, K, noise="fixed")
    for format in ("torch", "onnx"):
        if format == "onnx":
            pytest.importorskip("onnxscript")
        path = tmp_path / f"m{ENDINGS[format]}"
        with pytest.raises((RuntimeError, ValueError)) as error:
            averaged.export(path, format=format, verbose=False)
        match = "shape that is known.*Received: layer=noise with"
        assert re.search(match, str(error.value), re.DOTALL)
        assert not path.exists()


@torch_alone
def test_a_module_is_left_in_its_mode(tmp_path):
    averaged = kcr.averaged(small(), K, noise="fixed")
    averaged.export(tmp_path / "m.pt2", format="torch", verbose=False)
    assert all(module.training for module in averaged.modules())


@torch_alone
def test_executorch(tmp_path):
    exir = pytest.importorskip("executorch.exir")
    torch = pytest.importorskip("torch")
    averaged = kcr.averaged(small(), K, noise="fixed")
    # It plans memory for a batch of the size of this one.
    x = np.random.default_rng(0).normal(size=(8, 4, 3)).astype("float32")
    program = torch.export.export(
        averaged,
        (torch.tensor(x),),
        dynamic_shapes=[({0: torch.export.Dim("batch", max=8)},)],
        strict=False,
    )
    lowered = exir.to_edge(program).to_executorch()
    (tmp_path / "m.pte").write_bytes(lowered.buffer)
    results = run("executorch", tmp_path / "m.pte", [[x], [x[:3]], [x[:1]]])
    for n, (y,) in zip((8, 3, 1), results, strict=True):
        close(y, averaged(x[:n]).detach())
