"""Learned noise that adapts as the training set grows: 1,000 to 40,000 images.

One network, one call of `fit` for each size, the same 1,000 regularization
images and the same number of training steps throughout. What is needed against
memorizing 1,000 images is in the way with 40,000: the noise should fall. Beside
it, as a control, a fresh network for each size.

The images are those of CIFAR-10 as `tensorflow_datasets` has them installed.
The copy that our results are of is one of JPEG images: its scores compare with
each other, not with published ones.

    python examples/growing_data.py
    python examples/growing_data.py --sizes 100 200 400 --steps 20

Prints a table and writes `growing_data.png` into the current folder, anew after
each size.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from typing import Any

# Before TensorFlow, which is talkative.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")

import keras
import matplotlib.pyplot as plt
import numpy as np
import rich.console
import rich.table
import tensorflow_datasets as tfds

import keras_crossreg as kcr

FILTERS = 16, 32, 64
UNITS = 64
REG = 1000
BATCH_SIZE = 64
# What they are by default where the training data are arrays; of a generator
# the batch size is not known.
REG_FREQ = 12
REG_BATCH_SIZE = BATCH_SIZE // 8
# Test images of the table, and of the curves.
TEST, CURVE = 4000, 500
SEED = 0


def load(split: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = tfds.as_numpy(
        tfds.load("cifar10", split=split, batch_size=-1, as_supervised=True)
    )
    return x, y.astype("int32")


def standardized(x: np.ndarray) -> np.ndarray:
    """From about -2 to 2."""
    return (x.astype("float32") / 255.0 - 0.47) / 0.25


def batches(x: np.ndarray, y: np.ndarray) -> Iterator[Any]:
    """Without end, in a new order each time."""
    rng = np.random.default_rng(SEED)
    rest = np.empty(0, int)
    while True:
        while len(rest) < BATCH_SIZE:
            rest = np.concatenate([rest, rng.permutation(len(x))])
        batch, rest = rest[:BATCH_SIZE], rest[BATCH_SIZE:]
        yield standardized(x[batch]), y[batch]


def build() -> kcr.CrossRegModel:
    """A small VGG whose noise is learned, layer by layer."""

    def noisy(x: Any) -> Any:
        nonlocal place
        x = keras.layers.BatchNormalization(center=False, scale=False)(x)
        x = kcr.layers.GaussianNoiseScale(name=f"noise_{place}")(x)
        place += 1
        return keras.layers.ReLU()(x)

    place = 1
    x = inputs = keras.Input((32, 32, 3))
    for filters in FILTERS:
        conv = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)
        x = noisy(conv(x))
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Flatten()(x)
    x = noisy(keras.layers.Dense(UNITS, use_bias=False)(x))
    outputs = keras.layers.Dense(10, activation="softmax")(x)
    model = kcr.CrossRegModel(inputs, outputs)
    model.compile(
        keras.optimizers.Adam(1e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        reg_freq=REG_FREQ,
        # What the tables of docs/recipes.md were made with.
        hypergradient="direct",
    )
    return model


class Run:
    """A network, and what was seen of it as its training set grew."""

    def __init__(self, data: Any, steps: int, points: int) -> None:
        self.train, self.reg, self.test = data
        self.steps, self.points = steps, points
        keras.utils.set_random_seed(SEED)
        self.model = build()
        self.at = [0]
        self.sigma = [self._sigma()]
        self.losses: dict[str, list[float]] = {}
        self.rows: list[dict[str, Any]] = []

    def _sigma(self) -> np.ndarray:
        return np.array(list(self.model.get_rho().values()))

    def fit(self, size: int) -> None:
        """Goes on with the first `size` training images."""
        begin = time.process_time()
        record = kcr.callbacks.RhoHistory()
        x, y = self.train
        history = self.model.fit(
            batches(x[:size], y[:size]),
            steps_per_epoch=self.steps // self.points,
            epochs=self.points,
            reg_data=self.reg,
            reg_batch_size=REG_BATCH_SIZE,
            validation_data=tuple(part[:CURVE] for part in self.test),
            validation_batch_size=500,
            callbacks=[record],
            shuffle=False,
            verbose=0,
        ).history
        self.sigma += list(np.stack(list(record.history.values()), axis=1))
        each = self.steps // self.points
        self.at += [self.at[-1] + each * (i + 1) for i in range(self.points)]
        for name in ("loss", "reg_loss", "val_loss"):
            self.losses.setdefault(name, []).extend(history[name])
        seconds = time.process_time() - begin
        p = self.model.predict(self.test[0], batch_size=500, verbose=0)
        y = self.test[1]
        self.rows.append(
            dict(
                size=size,
                sigma=self.sigma[-1],
                train=history["loss"][-1],
                accuracy=float(keras.metrics.SparseCategoricalAccuracy()(y, p)),
                nll=float(kcr.metrics.NegativeLogLikelihood()(y, p)),
                ece=float(kcr.metrics.ExpectedCalibrationError()(y, p)),
                seconds=seconds,
            )
        )


def table(runs: dict[str, list[dict[str, Any]]]) -> rich.table.Table:
    result = rich.table.Table(box=rich.box.MARKDOWN)
    result.add_column("Run", no_wrap=True)
    for name in ("Images", "Accuracy", "NLL", "ECE", "Training loss"):
        result.add_column(name, justify="right", no_wrap=True)
    result.add_column("Sigma: mean", justify="right", no_wrap=True)
    result.add_column("By layer", no_wrap=True)
    for name, rows in runs.items():
        for row in rows:
            result.add_row(
                name,
                f"{row['size']:,}",
                f"{100 * row['accuracy']:.1f} %",
                f"{row['nll']:.3f}",
                f"{row['ece']:.3f}",
                f"{row['train']:.2f}",
                f"{row['sigma'].mean():.2f}",
                " ".join(f"{sigma:.2f}" for sigma in row["sigma"]),
            )
    return result


def draw(run: Run, fresh: list[Run], sizes: list[int]) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    at, sigma = np.array(run.at), np.array(run.sigma)
    ends = run.steps * np.arange(len(sizes) + 1)
    for ax in axes:
        for end in ends[1:-1]:
            ax.axvline(end, color="0.7", linewidth=1)
        for begin, size in zip(ends, sizes, strict=False):
            ax.text(
                begin + run.steps / 2,
                1.01,
                f"{size:,} images",
                ha="center",
                va="bottom",
                fontsize=8,
                color="0.35",
                transform=ax.get_xaxis_transform(),
            )
        ax.set_xlabel("training steps")
        ax.set_xlim(0, ends[-1])
        ax.spines[["top", "right"]].set_visible(False)
    colors = plt.colormaps["viridis"](np.linspace(0, 0.9, sigma.shape[1]))
    for i, color in enumerate(colors):
        axes[0].plot(at, sigma[:, i], color=color, label=f"{i + 1}")
    axes[0].legend(
        title="layer", fontsize=7, title_fontsize=8, frameon=False, ncols=2
    )
    axes[0].set_ylabel("sigma")
    axes[1].plot(at, sigma.mean(axis=1), color="C0", label="as the data grow")
    for i, other in enumerate(fresh):
        axes[1].plot(
            ends[i + 1] + np.array(other.at),
            np.mean(other.sigma, axis=1),
            color="C1",
            linestyle="--",
            label=None if i else "a fresh network",
        )
    axes[1].set_ylabel("sigma, mean of the layers")
    labels = {"loss": "training", "reg_loss": "regularization"}
    for name, values in run.losses.items():
        axes[2].plot(at[1:], values, label=labels.get(name, "test"))
    axes[2].set_ylabel("loss, nats")
    for ax in axes[1:]:
        ax.legend(fontsize=8, frameon=False)
    for ax in axes:
        ax.set_ylim(bottom=0)
    figure.savefig("growing_data.png", dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1000, 10000, 40000]
    )
    parser.add_argument(
        "--steps", type=int, default=1000, help="with each size"
    )
    parser.add_argument("--points", type=int, default=10, help="of the curves")
    options = parser.parse_args(arguments)
    x, y = load("train")
    order = np.random.default_rng(SEED).permutation(len(x))
    x, y = x[order], y[order]
    reg = standardized(x[-REG:]), y[-REG:]
    x_test, y_test = load("test")
    data = (
        (x[:-REG], y[:-REG]),
        reg,
        (standardized(x_test[:TEST]), y_test[:TEST]),
    )
    points = min(options.points, options.steps)

    growing = Run(data, options.steps, points)
    fresh: list[Run] = []

    def report() -> None:
        """All there is so far: what is interrupted leaves something."""
        controls = [run.rows[0] for run in fresh]
        console = rich.console.Console(width=110)
        console.print(table({"growing": growing.rows, "fresh": controls}))
        draw(growing, fresh, options.sizes)

    for size in options.sizes:
        print(f"{size:,} training images", flush=True)
        growing.fit(size)
        report()
    # The first size is a fresh network anyway.
    for size in options.sizes[1:]:
        print(f"{size:,} training images, a fresh network", flush=True)
        run = Run(data, options.steps, points)
        run.fit(size)
        fresh.append(run)
        report()
    print("Wrote growing_data.png")


if __name__ == "__main__":
    main()
