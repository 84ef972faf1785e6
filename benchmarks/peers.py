"""Other ways to learn a strength while a network trains, and ours.

    pip install -e '.[tensorflow,examples]'
    python3 -m venv peers
    peers/bin/pip install torch==2.13.0 gradhpo==0.1.3
    peers/bin/pip install --ignore-requires-python betty-ml==0.2.1
    python benchmarks/peers.py --out peers.jsonl --python peers/bin/python
    python benchmarks/peers.py --out peers.jsonl --table

All train the network of cifar10_dense on the same rows, from the same
weights, and predict the same test rows. Each run has a process of its own:

- `keras`: a plain network and one with Dropout(0.25), on all the data;
  Concrete Dropout (Gal et al., 2017), likewise; ours.
- `betty`: Betty, on PyTorch, with its hypergradient (`darts`) of a weight
  decay for each layer, or of a scale of noise behind each normalization.
- `gradhpo`: on JAX, T1-T2 and HyperDistill, with the same strengths.

The strengths of Betty and gradhpo have a learning rate that the user sets. Of
two, the one with the smaller NLL on the regularization set is taken.

Every finished run is a line of JSON in `--out`, and is not run again; the
rows are beside it, in an .npz. See docs/search.md for what it gave.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

# Before TensorFlow, which is talkative.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from comparison.data import TASKS
from comparison.scores import of_probabilities

HERE = pathlib.Path(__file__).parent
ALGORITHMS = ("t1t2", "hyperdistill")
KERAS = (
    "plain",
    "dropout",
    "concrete_dropout",
    "noise",
    "noise, r=1",
    "noise+merge",
    "learned_dropout",
    "learned_dropout+merge",
)
UNTIMED = ("plain", "noise+merge", "learned_dropout+merge")
PEERS = {
    "keras": KERAS,
    "betty": ("plain", "decay", "noise"),
    "gradhpo": (
        "plain",
        *(f"{a}_{kind}" for a in ALGORITHMS for kind in ("decay", "noise")),
    ),
}
INSTALL = {
    "keras": "pip install -e '.[tensorflow,examples]'",
    "betty": "pip install torch; "
    "pip install --ignore-requires-python betty-ml==0.2.1",
    "gradhpo": "pip install gradhpo==0.1.3",
}
NEEDS = {"keras": "keras_crossreg", "betty": "betty", "gradhpo": "gradhpo"}


def write_rows(path: pathlib.Path, smoke: bool) -> None:
    task = TASKS["digits" if smoke else "cifar10_dense"](0)
    task = task.smaller() if smoke else task
    np.savez(
        path,
        x=task.x.reshape(len(task.x), -1),
        y=task.y,
        train=task.train,
        reg=task.reg,
        epochs=task.epochs,
        batch_size=task.batch_size,
        rate=task.learning_rate,
    )


def environment() -> dict[str, str]:
    """Where the process of a run finds its modules."""
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, paths)))


def missing(peer: str, python: str) -> str | None:
    """What to install, where a peer cannot be imported."""
    command = [python, "-c", f"import {NEEDS[peer]}"]
    found = subprocess.run(
        command, env=environment(), capture_output=True, text=True
    )
    if found.returncode == 0:
        return None
    reason = found.stderr.strip().splitlines()[-1]
    return f"{peer} is left out: {INSTALL[peer]} ({python}: {reason})"


def one_run(
    peer: str, run: str, seed: int, what: str, data: pathlib.Path, python: str
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "out.npz"
        module = f"peer_runs.{peer}_runs"
        arguments = [str(data), run, str(seed), str(out), what]
        subprocess.run(
            [python, "-m", module, *arguments], env=environment(), check=True
        )
        with np.load(out) as file:
            result: dict[str, Any] = json.loads(str(file["result"]))
            p = np.asarray(file["p"], "float64") if "p" in file else None
    row = dict(peer=peer, run=run, seed=seed, what=what)
    if p is not None:
        with np.load(data) as file:
            y = file["y"][len(file["y"]) - len(p) :]
        row |= of_probabilities(y, p / p.sum(-1, keepdims=True))
    return row | result


def rows_of(path: pathlib.Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def plan(options: argparse.Namespace) -> Iterator[tuple[str, str, int, str]]:
    for peer in options.peer:
        for run in PEERS[peer]:
            for seed in options.seeds:
                yield peer, run, seed, "quality"
            if run not in UNTIMED:
                yield peer, run, options.seeds[0], "time"


def run_all(options: argparse.Namespace) -> list[str]:
    """Appends what is not there yet; returns what failed or is missing."""
    data = options.out.with_suffix(".npz")
    if not data.exists():
        write_rows(data, options.smoke)
    keys = ("peer", "run", "seed", "what")
    done = {tuple(row[k] for k in keys) for row in rows_of(options.out)}
    failed, left_out = [], {}
    for peer, run, seed, what in plan(options):
        if (peer, run, seed, what) in done:
            continue
        python = sys.executable if peer == "keras" else options.python
        if peer not in left_out:
            left_out[peer] = missing(peer, python)
        if left_out[peer]:
            continue
        try:
            row = one_run(peer, run, seed, what, data, python)
        except (subprocess.CalledProcessError, OSError) as error:
            # Its own words are on the screen.
            failed.append(f"{peer} {run}, seed {seed}: {error}")
            continue
        line = json.dumps(row)
        print(line, flush=True)
        with options.out.open("a") as out:
            out.write(line + "\n")
    return [*filter(None, left_out.values()), *failed]


def cell(values: list[float], digits: int, factor: float = 1.0) -> str:
    values = [factor * value for value in values]
    text = f"{statistics.mean(values):.{digits}f}"
    if len(values) > 1:
        error = statistics.stdev(values) / len(values) ** 0.5
        text += f" ± {error:.{digits}f}"
    return text


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: means and standard errors over seeds."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["peer"], row["run"], row["what"]), []).append(row)

    def memory(peer: str, run: str) -> float:
        # Of the first seed: the others may find compiled code in a cache.
        return float(found[peer, run, "quality"][0]["memory"])

    lines = [
        "| peer | run | seeds | accuracy, % | NLL | ECE | time of a step | "
        "memory, MB | lines | trainings | learned, first seed |",
        "| --- | --- " + "| ---: " * 8 + "| --- |",
    ]
    for peer, runs in PEERS.items():
        for run in runs:
            of_run = found.get((peer, run, "quality"))
            if not of_run:
                continue
            timed = found.get((peer, run.removesuffix("+merge"), "time"))
            first = of_run[0]
            extra = ""
            if (peer, "plain", "quality") in found:
                extra = f"{memory(peer, run) - memory(peer, 'plain'):+.0f}"
            cells = [
                peer,
                run,
                str(len(of_run)),
                cell([row["accuracy"] for row in of_run], 1, 100),
                cell([row["nll"] for row in of_run], 3),
                cell([row["ece"] for row in of_run], 3),
                f"{timed[0]['time']:.2f}" if timed else "1" * (run == "plain"),
                extra,
                str(first["lines"]),
                str(first["choices"]),
                " ".join(f"{v:.2g}" for v in first.get("learned", [])),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--peer", nargs="+", choices=PEERS, default=[*PEERS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="that of betty and gradhpo; default: the one that runs this",
    )
    parser.add_argument("--smoke", action="store_true", help="a few rows")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    if options.table:
        print(table(rows_of(options.out)))
        return
    if failed := run_all(options):
        raise SystemExit("These are not in the table:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
