"""What learning costs beside `keras.layers.GaussianNoise`, on any backend.

    KERAS_BACKEND=torch OMP_NUM_THREADS=1 python benchmarks/step_ratio.py

Ratios of one run, in which all kinds take turns: medians, lowest and highest
of the rounds. A step is of a `fit` without its first epoch; what happens there,
the checks and the compilation, is a column of its own: the seconds of the first
`fit` there is, of one epoch. r is 24, as in a run of 4,800 steps and more, and
12, as in one of half the length or less. `predict` is of 16 samples, over 16
times the plain network. `--smoke` is tiny, and the numbers say nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import keras_crossreg as kcr

BATCH_SIZE = 128
CLASSES = 10
Layer = Callable[[Any], Any]


def dense(noise: Callable[[], Layer], width: int) -> tuple[Any, Any]:
    """Three layers, with noise behind each normalization."""
    inputs = x = keras.Input((width,))
    for _ in range(3):
        x = keras.layers.Dense(width, use_bias=False)(x)
        x = keras.layers.BatchNormalization(center=False, scale=False)(x)
        x = keras.layers.ReLU()(noise()(x))
    return inputs, keras.layers.Dense(CLASSES, activation="softmax")(x)


def cnn(noise: Callable[[], Layer], width: int) -> tuple[Any, Any]:
    """Three convolutions, with noise behind each normalization."""
    inputs = x = keras.Input((width // 16, width // 16, 3))
    for filters in (width // 16, width // 8, width // 4):
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(center=False, scale=False)(x)
        x = keras.layers.ReLU()(noise()(x))
        x = keras.layers.MaxPooling2D(padding="same")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return inputs, keras.layers.Dense(CLASSES, activation="softmax")(x)


def of_keras() -> Layer:
    return keras.layers.GaussianNoise(0.3)


def nothing() -> Layer:
    return lambda x: x


NETWORKS = {"dense": dense, "cnn": cnn}
LEARNING: dict[str, dict[str, Any]] = {
    "learning, r = 24": dict(reg_freq=24),
    "learning, r = 12": dict(reg_freq=12),
    "learning, direct, r = 12": dict(reg_freq=12, hypergradient="direct"),
}


def models(network: str, width: int) -> dict[str, Any]:
    """What is compared, compiled, by name."""
    build = NETWORKS[network]
    found = {
        "no noise": keras.Model(*build(nothing, width)),
        "GaussianNoise": keras.Model(*build(of_keras, width)),
        "frozen": keras.Model(*build(kcr.layers.GaussianNoiseScale, width)),
    }
    for name in LEARNING:
        found[name] = kcr.CrossRegModel(
            *build(kcr.layers.GaussianNoiseScale, width)
        )
    for name, model in found.items():
        arguments = LEARNING.get(name)
        if arguments is not None:
            arguments = {**arguments, "reg_warmup": 0}
        model.compile(
            optimizer="adam",
            loss="sparse_categorical_crossentropy",
            **(arguments or {}),
        )
    return found


class Clock(keras.callbacks.Callback):  # type: ignore[misc, unused-ignore]
    """Milliseconds of a training step, without the first epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.steps = 0.0, 0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 0:
            self.start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1

    def ms(self, steps_of_an_epoch: int) -> float:
        passed = time.perf_counter() - self.start
        return 1e3 * passed / (self.steps - steps_of_an_epoch)


def measure(network: str, width: int, rounds: int, epochs: int) -> Any:
    """Of each kind: seconds of the first fit, and milliseconds a step."""
    rng = np.random.default_rng(0)
    steps = 24
    rows = steps * BATCH_SIZE
    shape = NETWORKS[network](nothing, width)[0].shape[1:]
    x = rng.normal(size=(rows, *shape)).astype("float32")
    y = rng.integers(0, CLASSES, rows)
    reg = rng.normal(size=(512, *shape)).astype("float32")
    reg_data = reg, rng.integers(0, CLASSES, 512)
    kinds = models(network, width)
    first: dict[str, float] = {}
    found: dict[str, list[float]] = {name: [] for name in kinds}
    predict: list[float] = []

    def fit(name: str, epochs: int) -> Clock:
        clock = Clock()
        kinds[name].fit(
            x,
            y,
            batch_size=BATCH_SIZE,
            epochs=epochs,
            verbose=0,
            callbacks=[clock],
            **({"reg_data": reg_data} if name in LEARNING else {}),
        )
        return clock

    for name in kinds:
        start = time.perf_counter()
        fit(name, 1)
        first[name] = time.perf_counter() - start
    for _ in range(rounds):
        for name in kinds:
            found[name].append(fit(name, 1 + epochs).ms(steps))
    for _ in range(1 + rounds):
        passed = []
        for name in ("no noise", "learning, r = 24"):
            start = time.perf_counter()
            kinds[name].predict(x, batch_size=BATCH_SIZE, verbose=0)
            passed.append(time.perf_counter() - start)
        predict.append(passed[1] / passed[0] / 16)
    return first, found, predict[1:]


def spread(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.width = 32
        arguments.rounds = arguments.epochs = 1
    print(f"Keras {keras.__version__} on {keras.backend.backend()}\n")
    print("| network | kind | a step / `GaussianNoise` | first fit, the same |")
    print("| --- | --- | --- | --- |")
    for network in arguments.networks:
        first, found, predict = measure(
            network, arguments.width, arguments.rounds, arguments.epochs
        )
        for name, ms in found.items():
            ratios = [
                a / b for a, b in zip(ms, found["GaussianNoise"], strict=True)
            ]
            start = first[name] / first["GaussianNoise"]
            print(f"| {network} | {name} | {spread(ratios)} | {start:.2f} |")
        print(f"| {network} | `predict`, K = 16 | {spread(predict)} | |")


if __name__ == "__main__":
    main()
