"""Counts how often the host reads numbers of tensors, and so waits for them."""

import contextlib
import inspect

import keras


def _funnels():
    """What every read of a tensor's numbers goes through, on each backend."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return type(tf.constant(0)), ["_numpy"]
    if backend == "jax":
        import jax

        return type(jax.numpy.zeros(())), ["_value", "__array__"]
    import torch

    names = ["item", "numpy", "tolist", "cpu", "__float__", "__int__"]
    return torch.Tensor, [*names, "__bool__", "__index__", "__array__"]


def _does_not_count():
    """Whether it is of a seed, which is on the host, or for a callback.

    Keras reads the logs of a step for callbacks that look at steps.
    """
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name in ("_draw", "draw_seed"):
            return True
        if code.co_filename.endswith("callback_list.py"):
            return True
        frame = frame.f_back
    return False


class HostReads:
    """The number of reads, and where in the package they were."""

    def __init__(self):
        self.count = 0
        self.places = set()

    def note(self):
        if _does_not_count():
            return
        self.count += 1
        frame = inspect.currentframe()
        while frame is not None:
            path = frame.f_code.co_filename
            if "keras_crossreg" in path and "tests" not in path:
                self.places.add(f"{path.rpartition('/')[2]}:{frame.f_lineno}")
                break
            frame = frame.f_back


@contextlib.contextmanager
def counted_reads():
    """Within, reads are counted; yields a `HostReads`."""
    owner, names = _funnels()
    before = {name: getattr(owner, name) for name in names}
    own = {name: vars(owner).get(name) for name in names}
    reads = HostReads()

    def noting(function):
        def noted(self, *args, **kwargs):
            reads.note()
            return function(self, *args, **kwargs)

        return noted

    for name, function in before.items():
        if isinstance(function, property):
            setattr(owner, name, property(noting(function.fget)))
        else:
            setattr(owner, name, noting(function))
    try:
        yield reads
    finally:
        for name in names:
            if own[name] is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own[name])
