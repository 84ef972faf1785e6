"""What the scripts of this folder share: scales, data, network, runs, tables.

A script names its runs, functions of an `Experiment` that return a model's
predictions or numbers, and calls `main`. Every finished run is one line of
JSON in the results: what is there already is not run again, so that whatever
was interrupted goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import time
from collections.abc import Callable
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

# Every network is a new one: its functions are traced anew, as they should be.
logging.getLogger("tensorflow").setLevel("ERROR")

CLASSES = 10
CAVEAT = (
    "The network, the sizes and the schedule are ours, and so are K, r and all "
    "learning rates: the paper does not give them. Where CIFAR-10 was "
    "installed from a JPEG copy, as it was for the results kept here, scores "
    "are lower than on the original images. Compare the rows with each other, "
    "not with published numbers."
)


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much data, how large a network, how long."""

    train: int
    reg: int
    test: int
    blocks: tuple[tuple[int, ...], ...]
    units: int
    epochs: int
    batch_size: int
    samples: int
    seeds: tuple[int, ...]


SCALES = {
    "smoke": Scale(
        192,
        64,
        128,
        ((8,), (8,)),
        16,
        epochs=2,
        batch_size=8,
        samples=2,
        seeds=(0,),
    ),
    "small": Scale(
        5000,
        500,
        4000,
        ((16, 16), (32, 32), (64, 64)),
        64,
        epochs=20,
        batch_size=128,
        samples=32,
        seeds=(0, 1, 2),
    ),
    # VGG-16, with one dense layer.
    "paper": Scale(
        49500,
        500,
        10000,
        ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
        512,
        epochs=100,
        batch_size=128,
        samples=32,
        seeds=(0, 1, 2),
    ),
}


class Progress(keras.callbacks.Callback):
    """One bar a training run."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.bar = keras.utils.Progbar(self.params["epochs"], unit_name="epoch")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.bar.update(epoch + 1, [("loss", logs["loss"])])


class Experiment:
    """The data of one seed, and how a network is built and trained on them.

    `train` and `reg` are `(x, y)`; `everything` is both, for what has no use
    for a regularization set. Images are standardized to about -2 to 2.
    """

    def __init__(self, scale: Scale, seed: int, name: str = "cifar10") -> None:
        self.scale, self.seed = scale, seed
        x, y = self._load(name, "train")
        chosen = np.random.default_rng(seed).permutation(len(x))
        chosen = chosen[: scale.train + scale.reg]
        self.everything = x[chosen], y[chosen]
        self.train = x[chosen[: scale.train]], y[chosen[: scale.train]]
        self.reg = x[chosen[scale.train :]], y[chosen[scale.train :]]
        x, y = self._load(name, "test")
        self.test = x[: scale.test], y[: scale.test]

    @staticmethod
    def _load(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        x, y = tfds.as_numpy(
            tfds.load(name, split=split, batch_size=-1, as_supervised=True)
        )
        x = (x.astype("float32") / 255.0 - 0.47) / 0.25
        return x, y.astype("int32")

    @property
    def places(self) -> int:
        """How many layers a regularizer can follow."""
        return sum(map(len, self.scale.blocks)) + 1

    def build(
        self, regularizer: Callable[[int], Any] = lambda place: None
    ) -> kcr.CrossRegModel:
        """A VGG that returns logits.

        Args:
            regularizer: What follows the normalization at each place, counted
                from the input: a layer or `None`.
        """

        def normalized(x: Any) -> Any:
            nonlocal place
            x = keras.layers.BatchNormalization(center=False, scale=False)(x)
            layer = regularizer(place)
            place += 1
            return keras.layers.ReLU()(x if layer is None else layer(x))

        place = 0
        x = inputs = keras.Input(self.train[0].shape[1:])
        for block in self.scale.blocks:
            for filters in block:
                x = keras.layers.Conv2D(
                    filters, 3, padding="same", use_bias=False
                )(x)
                x = normalized(x)
            x = keras.layers.MaxPooling2D()(x)
        x = keras.layers.Flatten()(x)
        x = normalized(keras.layers.Dense(self.scale.units, use_bias=False)(x))
        return kcr.CrossRegModel(inputs, keras.layers.Dense(CLASSES)(x))

    def fit(self, model: kcr.CrossRegModel, data: Any, **kwargs: Any) -> Any:
        """Compiles and trains: Adam, its learning rate by cosine decay."""
        steps = -(-len(data[0]) // self.scale.batch_size) * self.scale.epochs
        model.compile(
            keras.optimizers.Adam(
                keras.optimizers.schedules.CosineDecay(1e-3, steps)
            ),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            eval_num_samples=self.scale.samples,
        )
        model.fit(*data, **self.fit_arguments, **kwargs)
        return model

    @property
    def fit_arguments(self) -> dict[str, Any]:
        return dict(
            epochs=self.scale.epochs,
            batch_size=self.scale.batch_size,
            callbacks=[Progress()],
            verbose=0,
        )


def probabilities(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Predicted class probabilities, `(n, classes)`."""
    logits = model.predict(x, batch_size=500, verbose=0)
    return np.asarray(keras.ops.softmax(logits.astype("float64")))


SCORES = {
    "accuracy": keras.metrics.SparseCategoricalAccuracy,
    "nll": kcr.metrics.NegativeLogLikelihood,
    "brier": kcr.metrics.BrierScore,
    "ece": kcr.metrics.ExpectedCalibrationError,
}


def scores(y: np.ndarray, p: np.ndarray) -> dict[str, float]:
    return {name: float(metric()(y, p)) for name, metric in SCORES.items()}


class Results:
    """Finished runs, one line of JSON each."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [json.loads(line) for line in lines]

    def has(self, run: str, seed: int) -> bool:
        return any((r["run"], r["seed"]) == (run, seed) for r in self.rows)

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def values(self, run: str, column: str) -> np.ndarray:
        """One number a seed."""
        return np.array([r[column] for r in self.rows if r["run"] == run])

    @property
    def runs(self) -> list[str]:
        return list(dict.fromkeys(r["run"] for r in self.rows))


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error, nan for a single value."""
    if len(values) == 1:
        return float(values[0]), float("nan")
    return values.mean(), values.std(ddof=1) / len(values) ** 0.5


def formatted(values: np.ndarray, digits: int, factor: float = 1) -> str:
    mean, error = mean_and_error(values * factor)
    if np.isnan(error):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


# Title, digits, factor.
COLUMNS = {
    "accuracy": ("accuracy, %", 1, 100),
    "nll": ("NLL, nats", 3, 1),
    "brier": ("Brier", 3, 1),
    "ece": ("ECE", 3, 1),
    "cost": ("time", 2, 1),
}


def table(results: Results, runs: list[str]) -> rich.table.Table:
    """Mean and standard error over seeds; times in those of the first run."""
    grid = rich.table.Table("run", box=rich.box.MARKDOWN)
    for title, _, _ in COLUMNS.values():
        grid.add_column(title, justify="right", no_wrap=True)
    seconds = np.mean(results.values(runs[0], "seconds"))
    for run in runs:
        cells = []
        for column, (_, digits, factor) in COLUMNS.items():
            if column == "cost":
                values = results.values(run, "seconds") / seconds
            else:
                values = results.values(run, column)
            cells.append(formatted(values, digits, factor))
        grid.add_row(run, *cells)
    return grid


def figure(results: Results, runs: list[str], path: pathlib.Path) -> None:
    """Accuracy, NLL and ECE of every run, with standard errors."""
    _, axes = plt.subplots(
        1,
        3,
        figsize=(9, 0.6 + 0.35 * len(runs)),
        sharey=True,
        layout="constrained",
    )
    for ax, column in zip(axes, ("accuracy", "nll", "ece"), strict=True):
        title, _, factor = COLUMNS[column]
        for place, run in enumerate(runs):
            mean, error = mean_and_error(results.values(run, column) * factor)
            color = "C0" if "cross-regularized" in run else "0.35"
            ax.errorbar(mean, place, xerr=error, fmt="o", color=color)
        ax.set_xlabel(title)
        ax.grid(axis="x", alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(runs)), runs)
    axes[0].invert_yaxis()
    plt.savefig(path, dpi=150)
    plt.close()


def versions() -> str:
    packages = ("keras", "tensorflow", "numpy")
    return f"Python {platform.python_version()}, " + ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in packages
    )


def main(
    doc: str,
    script: str,
    runs: dict[str, Callable[[Experiment], np.ndarray]],
    arguments: list[str] | None = None,
) -> None:
    """The command line of a script: runs, then a table and a figure.

    Args:
        doc: The script's docstring.
        script: Its name.
        runs: For every row of the table, a function that trains on an
            `Experiment` and returns probabilities for its test images.
    """
    parser = argparse.ArgumentParser(
        prog=f"{script}.py",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2")
    parser.add_argument("--data", default="cifar10", help="a name of TFDS")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent / "results",
    )
    options = parser.parse_args(arguments)
    scale = SCALES[options.scale]
    stem = options.out / f"{script}-{options.scale}"
    results = Results(stem.with_suffix(".jsonl"))
    for seed in options.seeds or scale.seeds:
        missing = {n: f for n, f in runs.items() if not results.has(n, seed)}
        if not missing:
            continue
        experiment = Experiment(scale, seed, options.data)
        for name, run in missing.items():
            print(f"Seed {seed}: {name}", flush=True)
            keras.utils.set_random_seed(seed)
            begin = time.perf_counter()
            p = run(experiment)
            results.add(
                data=options.data,
                run=name,
                seed=seed,
                seconds=round(time.perf_counter() - begin, 1),
                **scores(experiment.test[1], p),
            )
            keras.utils.clear_session()
    done = [name for name in runs if name in results.runs]
    grid = table(results, done)
    rich.console.Console(width=110).print(grid)
    figure(results, done, stem.with_suffix(".png"))
    command = f"python examples/paper/{script}.py --scale {options.scale}"
    seeds = len({row["seed"] for row in results.rows})
    with stem.with_suffix(".md").open("w") as out:
        file = rich.console.Console(file=out, width=200)
        print(f"{doc.splitlines()[0]}\n", file=out)
        print(
            f"`{command}`: {options.data}, {scale.train:,} training images, "
            f"{scale.reg:,} for regularization, {scale.test:,} of the test "
            f"set, {scale.epochs} epochs, {seeds} seed(s): mean and standard "
            f"error. Time is of training and prediction, in that of the first "
            f"row. {versions()}.",
            file=out,
        )
        file.print(grid)
        print(f"{CAVEAT}\n\n![]({stem.name}.png)", file=out)
