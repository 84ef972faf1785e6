"""The dropout of recurrent layers, learned."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_crossreg._keras import receive_sampling
from keras_crossreg.layers.learned_dropout import LearnedDropout
from keras_crossreg.rewriting.layer_parts import PartsLayer
from keras_crossreg.rewriting.layer_parts import put
from keras_crossreg.rewriting.learned_forms import Learned
from keras_crossreg.rewriting.learned_forms import Left

RECURRENT = (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN)
CELLS = (
    keras.layers.LSTMCell,
    keras.layers.GRUCell,
    keras.layers.SimpleRNNCell,
)
CONVOLUTIONAL = (
    keras.layers.ConvLSTM1D,
    keras.layers.ConvLSTM2D,
    keras.layers.ConvLSTM3D,
)


def has_rate(layer: Any, name: str) -> bool:
    rate = getattr(layer, name, 0)
    return isinstance(rate, (int, float)) and 0 < rate < 1


def dropout_parts(layer: Any) -> list[tuple[str, Learned | Left]]:
    """What takes the place of the dropout that a layer draws by itself.

    Returns:
        Pairs of the attribute that it is put in, and its form.
    """
    rates = [n for n in ("dropout", "recurrent_dropout") if has_rate(layer, n)]
    if not rates or isinstance(layer, PartsLayer):
        return []
    if type(layer) in RECURRENT:
        return _of_recurrent_layer(layer, rates)
    if type(layer) in CELLS:
        return [
            (f"learned_{name}", _learned(layer, layer, name, name))
            for name in rates
        ]
    own = isinstance(layer, (*RECURRENT, *CELLS))
    reason = None
    if own:
        reason = "its class is not Keras's own, and may do something else"
    elif isinstance(layer, CONVOLUTIONAL):
        reason = "there is no learned form of a convolutional recurrent layer"
    elif isinstance(layer, keras.layers.Attention):
        reason = "it draws its dropout itself, where no layer can be put"
    return [(name, Left(reason)) for name in rates if reason]


def _of_recurrent_layer(
    layer: Any, rates: list[str]
) -> list[tuple[str, Learned | Left]]:
    if "recurrent_dropout" in rates:
        # The cell makes both masks.
        return []
    if getattr(layer.cell, "implementation", 2) == 1:
        reason = "each gate has a mask of its own: use `implementation=2`"
        return [("dropout", Left(reason))]
    # One mask for all steps and gates is dropout before the layer.
    form = _learned(
        layer, layer.cell, "dropout", "input_dropout", (None, 1, None)
    )
    return [("input_dropout", form)]


def _learned(
    layer: Any, cell: Any, rate: str, name: str, noise_shape: Any = None
) -> Learned:
    dropout = LearnedDropout(
        getattr(cell, rate),
        noise_shape=noise_shape,
        seed=cell.seed,
        name=name,
        dtype=layer.dtype_policy,
    )
    return Learned(dropout, f"rate {getattr(cell, rate):.4g}")


def makes_own_masks(layer: Any) -> bool:
    """Whether the cell of a layer may make masks that learn."""
    if type(layer) in RECURRENT:
        return has_rate(layer, "recurrent_dropout")
    return not isinstance(layer, RECURRENT)


class _AddsParts(PartsLayer):
    """Parts that the layer had no attribute for."""

    added: tuple[str, ...] = ()

    def put_parts(self) -> None:
        for path, part in self.parts_to_put():
            if path[0] not in self.added:
                put(self, path, part)
            elif not hasattr(self, path[0]):
                setattr(self, path[0], part)


@keras.saving.register_keras_serializable(package="keras_crossreg")
class RecurrentWithParts(_AddsParts):
    """`LSTM`, `GRU` or `SimpleRNN` behind a dropout that learns.

    The layer itself drops nothing, and stays as fast as without dropout.
    """

    added = ("input_dropout",)

    cell: Any

    def put_parts(self) -> None:
        super().put_parts()
        if hasattr(self, "input_dropout"):
            self.cell.dropout = 0.0

    def call(
        self,
        sequences: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: bool = False,
    ) -> Any:
        if hasattr(self, "input_dropout"):
            sequences = self.input_dropout(sequences)
        call: Any = super().call  # type: ignore[misc]
        return call(
            sequences,
            initial_state=initial_state,
            mask=mask,
            training=training,
        )


class _Masks:
    """The masks of a run through a sequence; Keras would track a dict."""

    def __init__(self) -> None:
        self.by_name: dict[str, Any] = {}


@keras.saving.register_keras_serializable(package="keras_crossreg")
class CellWithParts(_AddsParts):
    """A recurrent cell whose masks come from layers that learn."""

    added = ("learned_dropout", "learned_recurrent_dropout")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.masks = _Masks()
        receive_sampling(self)

    def call(
        self,
        inputs: Any,
        states: Any,
        training: bool = False,
        sampling: bool | None = None,
    ) -> Any:
        call: Any = super().call  # type: ignore[misc]
        # In a cell, training is dropout and nothing else.
        return call(inputs, states, training=bool(training or sampling))

    def get_dropout_mask(self, step_input: Any) -> Any:
        return self._mask("learned_dropout", step_input)

    def get_recurrent_dropout_mask(self, step_input: Any) -> Any:
        return self._mask("learned_recurrent_dropout", step_input)

    def reset_dropout_mask(self) -> None:
        self.masks.by_name.pop("learned_dropout", None)

    def reset_recurrent_dropout_mask(self) -> None:
        self.masks.by_name.pop("learned_recurrent_dropout", None)

    def _mask(self, name: str, inputs: Any) -> Any:
        """The mask, as many as there are gates where each has its own."""
        dropout = getattr(self, name, None)
        if dropout is None:
            return None
        if name not in self.masks.by_name:
            count = getattr(self, "dropout_mask_count", None)
            ones = ops.ones_like(inputs)
            masks = [dropout(ones) for _ in range(count or 1)]
            self.masks.by_name[name] = masks[0] if count is None else masks
        return self.masks.by_name[name]


def kind_of(layer: Any, default: type) -> type:
    """What the class of a copy with parts has to add; see `with_parts`."""
    if type(layer) in RECURRENT or isinstance(layer, RecurrentWithParts):
        return RecurrentWithParts
    if type(layer) in CELLS or isinstance(layer, CellWithParts):
        return CellWithParts
    return default
