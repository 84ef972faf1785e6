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
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from defaults import dense
from defaults import normalized
from gpu_cases import noise_of
from gpu_networks import convolution

import keras_crossreg as kcr

BATCH_SIZE = 128
STEPS = 24
CLASSES = 10


def convolutions(filters: list[int]) -> Any:
    def body(x: Any, noise: Any) -> Any:
        for count in filters:
            x = normalized(convolution(count)(x), noise)
            x = keras.layers.MaxPooling2D(padding="same")(x)
        return keras.layers.GlobalAveragePooling2D()(x)

    return body


def network(name: str, width: int) -> tuple[tuple[int, ...], Any]:
    """The shape of an example, and three layers with noise behind each."""
    if name == "dense":
        return (width,), dense([width] * 3)
    thin = width // 16
    return (thin, thin, 3), convolutions([thin, 2 * thin, 4 * thin])


# Of the two sets, or of the regularization set alone.
LEARNING: dict[str, dict[str, Any]] = {
    "learning, r = 24": dict(reg_freq=24),
    "learning, r = 12": dict(reg_freq=12),
    "learning, direct, r = 12": dict(reg_freq=12, hypergradient="direct"),
}
# A kind of `gpu_cases`, and what else goes into `compile`.
KINDS = {
    "no noise": ("none", None),
    "GaussianNoise": ("keras", None),
    "frozen": ("frozen", None),
    **{name: ("learning", given) for name, given in LEARNING.items()},
}


def models(name: str, width: int) -> dict[str, Any]:
    """What is compared, compiled, by kind."""
    shape, body = network(name, width)
    found = {}
    for kind, (noise, given) in KINDS.items():
        inputs = keras.Input(shape)
        outputs = keras.layers.Dense(CLASSES, activation="softmax")(
            body(inputs, noise_of(noise))
        )
        learns = given is not None
        cls = kcr.CrossRegModel if learns else keras.Model
        found[kind] = cls(inputs, outputs)
        found[kind].compile(
            optimizer="adam",
            loss="sparse_categorical_crossentropy",
            **({**given, "reg_warmup": 0} if learns else {}),
        )
    return found


class Clock(keras.callbacks.Callback):  # type: ignore[misc, unused-ignore]
    """When the first epoch was over."""

    start = 0.0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 0:
            self.start = time.perf_counter()


def measure(name: str, width: int, rounds: int, epochs: int) -> Any:
    """Of each kind: seconds of the first fit, and of steps; of predictions."""
    rng = np.random.default_rng(0)
    shape, _ = network(name, width)

    def data(rows: int) -> tuple[Any, Any]:
        x = rng.standard_normal((rows, *shape), "float32")
        return x, rng.integers(0, CLASSES, rows)

    (x, y), reg_data = data(STEPS * BATCH_SIZE), data(512)
    kinds = models(name, width)

    def fit(kind: str, epochs: int) -> float:
        """Seconds of all epochs but the first."""
        clock = Clock()
        kinds[kind].fit(
            x,
            y,
            batch_size=BATCH_SIZE,
            epochs=epochs,
            verbose=0,
            callbacks=[clock],
            **({"reg_data": reg_data} if kind in LEARNING else {}),
        )
        return time.perf_counter() - clock.start

    def seconds(function: Callable[[], Any]) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    def predict(kind: str) -> float:
        model = kinds[kind]
        return seconds(
            lambda: model.predict(x, batch_size=BATCH_SIZE, verbose=0)
        )

    first = {kind: seconds(functools.partial(fit, kind, 1)) for kind in kinds}
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind in kinds:
            found[kind].append(fit(kind, 1 + epochs))
    many, plain = "learning, r = 24", "no noise"
    # The first of each compiles.
    predictions = [
        predict(many) / predict(plain) / 16 for _ in range(1 + rounds)
    ]
    return first, found, predictions[1:]


def spread(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ["dense", "cnn"]
    parser.add_argument("--networks", nargs="+", choices=names, default=names)
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
    for name in arguments.networks:
        first, found, predictions = measure(
            name, arguments.width, arguments.rounds, arguments.epochs
        )
        for kind, times in found.items():
            ratios = [
                a / b
                for a, b in zip(times, found["GaussianNoise"], strict=True)
            ]
            start = first[kind] / first["GaussianNoise"]
            print(f"| {name} | {kind} | {spread(ratios)} | {start:.2f} |")
        print(f"| {name} | `predict`, K = 16 | {spread(predictions)} | |")


if __name__ == "__main__":
    main()
