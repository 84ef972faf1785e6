"""One cross-regularized run against search with KerasTuner and Ray Tune.

    python benchmarks/search.py --data affairs --regularizer dropout

Same network, same data, same test set. The search picks fixed rates by the
NLL on the regularization set, after training on the rest; then a network is
trained on all the data with them. Population based training selects by the
same NLL, and changes the rates while its networks train. What is learned reads
the regularization set as `reg_data`, and is refitted on all the data. The
baseline has no regularization, and all the data.

Every finished run is a line of JSON in `--out`, and is not run again. The
last thing printed is the table. See docs/search.md for what it gave.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

# Before TensorFlow, which is talkative.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Processor time in parallel threads depends on who else runs.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import defaults
import keras
import numpy as np
import population
import rich.box
import rich.console
import rich.table

import keras_crossreg as kcr

try:
    import keras_tuner
except ImportError as error:
    raise SystemExit(
        "The search needs KerasTuner: pip install 'keras-crossreg[search]'"
    ) from error

SAMPLES = 32
Row = dict[str, Any]


def digits() -> dict[str, Any]:
    """Those of the defaults, with one regularizer behind every layer."""
    data = defaults.digits()
    data["x"] = data["x"].reshape(-1, 64)
    data["body"] = defaults.dense([256, 256, 256])
    return data


def cifar10_tiny() -> dict[str, Any]:
    """Sixteen by sixteen, in colour, for a small CNN."""
    data = defaults.cifar10()
    keep = np.r_[0:2200, 11000:15000]
    x = data["x"][keep].reshape(-1, 16, 2, 16, 2, 3).mean((2, 4))
    data.update(x=x, y=data["y"][keep], train=2000, reg=200, batch_size=32)
    data.update(body=defaults.vgg([8, 8, 16, 16], 32))
    return data


DATA = {
    "affairs": defaults.affairs,
    "cifar10_dense": defaults.cifar10_dense,
    "cifar10_tiny": cifar10_tiny,
    "digits": digits,
}


class Dropout:
    name = "dropout"
    low, high, sampling = 0.0, 0.8, "linear"
    learned = kcr.layers.LearnedDropout
    # What a user of fixed dropout does.
    predicts = "plain"

    @staticmethod
    def fixed(rate: float) -> keras.layers.Layer:
        return keras.layers.Dropout(rate)

    @staticmethod
    def frozen(rate: float) -> keras.layers.Layer:
        return kcr.layers.LearnedDropout(max(rate, 1e-4))


class Noise:
    name = "noise"
    low, high, sampling = 0.03, 3.0, "log"
    learned = kcr.layers.GaussianNoiseScale
    predicts = "averaged"

    @staticmethod
    def fixed(scale: float) -> keras.layers.Layer:
        # `keras.layers.GaussianNoise` takes no more than 1.
        return kcr.layers.GaussianNoiseScale(scale)

    frozen = fixed


REGULARIZERS = {"dropout": Dropout, "noise": Noise}


class Later(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that begins at one of its later steps."""

    def __init__(self, schedule: Any, first: int) -> None:
        self.schedule, self.first = schedule, first

    def __call__(self, step: Any) -> Any:
        return self.schedule(step + self.first)


class Problem:
    """The data of one seed, and networks compiled for them."""

    def __init__(self, name: str, regularizer: Any, seed: int) -> None:
        self.data, self.regularizer, self.seed = DATA[name](), regularizer, seed
        x, y = self.data["x"], self.data["y"]
        if not name.startswith("cifar10"):  # It has a test set of its own.
            order = np.random.default_rng(seed).permutation(len(x))
            x, y = x[order], y[order]
        m = self.data["train"]
        n = m + self.data["reg"]
        self.train, self.reg = (x[:m], y[:m]), (x[m:n], y[m:n])
        self.everything, self.test = (x[:n], y[:n]), (x[n:], y[n:])
        self.epochs = self.data["epochs"]
        self.fit = dict(batch_size=self.data["batch_size"], verbose=0)

    @property
    def layers(self) -> int:
        """How many of them a regularizer follows."""
        places: list[Any] = []

        def count() -> keras.layers.Layer:
            places.append(None)
            return keras.layers.Identity()

        self.data["body"](keras.Input(self.data["x"].shape[1:]), count)
        return len(places)

    def model(
        self,
        make: Callable[[int], keras.layers.Layer] | None,
        examples: int,
        first_epoch: int = 0,
        **special: Any,
    ) -> kcr.CrossRegModel:
        """A compiled network.

        Args:
            make: Returns the regularizer behind a layer, by its number.
            examples: How many it will train on.
            first_epoch: Where in the schedule its training begins.
            **special: Arguments of `compile`.
        """
        places = iter(range(100))
        model = defaults.build(self.data, make and (lambda: make(next(places))))
        steps = -(-examples // self.data["batch_size"])
        rate: Any = 1e-3
        if self.data.get("cosine"):
            rate = keras.optimizers.schedules.CosineDecay(
                rate, self.epochs * steps
            )
            rate = Later(rate, first_epoch * steps) if first_epoch else rate
        model.compile(
            keras.optimizers.Adam(rate),
            "sparse_categorical_crossentropy",
            eval_num_samples=SAMPLES,
            # What the tables of docs/search.md were made with.
            **{"hypergradient": "direct", **special},
        )
        return model

    def warm_up(self) -> None:
        """What TensorFlow does once is no one's time."""
        model = self.model(lambda i: self.regularizer.learned(), 1, reg_freq=1)
        few = [a[:64] for a in self.train]
        model.fit(*few, reg_data=self.reg, **self.fit)

    def fixed(self, rates: list[float], *args: Any) -> kcr.CrossRegModel:
        model = self.model(lambda i: self.regularizer.fixed(rates[i]), *args)
        model.freeze_rho()
        return model

    def final(self, rates: list[float]) -> kcr.CrossRegModel:
        """A network that was trained on all the data with fixed rates."""
        model = self.fixed(rates, len(self.everything[0]))
        model.fit(*self.everything, epochs=self.epochs, **self.fit)
        return model

    def scores(self, model: keras.Model) -> Row:
        return defaults.scores(model, *self.test)

    def both_scores(self, model: kcr.CrossRegModel, rates: list[float]) -> Row:
        """The usual one of two, and both.

        They are of the plain prediction and of the average over samples.
        """
        plain = self.model(None, 1)
        averaged = self.model(lambda i: self.regularizer.frozen(rates[i]), 1)
        kinds = (
            keras.layers.Dense,
            keras.layers.Conv2D,
            keras.layers.BatchNormalization,
        )
        for copy in (plain, averaged):
            pairs = zip(
                *(
                    [layer for layer in m.layers if isinstance(layer, kinds)]
                    for m in (model, copy)
                ),
                strict=True,
            )
            for old, new in pairs:
                new.set_weights(old.get_weights())
        both = dict(plain=self.scores(plain), averaged=self.scores(averaged))
        return both[self.regularizer.predicts] | both | dict(rates=rates)


class FixedRates(keras_tuner.HyperModel):
    """What the tuner builds and fits."""

    def __init__(self, problem: Problem, places: int, shared: bool) -> None:
        super().__init__()
        self.problem, self.places, self.shared = problem, places, shared

    def rates(self, hp: keras_tuner.HyperParameters) -> list[float]:
        kind = self.problem.regularizer

        def choice(name: str) -> float:
            return hp.Float(name, kind.low, kind.high, sampling=kind.sampling)

        if self.shared:
            return [choice("rate")] * self.places
        return [choice(f"rate_{i}") for i in range(self.places)]

    def build(self, hp: keras_tuner.HyperParameters) -> kcr.CrossRegModel:
        return self.problem.fixed(
            self.rates(hp),
            len(self.problem.train[0]),
            hp.values.get("tuner/initial_epoch", 0),
        )

    def fit(
        self,
        hp: keras_tuner.HyperParameters,
        model: kcr.CrossRegModel,
        *args: Any,
        callbacks: Any = (),
        **kwargs: Any,
    ) -> float:
        model.fit(*args, **kwargs)
        # Once, not after every epoch: Hyperband goes on from what they save.
        callbacks = keras.callbacks.CallbackList(callbacks, model=model)
        callbacks.on_epoch_end(kwargs["epochs"] - 1, {})
        return model.evaluate(*self.problem.reg, verbose=0)


def tuner_of(kind: str, trials: int, epochs: int, **arguments: Any) -> Any:
    if kind == "hyperband":
        return keras_tuner.Hyperband(
            max_epochs=epochs, hyperband_iterations=1, **arguments
        )
    return keras_tuner.RandomSearch(max_trials=trials, **arguments)


def baseline(problem: Problem, trials: int) -> dict[str, Row]:
    begin = Clock()
    model = problem.model(None, len(problem.everything[0]))
    model.fit(*problem.everything, epochs=problem.epochs, **problem.fit)
    return {"": begin.row() | problem.scores(model)}


def searched(kind: str, shared: bool) -> Callable[..., dict[str, Row]]:
    def run(problem: Problem, trials: int) -> dict[str, Row]:
        begin = Clock()
        hypermodel = FixedRates(problem, problem.layers, shared)
        with tempfile.TemporaryDirectory() as folder:
            tuner = tuner_of(
                kind,
                trials,
                problem.epochs,
                hypermodel=hypermodel,
                seed=problem.seed,
                directory=folder,
            )
            tuner.search(*problem.train, epochs=problem.epochs, **problem.fit)
        found = [
            dict(
                rates=hypermodel.rates(trial.hyperparameters),
                epochs=trial.hyperparameters.values.get(
                    "tuner/epochs", problem.epochs
                ),
                nll=trial.score,
            )
            for trial in tuner.oracle.trials.values()
            if trial.score is not None
        ]
        # A short training overfits less whatever its rates.
        longest = max(trial["epochs"] for trial in found)
        best = min(
            (trial for trial in found if trial["epochs"] == longest),
            key=lambda trial: trial["nll"],
        )
        model = problem.final(best["rates"])
        row = begin.row() | problem.both_scores(model, best["rates"])
        return {"": row | dict(trials=found)}

    return run


def learned(start: float | None = None) -> Callable[..., dict[str, Row]]:
    """A run that learns, from the layer's own first value or another."""

    def run(problem: Problem, trials: int) -> dict[str, Row]:
        begin = Clock()
        model = problem.model(
            lambda i: problem.regularizer.learned(*([start] if start else [])),
            len(problem.train[0]),
        )
        model.fit(
            *problem.train,
            reg_data=problem.reg,
            epochs=problem.epochs,
            **problem.fit,
        )
        row = begin.row()
        begin.pause()
        row |= problem.scores(model)
        row["rates"] = [float(rate) for rate in model.get_rho().values()]
        begin.resume()
        final = kcr.refit(
            model, *problem.everything, epochs=problem.epochs, **problem.fit
        )
        again = begin.row() | problem.scores(final)
        return {"": row, ", refitted": again | dict(rates=row["rates"])}

    return run


def population_based(size: int) -> Callable[..., dict[str, Row]]:
    """The best member of a population; a network with its last rates."""

    def run(problem: Problem, trials: int) -> dict[str, Row]:
        kind = problem.regularizer
        breed = population.Breed(
            lambda: problem.model(
                lambda i: kind.learned(), len(problem.train[0])
            ),
            problem.train,
            problem.reg,
            epochs=problem.epochs,
            batch_size=problem.data["batch_size"],
            low=kind.low,
            high=kind.high,
            log=kind.sampling == "log",
            seed=problem.seed,
        )
        begin = Clock()
        model, rates, reports = population.evolved(breed, size)
        row = begin.row()
        spent = sum(report.pop("seconds") for report in reports)
        row["cpu_seconds"] = round(spent, 2)
        begin = Clock()
        final = problem.final(rates)
        more = begin.row()
        again = {key: round(row[key] + more[key], 2) for key in more}
        row["trials"] = [r | dict(nll=r.pop("loss")) for r in reports]
        return {
            "": row | problem.both_scores(model, rates),
            ", refitted": again | problem.both_scores(final, rates),
        }

    return run


class Clock:
    """Seconds of the processor and of the wall since it was made."""

    def __init__(self) -> None:
        self.spent = np.zeros(2)
        self.resume()

    @staticmethod
    def now() -> np.ndarray:
        return np.array([time.process_time(), time.perf_counter()])

    def resume(self) -> None:
        self.begin = self.now()

    def pause(self) -> None:
        self.spent += self.now() - self.begin

    def row(self) -> Row:
        cpu, wall = (self.spent + self.now() - self.begin).round(2)
        return dict(cpu_seconds=float(cpu), seconds=float(wall))


RUNS: dict[str, Callable[..., dict[str, Row]]] = {
    "no regularization": baseline,
    "cross-regularized": learned(),
    "start 0.3": learned(start=0.3),
    "random search, one rate": searched("random", shared=True),
    "random search, a rate per layer": searched("random", shared=False),
    "Hyperband, a rate per layer": searched("hyperband", shared=False),
    "PBT, population 4": population_based(4),
    "PBT, population 8": population_based(8),
}


def table(rows: list[Row]) -> rich.table.Table:
    """Mean and standard error over seeds; time in that of the baseline."""
    grid = rich.table.Table("run", box=rich.box.MARKDOWN)
    titles = "seeds", "accuracy, %", "NLL", "ECE", "time", "rates, first seed"
    for title in titles:
        grid.add_column(title, justify="right", no_wrap=True)
    plain = {
        row["seed"]: row["cpu_seconds"]
        for row in rows
        if row["run"] == "no regularization"
    }

    def line(name: str, part: list[Row], scores: list[Row]) -> None:
        rates = part[0].get("rates", [])
        grid.add_row(
            name,
            str(len(part)),
            formatted([100 * s["accuracy"] for s in scores], 1),
            formatted([s["nll"] for s in scores], 3),
            formatted([s["ece"] for s in scores], 3),
            formatted([r["cpu_seconds"] / plain[r["seed"]] for r in part], 1),
            " ".join(f"{rate:.2f}" for rate in rates),
        )

    names = [run + end for run in RUNS for end in ("", ", refitted")]
    for name in names:
        part = [r for r in rows if r["run"] == name and r["seed"] in plain]
        if part:
            line(name, part, part)
            if "averaged" in part[0] and part[0]["regularizer"] == "dropout":
                line(
                    f"... {SAMPLES} samples averaged",
                    part,
                    [r["averaged"] for r in part],
                )
    return grid


def formatted(values: list[float], digits: int) -> str:
    text = f"{np.mean(values):.{digits}f}"
    if len(values) > 1:
        error = np.std(values, ddof=1) / len(values) ** 0.5
        text += f" ± {error:.{digits}f}"
    return text


def rows_of(path: pathlib.Path) -> list[Row]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    results = pathlib.Path(__file__).parent / "results" / "search.jsonl"
    parser.add_argument("--out", type=pathlib.Path, default=results)
    parser.add_argument("--data", choices=DATA, default="affairs")
    parser.add_argument(
        "--regularizer", choices=REGULARIZERS, default="dropout"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--run", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, help="default: of the data set")
    options = parser.parse_args(arguments)
    if any(name.startswith("PBT") for name in options.run):
        population.ray_tune()
    setting = dict(data=options.data, regularizer=options.regularizer)
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def finished() -> list[Row]:
        rows = rows_of(options.out)
        return [row for row in rows if setting.items() <= row.items()]

    warm = False
    # What is quick first, for all seeds.
    for name, seed in itertools.product(options.run, options.seeds):
        if any((r["run"], r["seed"]) == (name, seed) for r in finished()):
            continue
        problem = Problem(options.data, REGULARIZERS[options.regularizer], seed)
        problem.epochs = options.epochs or problem.epochs
        if not warm:
            problem.warm_up()
            warm = True
        print(f"{name}, seed {seed}", flush=True)
        keras.utils.set_random_seed(seed)
        found = RUNS[name](problem, options.trials)
        with options.out.open("a") as out:
            for suffix, row in found.items():
                row = setting | dict(run=name + suffix, seed=seed) | row
                out.write(json.dumps(row) + "\n")
        keras.utils.clear_session()
    rich.console.Console(width=130).print(table(finished()))


if __name__ == "__main__":
    main()
