"""What all peers share: rows, initial weights, and how a run reports.

NumPy alone: the process of a peer has its own framework, and no other.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import pathlib
import resource
import statistics
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import numpy as np

WIDTHS = (256, 256, 256)
CLASSES = 10
SAMPLES = 16
EPSILON, MOMENTUM = 1e-3, 0.99  # Of batch normalization, as in Keras.
NOISE, DECAY = 0.3, 5e-4  # Where strengths start.
RATES = (0.01, 0.1)  # Of Adam, for strengths of which no one says it.
BLOCKS = 10

Rows = tuple[np.ndarray, np.ndarray]
Predict = Callable[[np.ndarray], np.ndarray]
Seconds = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A seed's initial weights and order of rows, of one set of rows.

    Args:
        rows: `"train"`, `"reg"`, `"train+reg"` and `"test"`.
        epochs: Of one training.
        batch_size: Examples in a batch.
        rate: The first learning rate of Adam. It decays along a cosine.
        seed: Of the weights, the order and the noise.
    """

    rows: dict[str, Rows]
    epochs: int
    batch_size: int
    rate: float
    seed: int

    def steps(self, part: str = "train") -> int:
        """Of one epoch."""
        return -(-len(self.rows[part][0]) // self.batch_size)

    def kernels(self) -> list[np.ndarray]:
        """Of all layers, drawn as Keras draws them (Glorot, uniform)."""
        random = np.random.default_rng(self.seed)
        sizes = [self.rows["train"][0].shape[1], *WIDTHS, CLASSES]
        kernels = []
        for before, behind in zip(sizes, sizes[1:], strict=False):
            limit = (6 / (before + behind)) ** 0.5
            kernel = random.uniform(-limit, limit, (before, behind))
            kernels.append(kernel.astype("float32"))
        return kernels


class Batches:
    """Rows in batches, in a new order each time, with a seed for their noise.

    Args:
        rows: Inputs and labels.
        size: Of a batch. The last one of a pass has what is left.
        seed: Of the order.
    """

    def __init__(self, rows: Rows, size: int, seed: int) -> None:
        self.x, self.y = rows
        self.size, self.random = size, np.random.default_rng(seed)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        order = self.random.permutation(len(self.x))
        for first in range(0, len(order), self.size):
            few = order[first : first + self.size]
            yield self.x[few], self.y[few], int(self.random.integers(2**31))

    def forever(self) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        while True:
            yield from self


@dataclasses.dataclass(frozen=True)
class Run:
    """A row of the table.

    Args:
        train: Trains; returns what predicts, and what was learned.
        epochs: Returns two functions that train for some epochs, and return
            how long it took: the run's, and that of the plain network.
        code: What a user writes for it: classes and functions.
        choices: How many trainings choose what the user has to set.
            Defaults to `1`.
    """

    train: Callable[[Problem], tuple[Predict, dict[str, Any]]]
    epochs: Callable[[Problem], tuple[Seconds, Seconds]] | None
    code: tuple[Any, ...]
    choices: int = 1

    @property
    def lines(self) -> int:
        """Of its code, without comments, docstrings and empty lines."""
        count, quoted = 0, False
        for part in self.code:
            for line in inspect.getsource(part).splitlines():
                line = line.strip()
                if line.startswith('"""') and not quoted:
                    quoted = line.count('"""') == 1
                elif quoted:
                    quoted = '"""' not in line
                elif line and not line.startswith(("#", "@dataclasses")):
                    count += 1
        return count


def best_rate(
    problem: Problem,
    train: Callable[[Problem, float], tuple[Predict, dict[str, Any]]],
) -> tuple[Predict, dict[str, Any]]:
    """Of the trainings at `RATES`, that of the smallest NLL on `reg`."""
    x, y = problem.rows["reg"]

    def loss(trained: tuple[Predict, Any]) -> float:
        p = trained[0](x)[np.arange(len(y)), y]
        nll = float(-np.log(np.maximum(p, 1e-7)).mean())
        return nll if np.isfinite(nll) else float("inf")

    trained, held = [], []
    for rate in RATES:
        trained.append(train(problem, rate))
        held.append(round(memory()))
    losses = [loss(one) for one in trained]
    best = int(np.argmin(losses))
    predict, notes = trained[best]
    return predict, dict(
        notes,
        rate=RATES[best],
        # JSON has no infinity: of a training that diverged, nothing.
        reg_nll=[round(v, 4) if np.isfinite(v) else None for v in losses],
        memory=held[0],  # What one training needs.
    )


def load(path: pathlib.Path, seed: int) -> Problem:
    with np.load(path) as file:
        m, n = int(file["train"]), int(file["train"] + file["reg"])
        x, y = file["x"], file["y"]
        settings = {k: file[k].item() for k in ("epochs", "batch_size", "rate")}
    places = {
        "train": slice(0, m),
        "reg": slice(m, n),
        "train+reg": slice(0, n),
        "test": slice(n, None),
    }
    rows = {name: (x[place], y[place]) for name, place in places.items()}
    return Problem(rows, seed=seed, **settings)


def memory() -> float:
    """The most that this process has held, in MB."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        # What `getrusage` says counts the process that started this one too.
        line = next(s for s in status.open() if s.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(epoch: Callable[[], Any]) -> Seconds:
    def seconds() -> float:
        begin = time.perf_counter()
        epoch()
        return time.perf_counter() - begin

    return seconds


def ratio(epochs: tuple[Seconds, Seconds]) -> float:
    """The time of the first, in that of the second, in alternated blocks."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for block in range(BLOCKS + 1):
        for epoch, found in zip(epochs, seconds, strict=True):
            took = epoch()
            if block:  # The first one compiles.
                found.append(took)
    of_run, of_plain = map(statistics.median, seconds)
    return of_run / of_plain


def main(runs: dict[str, Run]) -> None:
    """The process of one run: trains, and writes what came out.

    Its arguments are the rows, the run, the seed, the file to write, and
    `quality` or `time`.
    """
    data, name, seed, out, what = sys.argv[1:]
    problem, run = load(pathlib.Path(data), int(seed)), runs[name]
    result: dict[str, Any] = dict(lines=run.lines, choices=run.choices)
    arrays = {}
    if what == "time":
        assert run.epochs is not None
        result["time"] = round(ratio(run.epochs(problem)), 3)
    else:
        before = memory()
        predict, notes = run.train(problem)
        result |= dict(memory=round(memory())) | notes
        result["memory_before"] = round(before)
        arrays["p"] = predict(problem.rows["test"][0])
    np.savez(out, result=json.dumps(result), **arrays)
