"""What learning costs on a GPU, beside Keras's own layers: one command.

    KERAS_BACKEND=jax python benchmarks/gpu.py --out gpu.jsonl

Networks without noise, with `keras.layers.GaussianNoise`, with ours frozen and
with ours learning, by all defaults but that rho do not wait; predictions of 16
samples and 16 plain ones; `LearnedAugmentation` and Keras's four random layers.

Every case that has been measured on this device, backend and version is a line
of JSON, and is not measured again. The cases that matter most come first, and
none begins after `--minutes`: start it anew for more. `--only` names parts of
cases, `--list` prints all, `--fresh` measures each in a process of its own:
JAX tells the peak of memory of a process alone. `--smoke` is for a CPU, where
networks are tiny and the numbers say nothing. It ends with a table of ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

# Cases in processes of their own need a part of the memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import rich
import rich.table
from gpu_cases import SMOKE
from gpu_cases import Case
from gpu_cases import Size
from gpu_cases import cases
from gpu_cases import device
from gpu_cases import measure
from gpu_cases import versions

Row = dict[str, Any]
# Of a kind over another, in one column: what was asked for.
RATIOS = (
    ("fit", "frozen", "keras", "ms", "a step", 1.0),
    ("fit", "learning", "keras", "ms", "a step", 1.12),
    ("fit", "frozen", "keras", "first_s", "to the first step", 1.3),
    ("fit", "learning", "keras", "first_s", "to the first step", 2.0),
    ("fit", "learning", "keras", "peak_mib", "memory", 1.2),
    ("predict", "K=16", "plain", "ms", "a prediction", 1.05),
    ("augment", "learned", "keras", "ms", "a batch", None),
)
# A quick look on a CPU.
SMOKE_CASES = (
    "fit: transformer, 128, float32: ",
    "fit: transformer, 128, mixed_bfloat16, 8 steps an execution: learning",
    "fit: transformer, 128, mixed_float16: learning",
    "predict: transformer",
    "augment",
)


def setup(smoke: bool) -> Row:
    """What rows must have in common to be compared."""
    return {
        "backend": keras.backend.backend(),
        "device": device(),
        "versions": versions(),
        "smoke": smoke,
    }


def read(path: pathlib.Path) -> list[Row]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: pathlib.Path, row: Row) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def chosen(only: list[str] | None, smoke: bool) -> list[Case]:
    parts = only or (list(SMOKE_CASES) if smoke else [""])
    return [c for c in cases() if any(part in c.name for part in parts)]


def in_a_process(case: Case, smoke: bool, out: pathlib.Path) -> None:
    command = [sys.executable, __file__, "--out", str(out), "--one", case.name]
    subprocess.run(command + ["--smoke"] * smoke, check=False)


def run(options: argparse.Namespace, todo: list[Case], shared: Row) -> None:
    """Measures cases while there is time."""
    begin, longest = time.monotonic(), 0.0
    for number, case in enumerate(todo):
        left = 60 * options.minutes - (time.monotonic() - begin)
        # A case of a large network takes as long as another one.
        if left < longest:
            print(f"No time is left for {len(todo) - number} cases.")
            return
        print(case.name, flush=True)
        started = time.monotonic()
        if options.fresh:
            in_a_process(case, options.smoke, options.out)
        else:
            size = SMOKE if options.smoke else Size()
            write(options.out, {**measure(case, size), **shared})
        longest = max(longest, time.monotonic() - started)


def ratios(rows: list[Row]) -> list[Row]:
    """Of two kinds of one setting, the limit beside each."""
    found = []
    of_case = {row["case"]: row for row in rows}
    settings = dict.fromkeys(r["case"].rpartition(": ")[0] for r in rows)
    for setting in settings:
        for what, kind, base, column, of, limit in RATIOS:
            pair = [of_case.get(f"{setting}: {k}", {}) for k in (kind, base)]
            a, b = (row.get(column) for row in pair)
            if setting.startswith(what) and a and b:
                found.append(
                    {
                        "setting": setting,
                        "ratio": f"{kind} / {base}, {of}",
                        "value": round(a / b, 3),
                        "limit": limit,
                        "base": b,
                    }
                )
    return found


def show(rows: list[Row], shared: Row) -> None:
    table = rich.table.Table("", "", "ratio", "limit", "of")
    for row in ratios(rows):
        limit = "" if row["limit"] is None else f"{row['limit']:.2f}"
        unit = "ms" if row["ratio"].endswith(("step", "tion", "batch")) else ""
        unit = "s" if "first" in row["ratio"] else unit or "MiB"
        table.add_row(
            row["setting"],
            row["ratio"],
            f"{row['value']:.2f}",
            limit,
            f"{row['base']:g} {unit}",
        )
    rich.print(f"{shared['device']}, {shared['versions']}")
    rich.print(table)
    for row in rows:
        if "error" in row:
            print(f"{row['case']}: {row['error']}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=pathlib.Path, default="gpu.jsonl")
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    shared = setup(options.smoke)
    todo = chosen(options.only, options.smoke)
    if options.one:
        (case,) = [case for case in cases() if case.name == options.one]
        size = SMOKE if options.smoke else Size()
        write(options.out, {**measure(case, size), **shared})
        return

    def seen() -> list[Row]:
        return [
            row
            for row in read(options.out)
            if all(row.get(name) == value for name, value in shared.items())
        ]

    done = {row["case"] for row in seen() if "error" not in row}
    if options.list:
        for case in todo:
            print(f"{case.name}{' (is there)' if case.name in done else ''}")
        return
    run(options, [case for case in todo if case.name not in done], shared)
    show(seen(), shared)


if __name__ == "__main__":
    main()
