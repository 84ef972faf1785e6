"""Cross-regularization against what users already have, on ten tasks.

    python benchmarks/tasks.py --out results.jsonl --tasks wine digits \
        --runs plain dropout=0.25 ours=noise+finish --seeds 0 1 2

One line of JSON a run, appended to `--out`; what is there is not run again, and
a run that was interrupted is lost alone. `--table` prints what is there as
Markdown and runs nothing, `--figure` draws it. `--smoke` makes everything tiny.

All runs of a task have the same network, batches, epochs and Adam with a cosine
decay. All train on the regularization set, in the way that is theirs:

- `plain`, `dropout=`, `noise=`, `adamw=`, `label_smoothing=` as training
  data. `+restarts`: in three legs, each from shrunk and perturbed weights.
- `mc_dropout=` is that of `dropout=`, averaged over 16 samples. `ensemble=3`.
- `early_stopping` as validation data, `temperature` to fit a temperature.
- `tuner` to choose a rate of dropout and a weight decay by, in 20 trials of
  KerasTuner; then, with the best, as training data.
- `ours=noise`, `ours=dropout`, `ours=learn`, `ours=both` as `reg_data`: learned
  noise, dropout, what `learn_regularizers` makes of `Dropout(0.25)`, and noise
  and dropout in one run, from half as much of each. `+finish`: the last half
  of the epochs finish with both sets; `+quarter`: a quarter of them. `+refit`:
  `kcr.refit`. `+direct`: with the paper's gradient. `+adam`: rho by Adam, that
  is without an anchor at their start. `+held=`: with one strength in all layers
  that never moves, where learning should be at least as good.

A regression has targets of variance one, and predicts a normal distribution
around its mean: of one variance, from rows of their own that no run trains on.

`cost` is what a run computed in the gradients of its training, in that of
`plain`. `seconds` are those of the clock, with the compilation.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import pathlib
import time
import traceback
from typing import Any

# Before TensorFlow, which is talkative.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from comparison import report
from comparison.data import INSTALLED
from comparison.data import TASKS
from comparison.data import Task
from comparison.runs import RUNS
from comparison.runs import TRIALS
from comparison.runs import Training
from comparison.scores import scores


@functools.lru_cache(maxsize=1)
def load(name: str, seed: int, smoke: bool) -> Task:
    task = TASKS[name](seed)
    return task.smaller() if smoke else task


def one_run(name: str, run: str, seed: int, smoke: bool) -> dict[str, Any]:
    task = load(name, seed, smoke)
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    training = Training(task, seed, trials=2 if smoke else TRIALS)
    begin = time.perf_counter()
    predict = RUNS[run].train(training, RUNS[run].restarts)
    seconds = time.perf_counter() - begin
    return dict(
        task=name,
        run=run,
        seed=seed,
        **scores(task, predict),
        cost=round(training.cost, 3),
        seconds=round(seconds, 2),
        **training.notes,
    )


def rows_of(path: pathlib.Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def run_all(options: argparse.Namespace) -> list[str]:
    """Appends what is not there yet; returns what failed."""
    done = {(r["task"], r["run"], r["seed"]) for r in rows_of(options.out)}
    failed = []
    for seed in options.seeds:
        for name in options.tasks:
            for run in options.runs:
                if (name, run, seed) in done:
                    continue
                task = load(name, seed, options.smoke)
                if task.is_regression and not RUNS[run].for_regression:
                    continue
                try:
                    row = one_run(name, run, seed, options.smoke)
                except Exception:
                    # Hours of other runs are not lost with it.
                    traceback.print_exc()
                    failed.append(f"{name} {run}, seed {seed}")
                    continue
                line = json.dumps(row)
                print(line, flush=True)
                with options.out.open("a") as out:
                    out.write(line + "\n")
    return failed


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=TASKS,
        default=INSTALLED,
        help="default: all but cifar10, which is for a GPU, and cifar10_hub "
        "only where KerasHub is installed",
    )
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=[*RUNS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--figure", type=pathlib.Path)
    parser.add_argument(
        "--ours",
        choices=[run for run in RUNS if run.startswith("ours")],
        default="ours=learn+finish",
        help="the run of ours in the summary and the figure",
    )
    options = parser.parse_args(arguments)
    if options.table or options.figure:
        results = report.Results(
            rows_of(options.out),
            options.tasks,
            options.runs,
            options.seeds,
            options.ours,
        )
        if options.table:
            print(results.markdown())
        if options.figure:
            results.draw(options.figure)
        return
    # Every network is compiled anew, which TensorFlow takes for a mistake.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    if failed := run_all(options):
        raise SystemExit("These runs failed:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
