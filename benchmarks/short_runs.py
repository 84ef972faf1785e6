"""Short runs: how often rho step by default, and what comes of it.

    python benchmarks/short_runs.py --out benchmarks/results/short_runs.jsonl

One line of JSON a run, resumable. `count` lines are of a small network, in a
grid of training steps and batch sizes. `quality` lines are of the survey of
`defaults.py`, learned noise against plain training and dropout .25, which train
on the regularization set too. `--table` prints what is there, and runs nothing.
See docs/defaults.md for what it gave.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
import warnings
from typing import Any

import keras
import numpy as np
from defaults import affairs
from defaults import build
from defaults import dense
from defaults import scores

import keras_crossreg as kcr

STEPS = (20, 100, 500, 5000)
BATCHES = (16, 64, 256, 512)
# Training rows, regularization rows, batch size, epochs.
SETTINGS = {
    "20 steps": (320, 50, 64, 4),
    "40 steps, 500 rows in batches of 256": (500, 75, 256, 20),
    "100 steps": (1280, 190, 64, 5),
    "survey, 5 epochs": (2000, 300, 64, 5),
    "... `reg_data` in one batch of 300": (2000, 300, 64, 5),
    "500 steps": (1600, 240, 64, 20),
    "5,000 steps": (1600, 240, 16, 50),
}
RUNS = ("plain", "dropout .25", "before", "default", "merge")


def small_model() -> kcr.CrossRegModel:
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4, use_bias=False)(inputs)
    x = keras.layers.BatchNormalization(center=False, scale=False)(x)
    x = kcr.layers.GaussianNoiseScale()(x)
    model = kcr.CrossRegModel(inputs, keras.layers.Dense(1)(x))
    model.compile("adam", "mse")
    return model


def count(steps: int, batch_size: int) -> dict[str, Any]:
    """Rho steps in one `fit` of ten epochs."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    rows = steps // 10 * batch_size
    x = rng.normal(size=(rows, 4)).astype("float32")
    reg = rng.normal(size=(100, 4)).astype("float32")
    model = small_model()
    model.fit(
        x,
        x[:, :1],
        batch_size=batch_size,
        epochs=10,
        reg_data=(reg, reg[:, :1]),
        verbose=0,
    )
    return dict(rho_steps=int(model.rho_optimizer.iterations))


def in_batches(x: Any, y: Any, size: int) -> Any:
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((x, y)).batch(size)


def quality(setting: str, run: str, seed: int) -> dict[str, Any]:
    keras.utils.set_random_seed(seed)
    data = affairs()
    data["body"] = dense([128, 128, 128])
    order = np.random.default_rng(seed).permutation(len(data["x"]))
    x, y = data["x"][order], data["y"][order]
    m, held, batch_size, epochs = SETTINGS[setting]
    n = m + held
    noise = {
        "plain": None,
        "dropout .25": lambda: keras.layers.Dropout(0.25),
    }.get(run, kcr.layers.GaussianNoiseScale)
    model = build(data, noise)
    # Fixed numbers, whatever the length of the run.
    special = dict(reg_freq=12, reg_warmup=200) if run == "before" else {}
    model.compile("adam", "sparse_categorical_crossentropy", **special)
    fit: dict[str, Any] = dict(batch_size=batch_size, epochs=epochs, verbose=0)
    begin = time.process_time()
    if run in ("plain", "dropout .25"):
        model.fit(x[:n], y[:n], **fit)
        rho_steps = 0
    else:
        train, held_out = (x[:m], y[:m]), (x[m:n], y[m:n])
        if "one batch" in setting:
            held_out = in_batches(*held_out, held)
            # `merge_epochs` takes two of a kind.
            train = (in_batches(*train, fit.pop("batch_size")),)
        if run == "before" and "one batch" not in setting:
            fit["reg_batch_size"] = batch_size // 8
        if run == "merge":
            fit["merge_epochs"] = epochs // 2
        model.fit(*train, reg_data=held_out, **fit)
        rho_steps = int(model.rho_optimizer.iterations)
    rho = [round(float(np.mean(v)), 3) for v in model.get_rho().values()]
    return dict(
        seconds=time.process_time() - begin,
        rho_steps=rho_steps,
        rho=rho,
        **scores(model, x[2300:], y[2300:]),
    )


def cell(found: list[dict[str, Any]], score: str) -> str:
    values = np.array([f[score] for f in found])
    error = values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.3f} ± {error:.3f}".replace("0.", ".")


def print_tables(results: list[dict[str, Any]]) -> None:
    """Lines of Markdown."""
    counts = {
        (r["steps"], r["batch_size"]): r["rho_steps"]
        for r in results
        if r["kind"] == "count"
    }
    print("| steps | " + " | ".join(f"B = {b}" for b in BATCHES) + " |")
    print("| --- |" + " --- |" * len(BATCHES))
    for steps in STEPS:
        cells = [str(counts.get((steps, b), "")) for b in BATCHES]
        print(f"| {steps:,} | " + " | ".join(cells) + " |")
    print()
    print("| NLL | " + " | ".join(RUNS) + " | rho steps before, default |")
    print("| --- |" + " --- |" * (len(RUNS) + 1))
    for setting in SETTINGS:
        rows = [r for r in results if r.get("setting") == setting]
        found = {run: [r for r in rows if r["run"] == run] for run in RUNS}
        cells = [cell(found[run], "nll") for run in RUNS if found[run]]
        steps = [
            str(found[run][0]["rho_steps"])
            for run in ("before", "default")
            if found[run]
        ]
        print(f"| {setting} | " + " | ".join([*cells, ", ".join(steps)]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    results = []
    if arguments.out.exists():
        lines = arguments.out.read_text().splitlines()
        results = [json.loads(line) for line in lines]
    if arguments.table:
        print_tables(results)
        return
    # What it warns of, before the numbers are seen, is what they show.
    warnings.simplefilter("ignore")

    todo: list[dict[str, Any]] = [
        dict(kind="quality", setting=setting, run=run, seed=seed)
        for seed in arguments.seeds
        for setting in SETTINGS
        for run in RUNS
    ] + [
        dict(kind="count", steps=steps, batch_size=batch_size)
        for steps in STEPS
        for batch_size in BATCHES
    ]
    for case in todo:
        if any(case.items() <= result.items() for result in results):
            continue
        kind, options = case["kind"], {k: case[k] for k in case if k != "kind"}
        result = case | (count if kind == "count" else quality)(**options)
        keras.backend.clear_session()
        line = json.dumps(result)
        print(line, flush=True)
        with arguments.out.open("a") as out:
            out.write(line + "\n")


if __name__ == "__main__":
    main()
