"""Least squares with a learned regularizer, on whole batches.

What the examples beside scikit-learn and scipy share.
"""

from __future__ import annotations

import warnings

import keras
import numpy as np

import keras_crossreg as kcr

Rows = tuple[np.ndarray, np.ndarray]


def error(data: Rows, weights: np.ndarray) -> float:
    x, y = data
    return float(np.mean((x @ weights - y) ** 2))


def learn(
    layer: keras.layers.Layer,
    train: Rows,
    reg: Rows,
    hypergradient: str,
    steps: int,
    learning_rate: float = 0.02,
) -> kcr.CrossRegModel:
    """The model that is `layer` alone, after `steps` steps of theta and rho.

    Every batch is the whole set, so that there is one answer. `(x, y)` have
    shapes `(n, features)` and `(n, outputs)`.
    """
    inputs = keras.Input(train[0].shape[1:])
    model = kcr.CrossRegModel(inputs, layer(inputs))
    decay = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    model.compile(
        keras.optimizers.Adam(decay),
        "mse",
        rho_optimizer=keras.optimizers.Adam(decay),
        reg_freq=1,
        # Theta arrive first.
        reg_warmup=steps // 10,
        hypergradient=hypergradient,
    )
    with warnings.catch_warnings():
        # Of a few rho steps where rounding, or theta on their way, left no
        # curvature.
        warnings.filterwarnings("ignore", "The curvature of the training loss")
        model.fit(
            *(np.concatenate(steps * [part]) for part in train),
            batch_size=len(train[0]),
            shuffle=False,
            reg_data=reg,
            reg_batch_size=len(reg[0]),
            verbose=0,
        )
    return model
