"""What `export` writes, read by ONNX Runtime and the LiteRT interpreter."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from backend.runtimes import ENDINGS
from backend.runtimes import run
from helpers import Configured
from test_averaged import LOSSES
from test_averaged import assert_close
from test_averaged import several

import keras_crossreg as kcr

L = keras.layers
K = 4
# Of Keras, as it writes ONNX with a NumPy from 1.24 on.
pytestmark = pytest.mark.filterwarnings("ignore:In the future `np.object`")


@pytest.fixture(params=["onnx", "litert"])
def format(request):
    pytest.importorskip(
        {"onnx": "onnxruntime", "litert": "ai_edge_litert"}[request.param]
    )
    if request.param == "onnx":
        pytest.importorskip("tf2onnx")
    return request.param


def served(model, format, folder, *batches):
    """What the runtime gives for each batch: lists of outputs."""
    path = str(folder / f"model{ENDINGS[format]}")
    model.export(path, format=format, verbose=False)
    return run(format, path, batches)


def inputs_like(shape, rows=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, *shape)).astype("float32")


class Jitter(kcr.layers.RhoLayer):
    """A layer of the user's own, as of the docs."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = kcr.random.SeedGenerator(3)

    def build(self, input_shape):
        self.rho = self.add_rho("width", start=0.3)

    def call(self, inputs, training=False, sampling=None):
        if not (training or sampling):
            return inputs
        noise = kcr.random.uniform(keras.ops.shape(inputs), self.seed_generator)
        return inputs + self.rho_value(self.rho, sampling) * noise


def images(**kwargs):
    return lambda x: L.Conv2D(2, 3)(kcr.layers.LearnedAugmentation(**kwargs)(x))


def nested(x):
    inner = keras.Input((3,))
    block = keras.Model(
        inner, kcr.layers.GaussianNoiseScale()(L.Dense(4)(inner))
    )
    return L.Dense(2)(block(x))


NETWORKS = {
    "sigma": ((3,), kcr.layers.GaussianNoiseScale()),
    "sigmas": ((4, 3), kcr.layers.GaussianNoiseScale(axis=(1, 2))),
    "relative": ((4, 3), kcr.layers.GaussianNoiseScale(relative=True)),
    "dropout": ((4, 3), kcr.layers.LearnedDropout(0.3, axis=-1)),
    "gaussian dropout": ((3,), kcr.layers.LearnedGaussianDropout(0.3)),
    "images": ((6, 6, 1), images()),
    "wrapped images": ((6, 6, 1), images(fill_mode="wrap")),
    "constant images": ((6, 6, 1), images(fill_mode="constant")),
    "images, nearest": ((6, 6, 1), images(fill_mode="nearest")),
    "own": ((3,), Jitter()),
    "nested": ((3,), nested),
    "open steps": (
        (None, 3),
        kcr.layers.LearnedDropout(0.3, noise_shape=(None, 1, None)),
    ),
}


def network(name):
    keras.utils.set_random_seed(0)
    shape, body = NETWORKS[name]
    inputs = keras.Input(shape)
    return kcr.CrossRegModel(inputs, body(inputs)), shape


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_fixed_noise_gives_the_numbers_of_the_model(name, format, tmp_path):
    model, shape = network(name)
    averaged = kcr.averaged(model, K, noise="fixed")
    steps = [tuple(n or size for n in shape) for size in (4, 7)]
    batches = [inputs_like(steps[0], 5), inputs_like(steps[1], 2)]
    for x, (y,) in zip(
        batches,
        served(averaged, format, tmp_path, *[[x] for x in batches]),
        strict=True,
    ):
        assert_close(y, averaged(x))


@pytest.mark.slow
def test_many_samples_in_several_passes(format, tmp_path):
    averaged = kcr.averaged(network("nested")[0], 20, noise="fixed")
    x = inputs_like((3,))
    [[y]] = served(averaged, format, tmp_path, [x])
    assert_close(y, averaged(x))


@pytest.mark.slow
def test_several_inputs_and_outputs(format, tmp_path):
    model, x = several(loss=LOSSES)
    averaged = kcr.averaged(model, K, noise="fixed")
    expected = averaged(x)
    [outputs] = served(averaged, format, tmp_path, [x["a"], x["b"]])
    # The formats do not keep the order of a dict.
    shapes = {y.shape: y for y in outputs}
    assert_close(shapes[9, 3], expected["many"])
    ones = sorted((y for y in outputs if y.shape == (9, 1)), key=np.sum)
    both = sorted(
        (np.asarray(expected[name]) for name in ("one", "number")), key=np.sum
    )
    assert_close(ones, both)


@pytest.mark.slow
def test_a_subclassed_model(format, tmp_path):
    keras.utils.set_random_seed(0)
    model = Configured()
    x = inputs_like((3,))
    model(x)
    averaged = kcr.averaged(model, K, noise="fixed")
    [[y]] = served(averaged, format, tmp_path, [x])
    assert_close(y, averaged(x))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "uniform", "export"])
def test_noise_of_the_runtime_itself(kind, format, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2,))
    # A deviation of 0.5, of either.
    layer = kcr.layers.GaussianNoiseScale(0.5)
    if kind == "uniform":
        layer = kcr.layers.LearnedDropout(0.2)
    model = kcr.CrossRegModel(inputs, layer(inputs))
    averaged = kcr.averaged(model, 16)
    if kind == "export":
        model.compile("adam", "mse", eval_num_samples=16)
        averaged = model
    ones = np.ones((10_000, 2), "float32")
    [[y], [few]] = served(averaged, format, tmp_path, [ones], [ones[:3]])
    assert few.shape == (3, 2)
    # sqrt(K) more precise than one sample: .125. The relative standard error
    # of the deviation of 20,000 numbers is .5 %, that of the mean .0009; we
    # allow 6: each fails with probability 2e-9.
    assert y.std() == pytest.approx(0.125, rel=0.03)
    assert y.mean() == pytest.approx(1.0, abs=0.0054)
    # Rows, and columns, have noise of their own.
    assert abs(np.corrcoef(y.T)[0, 1]) < 0.06
    assert np.unique(y[:, 0]).size > 10


@pytest.mark.slow
def test_mixed_precision(format, tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model, _ = network("nested")
    finally:
        keras.config.set_dtype_policy(before)
    averaged = kcr.averaged(model, K, noise="fixed")
    x = inputs_like((3,))
    if format == "litert":
        # It computes in 32 bits alone, as it does for every model of Keras.
        with pytest.warns(UserWarning, match="Flex delegate.*'MatMul'"):
            averaged.export(
                tmp_path / "model.tflite", format=format, verbose=False
            )
        return
    [[y]] = served(averaged, format, tmp_path, [x])
    np.testing.assert_allclose(y, averaged(x), rtol=5e-3, atol=5e-3)


class Odd(kcr.layers.RhoLayer):
    """An operation of TensorFlow that a runtime does not have."""

    stochastic = False

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, inputs, training=False, sampling=None):
        return inputs + self.function(inputs)


def odd(function):
    inputs = keras.Input((3,))
    outputs = kcr.layers.GaussianNoiseScale()(Odd(function)(inputs))
    return kcr.averaged(kcr.CrossRegModel(inputs, outputs), K)


@pytest.mark.slow
def test_what_onnx_does_not_have_is_refused_by_name(tmp_path):
    pytest.importorskip("tf2onnx")
    averaged = odd(lambda x: tf.math.betainc(1.0, 2.0, x))
    path = tmp_path / "model.onnx"
    match = r"ONNX has no form.*Received: .*\['Betainc'\]$"
    with pytest.raises(ValueError, match=match):
        averaged.export(path, format="onnx", verbose=False)
    assert not path.exists()


@pytest.mark.slow
def test_what_litert_needs_a_delegate_for_is_named(tmp_path):
    path = tmp_path / "model.tflite"
    with pytest.warns(UserWarning, match=r"Flex delegate.*\['Tan'\]"):
        odd(tf.math.tan).export(path, format="litert", verbose=False)
    assert path.exists()


def test_missing_packages_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    averaged = kcr.averaged(network("sigma")[0], K, noise="fixed")
    match = r"needs onnx and tf2onnx.*keras-crossreg\[export\].*format=onnx$"
    with pytest.raises(ImportError, match=match):
        averaged.export(tmp_path / "model.onnx", format="onnx")


@pytest.mark.slow
def test_noise_of_the_runtime_in_sequences_of_any_length(format, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, 2))
    layer = kcr.layers.GaussianNoiseScale(0.5)
    averaged = kcr.averaged(kcr.CrossRegModel(inputs, layer(inputs)), 4)
    x = np.ones((50, 200, 2), "float32")
    [[long], [short]] = served(averaged, format, tmp_path, [x], [x[:, :3]])
    assert short.shape == (50, 3, 2)
    # Of 20,000 numbers; we allow 6 standard errors of .5 %.
    assert long.std() == pytest.approx(0.25, rel=0.03)
