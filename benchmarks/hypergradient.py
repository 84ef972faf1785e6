"""What a rho step costs by kind of hypergradient, in training steps.

    python benchmarks/hypergradient.py

Two networks of `benchmarks/defaults.py` with a learned sigma in each layer. A
rho step every training step (`reg_freq=1`), with as many regularization rows
times K as the training batch has rows. Time: the CPU seconds of a `fit` with
rho steps, minus those of one with rho frozen, over the latter; medians over
rounds in which the kinds take turns. Memory: the growth of the process from
before the first step to its peak, over that of training alone, each in a
process of its own.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import rich
import rich.table
from defaults import dense
from defaults import vgg

import keras_crossreg as kcr
from keras_crossreg.hypergradients import Implicit
from keras_crossreg.hypergradients import OneStep

# Shape of an input, hidden layers, rows of a batch.
NETWORKS = {
    "VGG, 32x32x3": ((32, 32, 3), vgg([16, 16, 32, 32, 64, 64], 64), 64),
    "dense, 64": ((64,), dense([256, 256, 256]), 1024),
}
NUM_SAMPLES = 8


def kinds(rows: int) -> dict[str, Any]:
    """By name, for batches of so many rows. `None`: rho are frozen."""
    half = rows // 2
    return {
        "training": None,
        "direct": "direct",
        "one_step": OneStep(step_size=1e-3),
        "one_step, half of the batch": OneStep(1e-3, batch_size=half),
        "implicit, 1 term": Implicit(num_terms=1, damping=1.0),
        "implicit, 5 terms": Implicit(num_terms=5, damping=1.0),
        "implicit, 5 terms, half": Implicit(5, damping=1.0, batch_size=half),
        "implicit, 20 terms": Implicit(num_terms=20, damping=1.0),
    }


class Run:
    """A model and its data; `step()` makes so many steps."""

    def __init__(self, network: str, kind: str) -> None:
        shape, body, rows = NETWORKS[network]
        inputs = keras.Input(shape)
        hidden = body(inputs, kcr.layers.GaussianNoiseScale)
        outputs = keras.layers.Dense(10, activation="softmax")(hidden)
        self.model = kcr.CrossRegModel(inputs, outputs)
        hypergradient = kinds(rows)[kind]
        if hypergradient is None:
            self.model.freeze_rho()
        self.model.compile(
            "adam",
            "sparse_categorical_crossentropy",
            num_samples=NUM_SAMPLES,
            reg_freq=1,
            reg_warmup=0,
            hypergradient=hypergradient or "direct",
        )
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((4 * rows, *shape), dtype="float32")
        self.y = np.arange(len(self.x)) % 10
        self.arguments = dict(batch_size=rows, verbose=0)
        if hypergradient is not None:
            reg = rows // NUM_SAMPLES
            self.arguments |= dict(
                reg_data=(self.x[:reg] + 1.0, self.y[:reg]), reg_batch_size=reg
            )

    def fit(self) -> float:
        begin = time.process_time()
        self.model.fit(self.x, self.y, **self.arguments)
        return time.process_time() - begin


def growth(run: Callable[[], Any]) -> int:
    """Of this process to its peak in the run, in kB, on Linux."""
    # Forget the peak so far.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    run()
    return memory("VmHWM") - before


def growth_of(script: str, *arguments: str) -> int:
    """What a script prints of it in a process of its own."""
    output = subprocess.run(
        [sys.executable, script, "--memory-of", *arguments],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return int(output.split("kB:")[1])


def memory(name: str) -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s*(\d+) kB", status)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print("kB:", growth(Run(*arguments.memory_of).fit))
        return
    table = rich.table.Table(title="Cost of a rho step")
    for column in ("network", "hypergradient", "time", "from to", "memory"):
        table.add_column(column)
    for network, (_, _, rows) in NETWORKS.items():
        runs = {kind: Run(network, kind) for kind in kinds(rows)}
        seconds = [
            {kind: run.fit() for kind, run in runs.items()}
            for _ in range(arguments.rounds + 1)
        ]
        peaks = {kind: growth_of(__file__, network, kind) for kind in runs}
        for kind in runs:
            # The first round compiles.
            cost = [s[kind] / s["training"] for s in seconds[1:]]
            if kind != "training":
                cost = [c - 1 for c in cost]
            table.add_row(
                network,
                kind,
                f"{np.median(cost):.2f}",
                f"{min(cost):.2f} to {max(cost):.2f}",
                f"{peaks[kind] / peaks['training']:.2f}",
            )
    rich.print(table)


if __name__ == "__main__":
    main()
