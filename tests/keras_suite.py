"""Loads Keras's own tests with the model classes rebased on CrossRegModel.

Keras installs its tests. `load` runs the source of one of their modules anew,
in a namespace whose `import` gives our classes wherever it would give Keras's:
`keras.Model`, `from keras.src.models import Sequential`, `models.Model` and
all others alike, at the top of the module and inside its functions. Keras
itself is not changed, and sees models of a class that a user might have
written.
"""

import builtins
import importlib.util
import pathlib
import sys
import types
import unittest
import warnings
from unittest import mock

import keras
from keras.src.models.functional import Functional

import keras_crossreg as kcr

# The trainer of the backend in use, and its module.
KERAS_TRAINER = keras.Model.__bases__[0]


@keras.saving.register_keras_serializable("keras_suite")
class Sequential(kcr.CrossRegModel, keras.Sequential):
    """For `keras.Sequential`."""

    # Its arguments are layers, which make no config.
    __new__ = keras.Sequential.__new__


class Trainer(kcr.CrossRegModel):
    """For Keras's trainer, which its tests mix in before a layer.

    `class Example(Trainer, Dense)`, with `Dense.__init__(self, ...)` and then
    `Trainer.__init__(self)` in its constructor.
    """

    # A name that is reserved in a `keras.Model`, which Keras's trainer is not.
    layers = ()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # `keras.Model`, and its methods, come before the layer.
        layer = cls.__bases__[-1]
        if not issubclass(layer, keras.Model):
            for name in ("build", "call"):
                if name not in vars(cls):
                    setattr(cls, name, getattr(layer, name))

    def __init__(self):
        # The layer's constructor has run.
        with mock.patch.object(keras.Layer, "__init__", lambda self: None):
            super().__init__()


REBASED = {
    keras.Model: kcr.CrossRegModel,
    keras.Sequential: Sequential,
    Functional: kcr.CrossRegModel,
    KERAS_TRAINER: Trainer,
}

# The modules of Keras that hold any of them.
HOLDERS = {
    "keras",
    "keras.models",
    "keras.src",
    KERAS_TRAINER.__module__,
    "keras.src.models",
    "keras.src.models.functional",
    "keras.src.models.model",
    "keras.src.models.sequential",
}

# What tests of other backends and of data of other libraries import.
OPTIONAL = {"grain", "jax", "torch"}


class _Rebased(types.ModuleType):
    """A module of Keras, with our classes for Keras's."""

    def __init__(self, module, rebased):
        super().__init__(module.__name__)
        vars(self).update(_module=module, _rebased=rebased)

    def __getattr__(self, name):
        return _rebase(getattr(self._module, name), self._rebased)

    # For `mock.patch`.

    def __setattr__(self, name, value):
        setattr(self._module, name, value)

    def __delattr__(self, name):
        delattr(self._module, name)


def _rebase(value, rebased):
    if isinstance(value, types.ModuleType) and value.__name__ in HOLDERS:
        return _Rebased(value, rebased)
    return rebased.get(value, value) if isinstance(value, type) else value


def load(name, keep=()):
    """A module of Keras's tests, on our models.

    Args:
        name: Its name below `keras.src`.
        keep: Classes of Keras that it names and that are not to be rebased.

    Returns:
        The module. Its tests that need an optional package skip themselves.
    """
    rebased = {k: v for k, v in REBASED.items() if k not in keep}
    loading = True

    def import_(name, *args, **kwargs):
        try:
            module = builtins.__import__(name, *args, **kwargs)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
            if loading:
                return mock.MagicMock()
            raise unittest.SkipTest(str(error)) from error
        return _rebase(module, rebased)

    path = importlib.util.find_spec(f"keras.src.{name}").origin
    module = types.ModuleType(f"keras_suite.{name}")
    module.__file__ = path
    vars(module)["__builtins__"] = {**vars(builtins), "__import__": import_}
    # Where `pickle` and Keras look for classes.
    sys.modules[module.__name__] = module
    with warnings.catch_warnings():
        # Marks that are not ours.
        warnings.simplefilter("ignore")
        source = pathlib.Path(path).read_text(encoding="utf-8")
        exec(compile(source, path, "exec"), vars(module))
    loading = False
    return module
