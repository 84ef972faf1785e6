"""Every example in a public docstring runs."""

import doctest
import importlib.util
import inspect
import pathlib

import keras
import pytest

import keras_crossreg as kcr

CONFTEST = pathlib.Path(__file__).parents[1] / "docs" / "conftest.py"


def public_objects():
    """Those with an example, by name."""
    found = {}
    modules = [v for v in vars(kcr).values() if inspect.ismodule(v)]
    for module in [kcr, *modules]:
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            members = vars(value).values() if inspect.isclass(value) else ()
            for one in (value, *members):
                text = one.__doc__ or ""
                # The number of a setting has the text of its class.
                is_own = text is not type(one).__doc__
                if not inspect.ismodule(one) and is_own and ">>>" in text:
                    found[getattr(one, "__qualname__", name)] = one
    return found


PUBLIC = public_objects()
# Its example downloads weights.
del PUBLIC["add_noise"]


@pytest.fixture
def namespace():
    """What the pages of the documentation start with, and a little more."""
    pytest.importorskip("statsmodels")
    spec = importlib.util.spec_from_file_location("docs_conftest", CONFTEST)
    docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docs)
    names = {}
    docs.setup(names)
    inputs = keras.Input((8,))
    names.update(
        x_train=names["x_train"][:32],
        y_train=names["y_train"][:32],
        loss="sparse_categorical_crossentropy",
        ops=keras.ops,
        inputs=inputs,
        x=inputs,
    )
    yield names
    docs.teardown(names)


def test_there_are_examples():
    assert {"CrossRegModel", "GaussianNoiseScale", "refit"} <= set(PUBLIC)


# The data are so few that rho take few steps.
@pytest.mark.filterwarnings("ignore:Rho took")
@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLIC)
def test_example(name, namespace):
    text = PUBLIC[name].__doc__
    if "import tensorflow" in text and keras.backend.backend() != "tensorflow":
        pytest.skip("the example serves by TensorFlow")
    for example in doctest.DocTestParser().get_examples(text):
        if not example.want:
            exec(example.source, namespace)
            continue
        value = eval(example.source, namespace)
        if isinstance(value, float):
            # To the digits that are printed.
            assert value == pytest.approx(float(example.want), abs=1e-6)
        else:
            assert repr(value) == example.want.strip()
