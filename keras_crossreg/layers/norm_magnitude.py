"""A wrapped layer's kernel, whose norm is learned."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_crossreg._keras import is_in_a_graph
from keras_crossreg.dtypes import at_least_float32
from keras_crossreg.layers.rho_layer import RhoLayer
from keras_crossreg.rho import human_value

# This norm at the least keeps the gradient finite at zero.
_SMALLEST_NORM = 1e-12


@keras.saving.register_keras_serializable(package="keras_crossreg")
class NormMagnitude(RhoLayer, keras.layers.Wrapper):
    """Learns the norm of a wrapped layer's kernel on `reg_data`.

    `kernel = magnitude * v / ||v||`. The wrapped layer's own variable holds
    the direction v, which is theta; the magnitude is rho. The magnitude starts
    at the norm of the kernel that the layer drew (or has, if it was built
    before), so that nothing changes at first. From then on v is of unit norm:
    a constraint rescales it after every step of any optimizer, so that its
    steps do not shrink as it grows, and weight decay cannot act on it.

    A step of v turns the kernel: relative to that of the unwrapped layer it
    is `magnitude` times as long with Adam, `magnitude ** 2` times with SGD.
    With `axis=-1` norms start near 1 and learning rates carry over. One norm
    of a wide layer starts at 10 and more: divide them accordingly.

    A `kernel_regularizer` of the wrapped layer sees v: an L2 penalty is
    constant there, an L1 penalty still favors sparse directions.

    Args:
        layer: A `keras.layers.Layer` with a `kernel` (`Dense`, `EinsumDense`,
            the convolutions but for the separable ones) or `embeddings`.
        axis: Integer, tuple of integers or `None`. The axes of the kernel
            that have a magnitude of their own for every index, the norm being
            over all others: `-1` for one per output unit (`-2` in transposed
            convolutions, `(-2, -1)` in depthwise ones; `0` in `Embedding` for
            one per token). `None` for one magnitude. Defaults to `None`.
        **kwargs: Base layer keyword arguments, such as `name`. The dtype is
            that of the wrapped layer.

    Call arguments:
        inputs: As the wrapped layer takes them.
        training: Boolean, for the wrapped layer.
        sampling: Boolean, set by `CrossRegModel`. If `True`, lets the gradient
            of the magnitude through.

    Output shape:
        That of the wrapped layer.

    Raises:
        ValueError: If the wrapped layer has no single kernel or sets it when
            it is called, if its kernel has a constraint or starts at zero, if
            it is a part of another model, or if `axis` is out of range or
            names every axis.

    Example:

    >>> x = kcr.layers.NormMagnitude(keras.layers.Dense(64), axis=-1)(x)

    Reference:

    - [Brito, 2025](https://arxiv.org/abs/2506.19755), L2 regularization:
      `w = rho * theta`, `||theta|| = 1`.
    - [Salimans and Kingma, 2016](https://arxiv.org/abs/1602.07868), weight
      normalization.
    """

    stochastic = False

    def __init__(
        self,
        layer: keras.layers.Layer,
        axis: int | tuple[int, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer=layer, **kwargs)
        self.axis = tuple(axis) if isinstance(axis, (list, tuple)) else axis
        self.supports_masking = layer.supports_masking
        # The wrapped layer casts its inputs itself (token ids, for one, must
        # not be), and v is normalized before it is cast.
        self.autocast = False

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.input_spec = self.layer.input_spec
        self._check_layer()
        v = self._direction
        self._unit_norm = unit = _UnitNorm(self._norm_axes(len(v.shape)))
        self._check_kernel(v)
        v.constraint = unit
        shape = [1 if a in unit.axes else n for a, n in enumerate(v.shape)]
        shape = [] if self.axis is None else shape

        def start() -> Any:
            # In `build` itself the kernel may not be drawn yet.
            norm = unit.norm(v)
            v.assign(unit(v))
            return ops.reshape(ops.cast(norm, "float32"), shape)

        self.rho = self.add_rho(
            "magnitude", start=start, shape=tuple(shape), meaning="kernel norm"
        )
        # Both would put another kernel in the place of v.
        self.layer.quantize = self._refuse_to_quantize
        self.layer.enable_lora = self._refuse_lora

    def _check_layer(self) -> None:
        layer = self.layer
        if isinstance(layer, keras.layers.SpectralNormalization):
            raise ValueError(
                "`SpectralNormalization` sets the norm of its kernel itself, "
                "so that a learned one would act at inference alone: leave one "
                f"of the two out. Received: layer={layer.name} of type "
                f"{type(layer).__name__}"
            )
        if layer.built and is_in_a_graph(layer):
            raise ValueError(
                "The layer is a part of another model already, and "
                "`NormMagnitude` would change what that one predicts: from "
                "now on its kernel is a direction, of unit norm. Wrap a copy, "
                "`type(layer).from_config(layer.get_config())`, and set its "
                f"weights when it is built. Received: layer={layer.name}"
            )

    def _refuse_to_quantize(self, *args: Any, **kwargs: Any) -> None:
        # Keras warns of it, and goes on with other layers.
        raise NotImplementedError(
            f"The layer '{self.layer.name}' is not quantized: its kernel is "
            "made anew in every call, from a direction and the magnitude that "
            f"`NormMagnitude` learns. Received: layer={self.name}"
        )

    def _refuse_lora(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "LoRA adds to a kernel, and `NormMagnitude` makes one anew in "
            "every call: enable it in a model without `NormMagnitude`. "
            f"Received: layer={self.name}"
        )

    @property
    def _direction(self) -> Any:
        """The wrapped layer's own variable."""
        for name in ("kernel", "embeddings"):
            variable = getattr(self.layer, name, None)
            if isinstance(variable, keras.Variable):
                return variable
        raise ValueError(
            "`NormMagnitude` expects a layer with a variable `kernel` or "
            f"`embeddings`. Received: layer={self.layer.name} of type "
            f"{type(self.layer).__name__}"
        )

    def _check_kernel(self, v: keras.Variable) -> None:
        # Two wrappers may share a direction.
        if v.constraint not in (None, self._unit_norm):
            raise ValueError(
                "`NormMagnitude` constrains the kernel of its layer to unit "
                "norm, and expects it to have no other constraint. Received: "
                f"layer={self.layer.name} with constraint={v.constraint}"
            )
        for name in ("kernel", "embeddings", "depthwise"):
            initializer = getattr(self.layer, f"{name}_initializer", None)
            if isinstance(initializer, keras.initializers.Zeros):
                raise ValueError(
                    "A kernel of zeros has no direction. Received: "
                    f"layer={self.layer.name} with {name}_initializer="
                    f"{initializer}"
                )

    def _norm_axes(self, rank: int) -> tuple[int, ...]:
        if self.axis is None:
            return tuple(range(rank))
        own = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        # Axes go by positive and by negative names.
        named = [range(rank)[a] for a in own if a in range(-rank, rank)]
        axes = set(range(rank)) - set(named)
        if not axes or len(named) < len(own):
            raise ValueError(
                f"`axis` must name axes of a kernel of rank {rank}, and not "
                f"all of them. Received: axis={self.axis}"
            )
        return tuple(sorted(axes))

    @property
    def magnitude(self) -> Any:
        """The norm as learned: a float, or an array that broadcasts to v."""
        return human_value(self.rho)

    def call(
        self,
        inputs: Any,
        training: bool = False,
        sampling: bool | None = None,
    ) -> Any:
        v = self._direction
        kernel = ops.multiply(
            self.rho_value(self.rho, sampling), self._unit_norm(v)
        )
        # The scope takes all variables, as it hides the values of a scope
        # around it.
        variables = self.layer.variables
        scope = keras.StatelessScope(
            [(w, kernel if w is v else w.value) for w in variables],
            collect_losses=True,
        )
        before = [scope.get_current_value(w) for w in variables]
        with scope:
            outputs = self.layer(inputs, training=training)
        for variable, value in zip(variables, before, strict=True):
            written = scope.get_current_value(variable)
            if written is value:
                continue
            if variable is v:
                raise ValueError(
                    "The wrapped layer sets its kernel itself when it is "
                    "called, so that a learned norm would have no effect. "
                    f"Received: layer={self.layer.name} of type "
                    f"{type(self.layer).__name__}"
                )
            variable.assign(written)
        for loss in scope.losses:
            self.layer.add_loss(loss)
        return outputs

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def compute_output_spec(self, inputs: Any, **kwargs: Any) -> Any:
        return self.layer.compute_output_spec(inputs)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        config["axis"] = self.axis
        return config


class _UnitNorm(keras.constraints.Constraint):
    """`v / ||v||` over these axes, in float32 or wider."""

    def __init__(self, axes: tuple[int, ...]) -> None:
        self.axes = axes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _UnitNorm) and other.axes == self.axes

    def norm(self, v: Any) -> Any:
        v = ops.cast(v, at_least_float32(v.dtype))
        squared = ops.sum(ops.square(v), axis=self.axes, keepdims=True)
        return ops.sqrt(ops.maximum(squared, _SMALLEST_NORM**2))

    def __call__(self, v: Any) -> Any:
        norm = self.norm(v)
        return ops.cast(v, norm.dtype) / norm
