"""How long rho wait for the network that they learn on."""

from __future__ import annotations

from collections.abc import Iterable

import keras

# The start of a moving average has a part of exp(-2), 14 %, in it then.
TIME_CONSTANTS = 2
# A short training is spent learning rho all the same.
MOST = 0.25


def default_reg_warmup(
    layers: Iterable[keras.layers.Layer], steps: int | None = None
) -> int:
    """Training steps until batch normalization predicts as it trains.

    The regularization pass normalizes as predictions do, by moving averages,
    which start at 0 and 1 and forget that by `momentum` a step. Before, the
    regularization loss is that of a network that no one trained, and rho that
    follow it may not come back: noise, and more so the width of an
    augmentation, falls to where its gradient is nearly 0.

    Args:
        layers: Of the model, at every depth.
        steps: Of the whole training, where that is known.

    Returns:
        `2 / (1 - momentum)`, of the slowest layer that follows theta: 200 of
        Keras's default, 0 without such a layer. At most a quarter of `steps`.
    """
    momenta = [
        float(layer.momentum)
        for layer in layers
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable
        and layer.momentum < 1
    ]
    if not momenta:
        return 0
    warmup = TIME_CONSTANTS / (1 - max(momenta))
    return round(warmup if steps is None else min(warmup, MOST * steps))
