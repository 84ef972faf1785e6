"""Lets NumPy read every tensor of PyTorch, as it reads those of others.

PyTorch refuses where a tensor asks for a gradient, as all that a model returns
outside of `fit` and `predict` does.
"""

import functools

import torch


def let_numpy_read():
    """Until the process ends; for tests."""
    array = torch.Tensor.__array__

    @functools.wraps(array)
    def detached(self, *args, **kwargs):
        return array(self.detach(), *args, **kwargs)

    torch.Tensor.__array__ = detached
