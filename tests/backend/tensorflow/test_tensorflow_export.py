"""What `export` writes, read as a SavedModel."""

import inspect
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import compile_model
from helpers import fit
from helpers import make_model
from test_averaged import LOSSES
from test_averaged import X
from test_averaged import assert_close
from test_averaged import built
from test_averaged import several
from test_shared_samples import build
from test_shared_samples import skip

import keras_crossreg as kcr

NAMES = ("plain", "several", "subclassed", "noise")
ROWS = 20_000


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder of exported models, what they are given, and predictions."""
    folder = tmp_path_factory.mktemp("exported")
    model = compile_model(make_model(), eval_num_samples=5)
    fit(model)
    # What the model exports by itself is what it predicts, too.
    model.export(folder / "plain", verbose=False)
    subclassed = compile_model(built("subclassed"), eval_num_samples=3)
    kcr.averaged(subclassed, 3).export(folder / "subclassed", verbose=False)
    many, x = several(loss=LOSSES, eval_num_samples=4)
    kcr.averaged(many, 4).export(folder / "several", verbose=False)
    inputs = keras.Input((1,))
    noise = kcr.layers.GaussianNoiseScale(0.7, seed=1)
    noise = kcr.CrossRegModel(inputs, noise(inputs))
    kcr.averaged(noise, 16).export(folder / "noise", verbose=False)
    given = dict(x=X, **x)
    np.savez(folder / "given.npz", **given)
    first = model.predict(X, verbose=0)
    expected = {
        "first": first,
        "again": first,
        "fewer": model.predict(X[:4], verbose=0),
        "subclassed": subclassed.predict(X, verbose=0),
        **many.predict(x, verbose=0),
    }
    return folder, given, expected


def serve(served, given):
    """Every exported model's answers, by name."""
    x = given["x"]
    signature = served["plain"].signatures["serving_default"]
    zeros = np.zeros((ROWS, 1), "float32")
    return {
        "first": served["plain"].serve(x),
        "again": signature(features=x)["output_0"],
        "fewer": served["plain"].serve(x[:4]),
        "subclassed": served["subclassed"].serve(x),
        "noise": served["noise"].serve(zeros),
        **served["several"].serve({name: given[name] for name in "ab"}),
    }


def check(results, expected):
    results = dict(results)
    left = keras.ops.convert_to_numpy(results.pop("noise"))
    assert set(results) == set(expected)
    for name, value in expected.items():
        assert_close(results[name], value)
    # Linear in the noise: sigma / sqrt(K) is left of it. The mean square of
    # 20,000 rows has a relative standard error of 1% and we allow 5; their
    # mean has one of 0.175 / sqrt(20000) and we allow 5: each fails with
    # probability 6e-7.
    assert (left**2).mean() * 16 == pytest.approx(0.49, rel=0.05)
    assert abs(left.mean()) < 5 * 0.175 / np.sqrt(ROWS)


def test_what_is_exported_predicts_as_the_model_does(exported):
    folder, given, expected = exported
    served = {name: tf.saved_model.load(folder / name) for name in NAMES}
    check(serve(served, given), expected)


# Loads what was exported as somebody would who has never heard of Keras.
SERVER = f"""
import sys
import numpy as np
import tensorflow as tf

ROWS = {ROWS}

{inspect.getsource(serve)}

folder = sys.argv[1] + "/"
served = {{name: tf.saved_model.load(folder + name) for name in {NAMES}}}
results = serve(served, np.load(folder + "given.npz"))
assert not [m for m in sys.modules if m.startswith("keras_crossreg")]
np.savez(folder + "results.npz", **results)
"""


@pytest.mark.slow
def test_a_bare_tensorflow_serves_it(exported):
    folder, _, expected = exported
    subprocess.run([sys.executable, "-c", SERVER, str(folder)], check=True)
    check(np.load(folder / "results.npz"), expected)


def test_export_without_noise_is_that_of_keras(tmp_path):
    model = make_model(rho=False)
    model.export(tmp_path / "plain", verbose=False)
    layer = keras.layers.TFSMLayer(tmp_path / "plain", "serve")
    assert_close(layer(X), model(X))


def test_what_comes_before_noise_is_exported_once(tmp_path):
    model, _ = build(skip)
    model.export(tmp_path / "exported", verbose=False)
    served = keras.layers.TFSMLayer(tmp_path / "exported", "serve")
    np.testing.assert_allclose(
        served(X), model.predict(X, verbose=0), rtol=1e-4, atol=1e-6
    )
