"""The base class of layers that own a rho."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import keras
from keras import ops
from keras import tree

from keras_crossreg._keras import receive_sampling
from keras_crossreg.parametrization import POSITIVE
from keras_crossreg.parametrization import Parametrization
from keras_crossreg.rho import mark_rho
from keras_crossreg.rho import rho_info


class RhoLayer(keras.layers.Layer):
    """Base class of layers whose regularization strength is learned.

    A subclass creates its rho with `add_rho` in `build`, and reads it with
    `rho_value` in `call`, which takes two flags:

    - `training`: the training batch moves theta. Draw one noise sample.
    - `sampling`: a sampling pass, on the regularization set or in a
      prediction. Draw one noise sample here too; everything else in the model
      is in inference mode.

    A layer that draws noise draws it where either is true; one that draws
    none sets `stochastic = False` on its class. Both flags reach the layer by
    themselves, through any nesting of models; for that `sampling` must have
    the default `None`: Keras writes any other into the graph of a functional
    model, for good. Seeds come from a `kcr.random.SeedGenerator`, which draws
    noise of its own on every replica of a strategy; with Keras's own all of
    them draw the same.

    Example:

    >>> class Jitter(kcr.layers.RhoLayer):
    ...     def __init__(self, **kwargs):
    ...         super().__init__(**kwargs)
    ...         self.seed_generator = kcr.random.SeedGenerator()
    ...     def build(self, input_shape):
    ...         self.rho = self.add_rho("width", start=0.1, meaning="width")
    ...     def call(self, inputs, training=False, sampling=None):
    ...         if not (training or sampling):
    ...             return inputs
    ...         width = self.rho_value(self.rho, sampling)
    ...         u = kcr.random.uniform(
    ...             ops.shape(inputs), self.seed_generator
    ...         )
    ...         return inputs + ops.cast(width * (2 * u - 1), inputs.dtype)
    """

    #: Whether a sampling pass through the layer draws noise.
    stochastic = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        receive_sampling(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for value in tree.flatten((args, kwargs)):
            dtype = str(getattr(value, "dtype", ""))
            if any(kind in dtype for kind in ("string", "<U", "object")):
                raise ValueError(
                    f"`{type(self).__name__}` takes numbers. "
                    f"Received: inputs of dtype {dtype}"
                )
            if "complex" in dtype:
                raise ValueError(
                    f"`{type(self).__name__}` takes real numbers: pass it the "
                    "real and the imaginary part, or the modulus. "
                    f"Received: inputs of dtype {dtype}"
                )
        return super().__call__(*args, **kwargs)

    def add_rho(
        self,
        name: str,
        start: float | Callable[[], Any],
        shape: tuple[int, ...] = (),
        meaning: str = "",
        parametrization: Parametrization = POSITIVE,
    ) -> keras.Variable:
        """Creates a rho, float32 under every dtype policy.

        Args:
            name: String, the last part of its path.
            start: Float, its start value in human units; or, where that is
                not known yet, a callable that returns it as a float32 tensor
                of `shape`. It runs when the variable is initialized, which
                Keras may put off until after `build`.
            shape: Its shape. Defaults to `()`, one number.
            meaning: String, what it means, for `rho_summary()`.
            parametrization: How the stored value reads in human units.
                Defaults to a positive number, by a softplus.

        Returns:
            The variable, which holds rho; `rho_value` gives human units.
        """
        if callable(start):
            known, initializer = None, _initializer(start, parametrization)
        else:
            known = start
            initializer = keras.initializers.Constant(
                float(parametrization.from_human(start))
            )
        return mark_rho(
            self.add_weight(
                name=name,
                shape=shape,
                initializer=initializer,
                dtype="float32",
                autocast=False,
                trainable=False,
            ),
            meaning=meaning,
            parametrization=parametrization,
            start=known,
        )

    def rho_value(self, rho: keras.Variable, sampling: bool | None) -> Any:
        """A rho in human units, float32, for use in `call`.

        Only a sampling pass lets the gradient through: rho never learn from
        the training batch, which would drive every noise to zero, whatever
        model or training loop the layer is in.
        """
        to_human = rho_info(rho).parametrization.to_human
        value = to_human(ops.convert_to_tensor(rho))
        return value if sampling else ops.stop_gradient(value)

    def in_words(self, value: float) -> str:
        """What a learned value means, for `rho_summary()`.

        Args:
            value: Float, the value of rho in human units; the mean where it
                has a shape.

        Returns:
            A few words, or nothing, as by default.
        """
        return ""

    # Keras saves no state of random generators; a model that is loaded must
    # predict, and train on, as the one that was saved would have.

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        generator = getattr(self, "seed_generator", None)
        if generator is not None:
            store["seed"] = ops.convert_to_numpy(generator.state)

    def load_own_variables(self, store: Any) -> None:
        store = {name: store[name] for name in store.keys()}
        seed = store.pop("seed", None)
        super().load_own_variables(store)
        if seed is not None:
            self.seed_generator.state.assign(seed)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


def shape_of_axes(
    axis: int | tuple[int, ...] | None, input_shape: Any
) -> tuple[int, ...]:
    """The shape of a rho with a value for every index of these axes.

    It broadcasts to the inputs; `()` where `axis` is `None`.

    Raises:
        ValueError: If `axis` holds the batch axis, is out of range or has an
            unknown size.
    """
    if axis is None:
        return ()
    axes = axis if isinstance(axis, tuple) else (axis,)
    rank = len(input_shape)
    if not all(isinstance(a, numbers.Integral) for a in axes):
        raise ValueError(
            "`axis` must be an integer, a tuple of integers or `None`. "
            f"Received: axis={axis}"
        )
    wrong = [a for a in axes if not -rank <= a < rank or a % rank == 0]
    if wrong or any(input_shape[a] is None for a in axes):
        raise ValueError(
            "`axis` must name axes of known size that are not the batch "
            f"axis. Received: axis={axis}, input_shape={input_shape}"
        )
    own = {a % rank for a in axes}
    return tuple(input_shape[a] if a in own else 1 for a in range(1, rank))


def _initializer(
    start: Callable[[], Any], parametrization: Parametrization
) -> Callable[..., Any]:
    return lambda shape, dtype: parametrization.from_human(start())
