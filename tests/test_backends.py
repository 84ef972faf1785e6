"""What can be imported with each backend of Keras, installed or not."""

import importlib.util
import os
import subprocess
import sys

import keras
import pytest

from keras_crossreg.supported_backends import BACKENDS

pytestmark = pytest.mark.backend

# Every backend takes seconds to import, in a process of its own.
NEUTRAL = "callbacks", "metrics", "visualization"
# Whatever the backend is, it says that it is another one.
OTHER = "other"
AS_ANOTHER = f"import keras; keras.backend.backend = lambda: {OTHER!r}"


def run(code, backend):
    """The output of Python code with a backend of Keras, and its error."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    return result.stdout, result.stderr


def is_installed(backend):
    return importlib.util.find_spec(backend) is not None


@pytest.mark.parametrize("backend", [*BACKENDS, "openvino"])
def test_a_backend_that_is_not_installed(backend):
    if is_installed(backend):
        pytest.skip(f"{backend} is installed")
    _, error = run("import keras_crossreg", backend)
    last = error.strip().splitlines()[-1]
    assert last.startswith("ImportError: The backend of Keras is not installed")
    named = backend if backend in BACKENDS else "tensorflow"
    assert f"pip install 'keras-crossreg[{named}]'" in last
    assert last.endswith(f"`KERAS_BACKEND={named}` before Keras is imported.")


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_backend_imports_another(backend):
    if not is_installed(backend):
        pytest.skip(f"{backend} is not installed")
    code = "\n".join(
        [
            "import sys, keras_crossreg",
            *(f"import keras_crossreg.{name}" for name in NEUTRAL),
            "print([b for b in ('tensorflow', 'torch') if b in sys.modules])",
        ]
    )
    output, error = run(code, backend)
    assert output.strip() in ("[]", f"['{backend}']"), error


def test_what_works_on_every_backend():
    code = "\n".join(
        [
            AS_ANOTHER,
            "import numpy as np, keras_crossreg as kcr",
            *(f"import keras_crossreg.{name}" for name in NEUTRAL),
            "y, p = np.array([0, 1]), np.array([[.9, .1], [.2, .8]])",
            "score = kcr.metrics.BrierScore()(y, p)",
            "print(round(float(score), 6))",
        ]
    )
    output, error = run(code, keras.backend.backend())
    # As scikit-learn: (0.1 ** 2 + 0.2 ** 2) / 2.
    assert output.split() == ["0.025"], error


@pytest.mark.parametrize(
    "code",
    [
        "from keras_crossreg import CrossRegModel",
        pytest.param(
            "import keras_crossreg; keras_crossreg.layers",
            marks=pytest.mark.slow,
        ),
        pytest.param("import keras_crossreg.layers", marks=pytest.mark.slow),
    ],
)
def test_what_trains_says_where_it_does(code):
    _, error = run(f"{AS_ANOTHER}\n{code}", keras.backend.backend())
    last = error.strip().splitlines()[-1]
    assert last.startswith("ImportError: keras_crossreg trains on TensorFlow")
    assert all(name in last for name in BACKENDS.values())
    assert last.endswith(f"Received: keras.backend.backend()={OTHER}")


@pytest.mark.slow
def test_what_is_neutral_loads_no_trainer():
    # The `__init__` of the package itself imports trainers: it is left out.
    code = "\n".join(
        [
            "import sys, types, importlib.util",
            "found = importlib.util.find_spec('keras_crossreg')",
            "package = types.ModuleType('keras_crossreg')",
            "package.__path__ = found.submodule_search_locations",
            "sys.modules['keras_crossreg'] = package",
            *(f"import keras_crossreg.{name}" for name in NEUTRAL),
            "print([m for m in sys.modules if 'keras_crossreg.' in m])",
        ]
    )
    output, error = run(code, keras.backend.backend())
    for name in NEUTRAL:
        assert f"keras_crossreg.{name}" in output, error
    for other in ("backend.", "trainers", "cross_reg_model"):
        assert f"keras_crossreg.{other}" not in output


def test_other_names_are_no_attributes():
    import keras_crossreg

    assert not hasattr(keras_crossreg, "nothing")
