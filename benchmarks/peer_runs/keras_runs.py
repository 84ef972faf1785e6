"""Plain Keras, Concrete Dropout, and cross-regularization."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_crossreg as kcr
from peer_runs.concrete_dropout import ConcreteDropout
from peer_runs.problem import CLASSES
from peer_runs.problem import SAMPLES
from peer_runs.problem import WIDTHS
from peer_runs.problem import Predict
from peer_runs.problem import Problem
from peer_runs.problem import Run
from peer_runs.problem import Seconds
from peer_runs.problem import main

LOSS = "sparse_categorical_crossentropy"


def optimizer(p: Problem, part: str) -> keras.optimizers.Optimizer:
    steps = p.epochs * p.steps(part)
    return keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(p.rate, steps)
    )


def compile_model(
    model: keras.Model, p: Problem, part: str, **special: Any
) -> None:
    model.compile(optimizer(p, part), LOSS, **special)


def fit(model: keras.Model, p: Problem, part: str, **options: Any) -> None:
    model.fit(
        *p.rows[part],
        batch_size=p.batch_size,
        epochs=p.epochs,
        verbose=0,
        **options,
    )


def plain_network(p: Problem) -> keras.Model:
    inputs = x = keras.Input(p.rows["train"][0].shape[1:])
    for width in WIDTHS:
        x = keras.layers.Dense(width, use_bias=False)(x)
        x = keras.layers.BatchNormalization(center=False, scale=False)(x)
        x = keras.layers.ReLU()(x)
    outputs = keras.layers.Dense(CLASSES, activation="softmax")(x)
    return keras.Model(inputs, outputs)


def dropout_network(p: Problem) -> keras.Model:
    inputs = x = keras.Input(p.rows["train"][0].shape[1:])
    for width in WIDTHS:
        x = keras.layers.Dense(width, use_bias=False)(x)
        x = keras.layers.BatchNormalization(center=False, scale=False)(x)
        x = keras.layers.ReLU()(x)
        x = keras.layers.Dropout(0.25)(x)
    outputs = keras.layers.Dense(CLASSES, activation="softmax")(x)
    return keras.Model(inputs, outputs)


def concrete_network(p: Problem) -> keras.Model:
    rows = len(p.rows["train+reg"][0])
    inputs = x = keras.Input(p.rows["train"][0].shape[1:])
    for i, width in enumerate(WIDTHS):
        layer = keras.layers.Dense(width, use_bias=False)
        x = ConcreteDropout(layer, rows)(x) if i else layer(x)
        x = keras.layers.BatchNormalization(center=False, scale=False)(x)
        x = keras.layers.ReLU()(x)
    layer = keras.layers.Dense(CLASSES, activation="softmax")
    outputs = ConcreteDropout(layer, rows)(x)
    return keras.Model(inputs, outputs)


def noise_network(p: Problem) -> keras.Model:
    inputs = x = keras.Input(p.rows["train"][0].shape[1:])
    for width in WIDTHS:
        x = keras.layers.Dense(width, use_bias=False)(x)
        x = keras.layers.BatchNormalization(center=False, scale=False)(x)
        x = kcr.layers.GaussianNoiseScale()(x)
        x = keras.layers.ReLU()(x)
    outputs = keras.layers.Dense(CLASSES, activation="softmax")(x)
    return kcr.CrossRegModel(inputs, outputs)


def learned_dropout_network(p: Problem) -> keras.Model:
    inputs = x = keras.Input(p.rows["train"][0].shape[1:])
    for width in WIDTHS:
        x = keras.layers.Dense(width, use_bias=False)(x)
        x = keras.layers.BatchNormalization(center=False, scale=False)(x)
        x = keras.layers.ReLU()(x)
        x = kcr.layers.LearnedDropout()(x)
    outputs = keras.layers.Dense(CLASSES, activation="softmax")(x)
    return kcr.CrossRegModel(inputs, outputs)


def averaged(predict: Predict) -> Predict:
    def mean(x: np.ndarray) -> np.ndarray:
        return np.mean([predict(x) for _ in range(SAMPLES)], axis=0)

    return mean


def start(build: Callable[[Problem], keras.Model], p: Problem) -> keras.Model:
    """A network with the seed's kernels, which are the matrices in it."""
    keras.utils.set_random_seed(p.seed)
    model = build(p)
    matrices = [v for v in model.trainable_variables if len(v.shape) == 2]
    for variable, kernel in zip(matrices, p.kernels(), strict=True):
        variable.assign(kernel)
    return model


def predictor(model: keras.Model) -> Predict:
    return lambda x: model.predict(x, batch_size=500, verbose=0)


def fixed(
    build: Callable[[Problem], keras.Model], p: Problem
) -> tuple[Predict, dict[str, Any]]:
    model = start(build, p)
    compile_model(model, p, "train+reg")
    fit(model, p, "train+reg")
    rates = [
        round(float(layer.rate), 4)
        for layer in model.layers
        if isinstance(layer, ConcreteDropout)
    ]
    if not rates:
        return predictor(model), {}
    return averaged(predictor(model)), dict(learned=rates)


def learned(
    build: Callable[[Problem], keras.Model],
    merges: bool,
    special: dict[str, Any],
    p: Problem,
) -> tuple[Predict, dict[str, Any]]:
    model = start(build, p)
    last = p.epochs // 2 if merges else 0
    compile_model(model, p, "train", **special)
    fit(model, p, "train", reg_data=p.rows["reg"], merge_epochs=last)
    values = [round(float(v), 4) for v in model.get_rho().values()]
    return predictor(model), dict(learned=values)


class Clock(keras.callbacks.Callback):
    """How long the epochs took: the start of `fit` is no step."""

    seconds = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.begin = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds += time.perf_counter() - self.begin


def epochs(
    build: Callable[[Problem], keras.Model],
    compiled: dict[str, Any],
    p: Problem,
) -> tuple[Seconds, Seconds]:
    """Epochs of a network, with its rho steps, and of the plain one."""

    def seconds_of(network: Callable[[Problem], keras.Model]) -> Seconds:
        model = start(network, p)
        rows: dict[str, Any] = {}
        special: dict[str, Any] = {}
        if isinstance(model, kcr.CrossRegModel):
            # What the defaults come to in the whole run.
            special = dict(reg_freq=12, reg_warmup=0) | compiled
            rows = dict(reg_data=p.rows["reg"])
        compile_model(model, p, "train", **special)

        def seconds() -> float:
            clock = Clock()
            model.fit(
                *p.rows["train"],
                batch_size=p.batch_size,
                epochs=3,  # 120 steps of 5,000 rows, and 10 of rho.
                callbacks=[clock],
                verbose=0,
                **rows,
            )
            return clock.seconds

        return seconds

    return seconds_of(build), seconds_of(plain_network)


def run_of(
    build: Any, *code: Any, merges: bool | None = None, **special: Any
) -> Run:
    train = functools.partial(fixed, build)
    if merges is not None:
        train = functools.partial(learned, build, merges, special)
    is_timed = build is not plain_network and not merges
    return Run(
        train,
        functools.partial(epochs, build, special) if is_timed else None,
        (optimizer, compile_model, fit, build, *code),
    )


RUNS = {
    "plain": run_of(plain_network),
    "dropout": run_of(dropout_network),
    "concrete_dropout": run_of(concrete_network, ConcreteDropout, averaged),
    "noise": run_of(noise_network, merges=False),
    # As often as the peers.
    "noise, r=1": run_of(noise_network, merges=False, reg_freq=1),
    "noise+merge": run_of(noise_network, merges=True),
    "learned_dropout": run_of(learned_dropout_network, merges=False),
    "learned_dropout+merge": run_of(learned_dropout_network, merges=True),
}

if __name__ == "__main__":
    main(RUNS)
