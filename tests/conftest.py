"""Settings of the whole suite."""

import gc
import os

# Before a backend. Workers of pytest are as many as there are cores.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
# Threads of PyTorch wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras
import pytest
from backend import gpu_stand_in  # noqa: F401

import keras_crossreg  # noqa: F401

if keras.backend.backend() == "torch":
    from backend.torch.reading import let_numpy_read

    let_numpy_read()

# Tests of the other backends.
collect_ignore_glob = [
    f"backend/{name}/*"
    for name in ("tensorflow", "jax", "torch")
    if name != keras.backend.backend()
]

# What is imported lives to the end: collecting dead TensorFlow graphs need
# not look at it every time.
gc.collect()
gc.freeze()


@pytest.fixture(autouse=True)
def float64(request):
    """On JAX a program has float64 where it asks for it, as these tests do.

    They are marked `float64`, or have a parameter of that name.
    """
    call = getattr(request.node, "callspec", None)
    asks = request.node.get_closest_marker("float64") or (
        call is not None and "float64" in call.id
    )
    if not asks or keras.backend.backend() != "jax":
        yield
        return
    import jax

    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)
