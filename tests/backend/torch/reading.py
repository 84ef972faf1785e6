"""Lets NumPy read every tensor of PyTorch, as it reads those of others.

PyTorch refuses where a tensor asks for a gradient, as all that a model returns
outside of `fit` and `predict` does. The library itself is refused, here too.
"""

import functools
import pathlib
import sys

import keras
import torch

import keras_crossreg

LIBRARIES = [
    str(pathlib.Path(module.__file__).parent)
    for module in (keras, keras_crossreg)
]


def let_numpy_read():
    """Until the process ends; for tests."""
    array = torch.Tensor.__array__

    @functools.wraps(array)
    def detached(self, *args, **kwargs):
        caller = sys._getframe(1).f_code.co_filename  # noqa: SLF001
        if not caller.startswith(tuple(LIBRARIES)):
            self = self.detach()
        return array(self, *args, **kwargs)

    torch.Tensor.__array__ = detached
