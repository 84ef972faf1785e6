"""What `_keras.py` has of the backends of Keras: variables, batches, devices.

Each name says why public API does not do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

# A scope within another hides what that one holds, and says nowhere so.
from keras.src.backend.common.stateless_scope import get_stateless_scope

# Whether shapes alone are asked for.
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

# It turns any array that `fit` takes into one that the backend takes.
from keras.src.trainers.data_adapters.array_slicing import convert_to_sliceable


class NestedScope(keras.StatelessScope):
    """A `keras.StatelessScope` that sees what the scope around it holds.

    Attributes:
        updated: The variables that were assigned within, in order.
    """

    def __init__(
        self, state_mapping: Any = None, collect_losses: bool = False
    ) -> None:
        super().__init__(state_mapping, collect_losses=collect_losses)
        self._around = get_stateless_scope()
        self._updated: dict[int, keras.Variable] = {}

    @property
    def updated(self) -> list[keras.Variable]:
        return list(self._updated.values())

    def add_update(self, update: Any) -> None:
        self._updated[id(update[0])] = update[0]
        super().add_update(update)

    def get_current_value(self, variable: keras.Variable) -> Any:
        # Keras asks it for weights with a regularizer, and expects a value.
        value = self.mapped_value(variable)
        return variable._value if value is None else value

    def mapped_value(self, variable: keras.Variable) -> Any:
        """What this scope or one around it holds; `None` where none does."""
        value = super().get_current_value(variable)
        if value is None and self._around is not None:
            mapped = getattr(
                self._around, "mapped_value", self._around.get_current_value
            )
            value = mapped(variable)
        return value


def batches_of(adapter: Any) -> Any:
    """One pass over the batches of an adapter, as the backend's `fit` has them.

    Adapters have a method for each backend, which names what it returns.
    """
    return {
        "tensorflow": adapter.get_tf_dataset,
        "jax": adapter.get_jax_iterator,
        "torch": adapter.get_torch_dataloader,
    }[keras.backend.backend()]()


def sliceables(array: Any) -> Any:
    """An array of any kind that `fit` takes, to take rows of; or `None`."""
    return convert_to_sliceable(array, target_backend=keras.backend.backend())


def take_rows(column: Any, rows: Any) -> Any:
    """Rows of what `sliceables` gave, as the batches of `fit` have them."""
    name = f"convert_to_{keras.backend.backend()}_compatible"
    return getattr(column, name)(column[rows])


def stored_value(variable: keras.Variable) -> Any:
    """The array that a variable holds, whatever a scope says.

    Public `value` asks the scope, and casts.
    """
    return variable._value


def store_value(variable: keras.Variable, value: Any) -> None:
    """Makes a variable hold an array of its own shape and dtype.

    `assign` converts and checks, for each of all variables in every step.
    """
    variable._value = value


def jax_state_variables(model: Any) -> list[list[keras.Variable]]:
    """The variables of the state that Keras's `fit` on JAX hands around.

    In the order of its own `_get_jax_state`.
    """
    return [
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    ]


def read_state(model: Any, size: int) -> Any:
    """The first so many lists of values of the state of a model, on JAX.

    As Keras's `evaluate` (three) and `predict` (two) take it.
    """
    return model._get_jax_state(
        trainable_variables=True,
        non_trainable_variables=True,
        metrics_variables=size > 2,
    )


@contextlib.contextmanager
def synced_in_the_end(model: Any) -> Iterator[None]:
    """Makes variables on JAX hold the newest state if something is raised.

    Keras would do so later, over what they were set to by then.
    """
    try:
        yield
    except BaseException:
        model.jax_state_sync()
        raise


def mark_synced(model: Any) -> None:
    """Tells Keras on JAX that the variables hold the newest state."""
    model._jax_state_synced = True


def devices_of_batches() -> int:
    """Over how many devices `fit` on JAX distributes a batch."""
    distribution = keras.distribution.distribution()
    if distribution is None or distribution.batch_dim_name is None:
        return 1
    mesh = distribution.device_mesh
    place = mesh.axis_names.index(distribution.batch_dim_name)
    return int(mesh.shape[place])


def distribute_batch(batch: Any) -> Any:
    """A batch on the devices, as `fit` on JAX puts it there."""
    from keras.src.backend.jax.trainer import _distribute_data

    def distribute(array: Any) -> Any:
        # A training batch of several processes is there already.
        is_here = getattr(array, "is_fully_addressable", True)
        return _distribute_data(array) if is_here else array

    return keras.tree.map_structure(distribute, batch)


def is_at_hand(tensor: Any) -> bool:
    """Whether a tensor may hold numbers that can be read with no wait for them.

    PyTorch is given tensors that stand for any, and says so nowhere; and those
    on an accelerator may not be there yet.
    """
    return (
        not in_symbolic_scope()
        and getattr(getattr(tensor, "device", None), "type", "cpu") == "cpu"
    )


def torch_device() -> str:
    """Where Keras on PyTorch makes tensors; "meta" where it sees shapes alone.

    A tensor would have to be made to be asked for its device.
    """
    from keras.src.backend.torch.core import get_device

    return str(get_device())


def variable_index(optimizer: Any, variable: Any) -> int:
    """The number of a variable among those that the optimizer was built on.

    An `update_step` gets the backend's own variable, and state in lists.
    """
    return int(optimizer._get_variable_index(variable))
