"""Which backends of Keras models train on, and what to install for one.

A new backend `<name>` takes

- `primitives/<name>.py`, with every function that `primitives/tensorflow.py`
  has, and a branch in `primitives/__init__.py` that imports them;
- `backend/<name>/trainer.py`, a subclass of `trainers.trainer.CrossRegTrainer`
  that compiles the two steps and makes the batches, and a branch in
  `cross_reg_model.py` that chooses it;
- its name in `BACKENDS` below, and an extra of `pyproject.toml`.
"""

from __future__ import annotations

#: Backends that models train on, and what they call themselves.
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


def _trains_on(backend: str) -> str:
    """What models train on, and what to do where that is not `backend`."""
    *names, last = BACKENDS.values()
    wanted = backend if backend in BACKENDS else "tensorflow"
    return (
        f"keras_crossreg trains on {', '.join(names)} and {last}. Install "
        f"{BACKENDS[wanted]} with `pip install 'keras-crossreg[{wanted}]'`, "
        f"and set `KERAS_BACKEND={wanted}` before Keras is imported."
    )


try:
    import keras
except ModuleNotFoundError as error:
    if error.name not in ("tensorflow", "jax", "torch", "openvino"):
        raise
    raise ImportError(
        "The backend of Keras is not installed "
        f"({error}). {_trains_on(error.name)}"
    ) from error


def is_supported() -> bool:
    """Whether models train on the backend of Keras that is in use."""
    return keras.backend.backend() in BACKENDS


def check_backend() -> str:
    """The backend of Keras that is in use.

    Raises:
        ImportError: If models do not train on it.
    """
    backend: str = keras.backend.backend()
    if not is_supported():
        raise ImportError(
            f"{_trains_on(backend)} Received: keras.backend.backend()={backend}"
        )
    return backend
