"""What the scripts of this folder share: scales, data, network, runs, tables.

A script names its runs, functions of an `Experiment` that return a row of
numbers or a model's predictions, and calls `main`. Every finished run is one
line of JSON in the results: what is there already is not run again, so that
whatever was interrupted goes on.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import importlib.metadata
import itertools
import json
import logging
import os
import pathlib
import platform
import time
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

# Before TensorFlow, which is talkative.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")

import keras
import matplotlib.pyplot as plt
import numpy as np
import rich.console
import rich.table

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
    """How much data, how large a network, how long.

    `size` is the side of the images, which are averaged down to it.
    `steps_per_execution` is that of `compile`.
    """

    train: int
    reg: int
    test: int
    blocks: tuple[tuple[int, ...], ...]
    units: int
    epochs: int
    batch_size: int
    samples: int
    seeds: tuple[int, ...]
    size: int = 32
    steps_per_execution: int = 1


SCALES = {
    "smoke": Scale(
        192,
        64,
        100,
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
    # VGG-16, with one dense layer. 11,600 steps: two minutes on an H100, at the
    # 6.8 ms a step that were measured with noise, in float32.
    "paper": Scale(
        49500,
        500,
        10000,
        ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
        512,
        epochs=30,
        batch_size=128,
        samples=32,
        seeds=(0,),
        steps_per_execution=8,
    ),
}


def quick(**changes: Any) -> dict[str, Scale]:
    """The scales, "small" at a quarter of the pixels: for many rows.

    Args:
        **changes: More of them, to "small".
    """
    small = dict(test=2000, samples=16, size=16) | changes
    return SCALES | {"small": dataclasses.replace(SCALES["small"], **small)}


# A convolution a block.
THIN = ((16,), (32,), (64,))

Row = dict[str, Any]


def clock() -> float:
    """Seconds of the processor, which other programs on it do not change.

    Of the wall where a GPU does the work.
    """
    on_cpu = "cpu" in str(keras.ops.ones(()).device).lower()
    return time.process_time() if on_cpu else time.perf_counter()


class Progress(keras.callbacks.Callback):
    """One bar a training run; its seconds, less validation, go to `spent`."""

    def __init__(self, spent: collections.Counter[str]) -> None:
        super().__init__()
        self.spent = spent

    def on_train_begin(self, logs: Any = None) -> None:
        self.bar = keras.utils.Progbar(self.params["epochs"], unit_name="epoch")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.begin = self.end = clock()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.end = clock()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.spent["training"] += self.end - self.begin
        self.bar.update(epoch + 1, [("loss", logs["loss"])])


@functools.cache
def images(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels, as anyone gets them from TFDS.

    Or from a file of NumPy's, as `--images` has it.
    """
    if name.endswith(".npz"):
        with np.load(name) as arrays:
            return arrays[f"{split}_x"], arrays[f"{split}_y"].astype("int32")
    import tensorflow_datasets as tfds

    data = tfds.load(name, split=split, batch_size=-1, as_supervised=True)
    x, y = tfds.as_numpy(data)
    return x, y.astype("int32")


class Experiment:
    """The data of one seed, and how a network is built and trained on them.

    `train` and `reg` are `(x, y)`; `everything` is both, for what has no use
    for a regularization set. Images are standardized to about -2 to 2.
    `spent` counts the seconds of training, those of other processes
    ("elsewhere") and the examples trained on. `folder` keeps parts of rows, if
    it is given: a long row that is interrupted loses one.
    """

    def __init__(
        self,
        scale: Scale,
        seed: int,
        name: str = "cifar10",
        source: str | None = None,
        folder: pathlib.Path | None = None,
    ) -> None:
        self.scale, self.seed, self.name = scale, seed, name
        self.source, self.folder = source or name, folder
        self.spent: collections.Counter[str] = collections.Counter()
        x, y = self.load("train")
        chosen = np.random.default_rng(seed).permutation(len(x))
        chosen = chosen[: scale.train + scale.reg]
        x, y = self.prepare(x[chosen]), y[chosen]
        self.everything = x, y
        self.train = x[: scale.train], y[: scale.train]
        self.reg = x[scale.train :], y[scale.train :]
        x, y = self.load("test")
        self.test = self.prepare(x[: scale.test]), y[: scale.test]

    def load(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        return images(self.source, split)

    def prepare(self, x: np.ndarray) -> np.ndarray:
        x = (x.astype("float32") / 255.0 - 0.47) / 0.25
        size, step = self.scale.size, x.shape[1] // self.scale.size
        blocks = x.reshape(len(x), size, step, size, step, x.shape[-1])
        return blocks.mean(axis=(2, 4))

    def part(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that a row is made of, from the folder if it is there."""
        if self.folder is None:
            return make()
        path = self.folder / f"{name}-seed-{self.seed}.npz"
        if path.exists():
            with np.load(path) as kept:
                self.spent["elsewhere"] += float(kept["seconds"])
                return kept["array"]
        begin = clock()
        array = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, array=array, seconds=clock() - begin)
        return array

    @property
    def places(self) -> int:
        """How many layers a regularizer can follow."""
        return sum(map(len, self.scale.blocks)) + 1

    def build(
        self,
        regularizer: Callable[[int], Any] = lambda place: None,
        first: Any = None,
        kind: type[kcr.CrossRegModel] = kcr.CrossRegModel,
    ) -> kcr.CrossRegModel:
        """A VGG that returns logits.

        Args:
            regularizer: What follows the normalization at each place, counted
                from the input: a layer or `None`.
            first: A layer that the images pass first.
            kind: The class of the model.
        """
        normalized = normalizer(regularizer)
        inputs = keras.Input(self.train[0].shape[1:])
        x = inputs if first is None else first(inputs)
        for block in self.scale.blocks:
            for filters in block:
                x = normalized(convolution(filters)(x))
            x = keras.layers.MaxPooling2D()(x)
        x = keras.layers.Flatten()(x)
        x = normalized(keras.layers.Dense(self.scale.units, use_bias=False)(x))
        return kind(inputs, keras.layers.Dense(CLASSES)(x))

    def build_fixed(self, sigma: float, first: int = 0) -> kcr.CrossRegModel:
        """The network with noise that stays, from a place on."""
        model = self.build(
            lambda place: (
                kcr.layers.GaussianNoiseScale(sigma) if place >= first else None
            )
        )
        model.freeze_rho()
        return model

    def compile(
        self,
        model: kcr.CrossRegModel,
        data: Any,
        settings: Row | None = None,
    ) -> kcr.CrossRegModel:
        """For Adam, its learning rate by cosine decay over a training.

        Args:
            model: Is returned, compiled.
            data: `(x, y)` of the training.
            settings: More arguments of `compile`.
        """
        steps = -(-len(data[0]) // self.scale.batch_size) * self.scale.epochs
        model.compile(
            keras.optimizers.Adam(
                keras.optimizers.schedules.CosineDecay(1e-3, steps)
            ),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            eval_num_samples=self.scale.samples,
            steps_per_execution=self.scale.steps_per_execution,
            # The paper's gradient.
            **{"hypergradient": "direct", **(settings or {})},
        )
        return model

    def fit(
        self,
        model: kcr.CrossRegModel,
        data: Any,
        settings: Row | None = None,
        **kwargs: Any,
    ) -> kcr.CrossRegModel:
        """Compiles, as above, and trains.

        Args:
            model, data, settings: As those of `compile`.
            **kwargs: More arguments of `fit`.
        """
        self.compile(model, data, settings)
        model.fit(*data, **self.fit_arguments, **kwargs)
        self.spent["examples"] += self.scale.epochs * len(data[0])
        return model

    def cross_regularize(
        self, model: kcr.CrossRegModel, **kwargs: Any
    ) -> kcr.CrossRegModel:
        return self.fit(model, self.train, reg_data=self.reg, **kwargs)

    def finish(
        self, model: kcr.CrossRegModel, **kwargs: Any
    ) -> kcr.CrossRegModel:
        """Learns in half of the epochs, and trains on all data in the rest."""
        epochs = self.scale.epochs // 2
        self.spent["examples"] += epochs * len(self.reg[0])
        return self.cross_regularize(model, merge_epochs=epochs, **kwargs)

    def refit(
        self, model: kcr.CrossRegModel, **kwargs: Any
    ) -> kcr.CrossRegModel:
        """Trains anew on all the data, with what was learned."""
        x, y = self.everything
        self.spent["examples"] += self.scale.epochs * len(x)
        return kcr.refit(model, x, y, **self.fit_arguments, **kwargs)

    @property
    def fit_arguments(self) -> Row:
        return dict(
            epochs=self.scale.epochs,
            batch_size=self.scale.batch_size,
            callbacks=[Progress(self.spent), kcr.callbacks.RhoHistory()],
            verbose=0,
        )

    def row(self, model: kcr.CrossRegModel) -> Row:
        """Test scores, how far behind training they are, what was learned."""
        x, y = (a[: self.scale.test] for a in self.train)
        row: Row = self.scores(probabilities(model, self.test[0]))
        fitted = probabilities(model, x).argmax(axis=-1) == y
        row["gap"] = float(fitted.mean()) - row["accuracy"]
        row["rho"] = [float(np.mean(v)) for v in model.get_rho().values()]
        return row

    def scores(self, p: np.ndarray) -> dict[str, float]:
        y = self.test[1]
        return {name: float(metric()(y, p)) for name, metric in SCORES.items()}


def usual_dropout(scale: Scale) -> Callable[[int], Any]:
    """A quarter at the end of each block, half behind the dense layer."""
    ends = np.cumsum([len(block) for block in scale.blocks]) - 1

    def dropout(place: int) -> keras.layers.Layer | None:
        if place in ends:
            return keras.layers.Dropout(0.25)
        return keras.layers.Dropout(0.5) if place > ends[-1] else None

    return dropout


def noise(place: int) -> keras.layers.Layer:
    """A learned sigma for every layer."""
    return kcr.layers.GaussianNoiseScale()


def convolution(
    filters: int, size: int = 3, strides: int = 1
) -> keras.layers.Layer:
    return keras.layers.Conv2D(
        filters, size, strides, padding="same", use_bias=False
    )


def normalizer(regularizer: Callable[[int], Any]) -> Callable[[Any], Any]:
    """Normalizes without a trainable scale, regularizes, rectifies."""
    places = itertools.count()

    def normalized(x: Any) -> Any:
        x = keras.layers.BatchNormalization(center=False, scale=False)(x)
        layer = regularizer(next(places))
        return keras.layers.ReLU()(x if layer is None else layer(x))

    return normalized


def probabilities(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Predicted class probabilities, `(n, classes)`."""
    logits = model.predict(x, batch_size=100, verbose=0)
    return np.asarray(keras.ops.softmax(logits.astype("float64")))


SCORES = {
    "accuracy": keras.metrics.SparseCategoricalAccuracy,
    "nll": kcr.metrics.NegativeLogLikelihood,
    "brier": kcr.metrics.BrierScore,
    "ece": kcr.metrics.ExpectedCalibrationError,
}


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
        """One number a seed, or one array; of the rows that have it."""
        return np.array(
            [r[column] for r in self.rows if r["run"] == run and column in r]
        )

    @property
    def runs(self) -> list[str]:
        return list(dict.fromkeys(r["run"] for r in self.rows))

    @property
    def seeds(self) -> list[int]:
        return sorted({r["seed"] for r in self.rows})


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error, nan for a single value."""
    if len(values) == 1:
        return float(values[0]), float("nan")
    return values.mean(), values.std(ddof=1) / len(values) ** 0.5


def formatted(values: np.ndarray, digits: int, factor: float = 1) -> str:
    if not len(values):
        return "-"
    mean, error = mean_and_error(values * factor)
    if np.isnan(error):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


# Title, digits, factor.
Columns = dict[str, tuple[str, int, float]]
COLUMNS: Columns = {
    "accuracy": ("accuracy, %", 1, 100),
    "nll": ("NLL, nats", 3, 1),
    "brier": ("Brier", 3, 1),
    "ece": ("ECE", 3, 1),
    "time": ("time", 2, 1),
}
GAP: Columns = {"gap": ("gap, %", 1, 100)}


def some(*names: str) -> Columns:
    """Those of the columns above."""
    every = COLUMNS | GAP
    return {name: every[name] for name in names}


def table(
    results: Results, runs: list[str], columns: Columns = COLUMNS
) -> rich.table.Table:
    """Mean and standard error over seeds; times in those of the first run."""
    grid = rich.table.Table(box=rich.box.MARKDOWN)
    grid.add_column("run", no_wrap=True)
    for title, _, _ in columns.values():
        grid.add_column(title, justify="right", no_wrap=True)
    seconds = np.mean(results.values(runs[0], "seconds"))
    for run in runs:
        cells = []
        for column, (_, digits, factor) in columns.items():
            if column == "time":
                values = results.values(run, "seconds") / seconds
            else:
                values = results.values(run, column)
            cells.append(formatted(values, digits, factor))
        seeds = len(results.values(run, "seed"))
        rest = "" if seeds == len(results.seeds) else f" ({seeds} seeds)"
        grid.add_row(run + rest, *cells)
    return grid


def dots(
    results: Results, runs: list[str], columns: Columns | None = None
) -> None:
    """Accuracy, NLL and ECE of every run, with standard errors."""
    columns = columns or some("accuracy", "nll", "ece")
    _, axes = plt.subplots(
        1,
        len(columns),
        figsize=(9, 0.6 + 0.35 * len(runs)),
        sharey=True,
        layout="constrained",
    )
    for ax, (column, (title, _, factor)) in zip(
        axes, columns.items(), strict=True
    ):
        for place, run in enumerate(runs):
            values = results.values(run, column) * factor
            if len(values):
                mean, error = mean_and_error(values)
                is_learned = "cross-reg" in run or "learned" in run
                color = "C0" if is_learned else "0.35"
                ax.errorbar(mean, place, xerr=error, fmt="o", color=color)
        ax.set_xlabel(title)
        ax.grid(axis="x", alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(runs)), runs)
    axes[0].invert_yaxis()


def versions() -> str:
    packages = ("keras", keras.backend.backend(), "numpy")
    return f"Python {platform.python_version()}, " + ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in packages
    )


Runs = dict[str, Callable[[Experiment], Any]]
Figures = dict[str, Callable[[Results, list[str]], None]]


def train_missing(
    results: Results,
    runs: Runs,
    seeds: Sequence[int],
    experiment_of: Callable[[int], Experiment],
) -> None:
    """Trains what is not among the results yet."""
    for seed in seeds:
        missing = {n: f for n, f in runs.items() if not results.has(n, seed)}
        if not missing:
            continue
        experiment = experiment_of(seed)
        for name, run in missing.items():
            print(f"Seed {seed}: {name}", flush=True)
            keras.utils.set_random_seed(seed)
            experiment.spent.clear()
            begin = clock()
            row = run(experiment)
            if not isinstance(row, dict):
                row = experiment.scores(row)
            spent = experiment.spent
            seconds = clock() - begin + spent.pop("elsewhere", 0)
            results.add(
                data=experiment.name,
                run=name,
                seed=seed,
                seconds=round(seconds, 1),
                **{k: round(v, 1) for k, v in spent.items()},
                **row,
            )
            keras.utils.clear_session()


def as_text(grid: rich.table.Table, width: int) -> str:
    console = rich.console.Console(width=width)
    with console.capture() as capture:
        console.print(grid)
    lines = capture.get().splitlines()
    return "\n".join(line.rstrip() for line in lines).strip()


TIMES = "Times are of training and prediction, in those of the first row. "


def described(scale: Scale) -> str:
    return (
        f"{scale.train:,} training images of {scale.size} by {scale.size} "
        f"pixels, {scale.reg:,} for regularization, {scale.test:,} of the test "
        f"set, {scale.epochs} epochs"
    )


def described_seeds(results: Results) -> str:
    number = len(results.seeds)
    if number == 1:
        return "one seed"
    return f"{number} seeds: mean and standard error"


def parsed(
    doc: str, script: str, scales: Any, arguments: list[str] | None
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"{script}.py",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scale", choices=scales, default="small")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2")
    parser.add_argument("--data", default="cifar10", help="a name of TFDS")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent / "results",
    )
    parser.add_argument(
        "--images",
        help="instead of TFDS: an .npz of train_x, train_y, test_x, test_y",
    )
    parser.add_argument(
        "--draw", action="store_true", help="what is there; train nothing"
    )
    return parser.parse_args(arguments)


def main(
    doc: str,
    script: str,
    runs: Runs,
    arguments: list[str] | None = None,
    *,
    columns: Columns = COLUMNS,
    figures: Figures | None = None,
    scales: dict[str, Any] = SCALES,
    stored: str | None = None,
    at_scale: dict[str, Runs] | None = None,
) -> None:
    """The command line of a script: runs, then a table and figures.

    Args:
        doc: The script's docstring.
        script: Its name.
        runs: For every row of the table, a function that trains on an
            `Experiment` and returns a dict of numbers, or probabilities for
            its test images, of which `scores` makes one.
        arguments: Of the command line.
        columns: What the table shows.
        figures: Functions that draw one, by what is added to its file name.
            Defaults to scores of all runs.
        scales: A `Scale` for each name.
        stored: The script whose results these are. Defaults to this one.
        at_scale: Other runs, at scales of these names.
    """
    options = parsed(doc, script, scales, arguments)
    scale = scales[options.scale]
    runs = (at_scale or {}).get(options.scale, runs)
    parts = options.out / "parts" if options.scale == "paper" else None
    data = "" if options.data == "cifar10" else f"-{options.data}"
    end = f"{data}-{options.scale}"
    results = Results(options.out / f"{stored or script}{end}.jsonl")
    if not options.draw:
        train_missing(
            results,
            runs,
            options.seeds or scale.seeds,
            lambda seed: Experiment(
                scale, seed, options.data, options.images, parts
            ),
        )
    done = [name for name in runs if name in results.runs]
    grid = table(results, done, columns)
    print(as_text(grid, 200))
    pictures = []
    for name, draw in (figures or {"": dots}).items():
        pictures.append(f"{script}{end}{name and '-'}{name}.png")
        draw(results, done)
        plt.savefig(options.out / pictures[-1], dpi=150)
        plt.close()
    command = f"python examples/paper/{script}.py --scale {options.scale}"
    if data:
        command += f" --data {options.data}"
    page = (
        doc.partition("\n\n    ")[0],
        f"`{command}`: {options.data}, {described(scale)}, "
        f"{described_seeds(results)}. "
        f"{TIMES if 'time' in columns else ''}{versions()}.",
        as_text(grid, 300),
        CAVEAT,
        *(f"![]({picture})" for picture in pictures),
    )
    path = options.out / f"{script}{end}.md"
    path.write_text("\n\n".join(page) + "\n")
