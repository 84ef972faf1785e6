"""The grid behind the defaults: one line of JSON a run, resumable.

    python benchmarks/defaults.py --out results.jsonl --data digits \
        --seeds 0 1 2 --run baseline direct num_samples=8,reg_freq=32

`baseline` is the network without noise, given the regularization set to
train on. Everything else is a cross-regularized run, with the named arguments
of `compile` and `fit` changed (`direct`: none). Behind it, with the learned rho
and all the data, a `refit` where `refit=1`, and one that replays their schedule
where `schedule=1`. With `part=0.25` the run that learns has that part of the
training and the regularization data. `merge=0.25` merges in that part of the
epochs, `shuffle=0` keeps the order of the training data, and `gap=1` has the
gradient and the r that are the defaults now.
`--table` prints means and standard errors of what is there, and runs
nothing. See docs/grids.md for what it gave.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
from typing import Any

import keras
import numpy as np

import keras_crossreg as kcr


def digits() -> dict[str, Any]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)

    def body(x: Any, noise: Any) -> Any:
        if noise:
            x = kcr.layers.LearnedAugmentation(
                translation=0.5,
                rotation=5.0,
                shear=5.0,
                brightness=None,
                contrast=None,
                fill_mode="constant",
            )(x)
        x = keras.layers.Flatten()(x)
        x = noise()(x) if noise else x
        return dense([256, 256, 256])(x, noise)

    return dict(
        x=(x / 16.0).astype("float32").reshape(-1, 8, 8, 1),
        y=y,
        train=420,
        reg=80,
        epochs=100,
        batch_size=32,
        body=body,
        classes=10,
    )


def affairs() -> dict[str, Any]:
    from statsmodels.datasets import fair

    table = fair.load_pandas().data
    x = table.drop(columns="affairs").to_numpy("float64")
    y = (table["affairs"] > 0).to_numpy("int32")
    x = (x - x.mean(0)) / x.std(0)
    return dict(
        x=x.astype("float32"),
        y=y,
        train=2000,
        reg=300,
        epochs=60,
        batch_size=64,
        body=dense([128, 128, 128]),
        classes=2,
    )


def cifar10() -> dict[str, Any]:
    import tensorflow_datasets as tfds

    (x, y), (xt, yt) = (
        tfds.as_numpy(
            tfds.load("cifar10", split=part, batch_size=-1, as_supervised=True)
        )
        for part in ("train[:11000]", "test[:4000]")
    )
    x = np.concatenate([x, xt]).astype("float32") / 255.0
    return dict(
        x=(x - 0.47) / 0.25,
        y=np.concatenate([y, yt]).astype("int32"),
        train=10000,
        reg=1000,
        epochs=20,
        batch_size=128,
        body=vgg([32, 32, 64, 64, 128, 128], 128),
        classes=10,
        cosine=True,
    )


def cifar10_augmented() -> dict[str, Any]:
    """The same, with learned augmentation too where there is noise."""
    data = cifar10()
    data.update(body=augmented(data["body"]))
    return data


def cifar10_small() -> dict[str, Any]:
    data = cifar10()
    keep = np.r_[0:5500, 11000:15000]
    data.update(x=data["x"][keep], y=data["y"][keep], train=5000, reg=500)
    data.update(body=vgg([16, 16, 32, 32, 64, 64], 64))
    return data


def cifar10_dense() -> dict[str, Any]:
    """Sixteen by sixteen, grey: 256 numbers an image."""
    data = cifar10_small()
    x = data["x"].mean(-1).reshape(-1, 16, 2, 16, 2).mean((2, 4))
    data.update(x=x.reshape(-1, 256), body=dense([256, 256, 256]))
    return data


def normalized(x: Any, noise: Any) -> Any:
    x = keras.layers.BatchNormalization(center=False, scale=False)(x)
    return keras.layers.ReLU()(noise()(x) if noise else x)


def dense(widths: list[int]) -> Any:
    def body(x: Any, noise: Any) -> Any:
        for width in widths:
            x = keras.layers.Dense(width, use_bias=False)(x)
            x = normalized(x, noise)
        return x

    return body


def vgg(filters: list[int], units: int) -> Any:
    def body(x: Any, noise: Any) -> Any:
        for i, count in enumerate(filters):
            x = keras.layers.Conv2D(count, 3, padding="same", use_bias=False)(x)
            x = normalized(x, noise)
            if i % 2:
                x = keras.layers.MaxPooling2D()(x)
        x = keras.layers.Flatten()(x)
        x = keras.layers.Dense(units, use_bias=False)(x)
        return normalized(x, noise)

    return body


def augmented(body: Any) -> Any:
    def augmented_body(x: Any, noise: Any) -> Any:
        return body(kcr.layers.LearnedAugmentation()(x) if noise else x, noise)

    return augmented_body


def build(data: dict[str, Any], noise: Any) -> kcr.CrossRegModel:
    inputs = keras.Input(data["x"].shape[1:])
    x = data["body"](inputs, noise)
    outputs = keras.layers.Dense(data["classes"], activation="softmax")(x)
    return kcr.CrossRegModel(inputs, outputs)


def calibration_error(p: Any, y: Any, bins: int = 15) -> float:
    confidence, correct = p.max(1), p.argmax(1) == y
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(y))


def scores(model: kcr.CrossRegModel, x: Any, y: Any) -> dict[str, float]:
    p = model.predict(x, batch_size=100, verbose=0).astype("float64")
    p /= p.sum(1, keepdims=True)
    nll = -np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)).mean()
    # What a model that is calibrated to the last digit would score on labels
    # drawn from its own predictions: the bias of ECE at this number of them.
    random = np.random.default_rng(0)
    drawn = [
        (p.cumsum(1) > random.random((len(p), 1))).argmax(1) for _ in range(50)
    ]
    return dict(
        accuracy=float((p.argmax(1) == y).mean()),
        nll=float(nll),
        ece=calibration_error(p, y),
        ece_floor=float(np.mean([calibration_error(p, d) for d in drawn])),
    )


RHO = {"lr", "beta_1", "beta_2", "decay", "opt"}
COMPILE = {"num_samples", "reg_freq", "reg_warmup", "eval_num_samples"}
FIT = {"reg_batch_size", "merge_epochs", "shuffle"}
SCORES = {"accuracy": (100, 1), "nll": (1, 3), "ece": (1, 3)}


def options_of(run: str) -> dict[str, float]:
    pairs = [p.split("=") for p in run.split(",") if "=" in p]
    return {k: float(v) if "." in v else int(v) for k, v in pairs}


def rho_optimizer(options: dict[str, float]) -> Any:
    lr = options.get("lr", 0.1)
    if "decay" in options:
        lr = keras.optimizers.schedules.InverseTimeDecay(
            lr, 1, options["decay"]
        )
    return keras.optimizers.Adam(
        lr,
        beta_1=options.get("beta_1", 0.9),
        beta_2=options.get("beta_2", 0.999),
    )


def one_run(name: str, run: str, seed: int) -> dict[str, Any]:
    keras.utils.set_random_seed(seed)
    data = globals()[name]()
    x, y = data["x"], data["y"]
    if name in ("digits", "affairs"):
        order = np.random.default_rng(seed).permutation(len(x))
        x, y = x[order], y[order]
    m, n = data["train"], data["train"] + data["reg"]
    test = x[n:], y[n:]
    options = options_of(run)
    noise: Any = None
    if run != "baseline":
        start = options.get("start", options.get("fixed", 0.3))

        def noise() -> Any:
            return kcr.layers.GaussianNoiseScale(start)

    model = build(data, noise)
    size = data["batch_size"]
    steps = data["epochs"] * -(-(n if run == "baseline" else m) // size)
    rate: Any = 1e-3
    if data.get("cosine"):
        rate = keras.optimizers.schedules.CosineDecay(rate, steps)
    special = {}
    if RHO & set(options):
        special["rho_optimizer"] = rho_optimizer(options)
    special |= {k: int(options[k]) for k in COMPILE & set(options)}
    if "gap" not in options:
        # What the grids were made with: the rule for r of 0.1, too.
        reg_size = int(options.get("reg_batch_size", size // 8))
        work = 6 * int(options.get("num_samples", 16)) * reg_size
        special.setdefault("reg_freq", -(-work // size))
        special["hypergradient"] = "direct"
    model.compile(
        keras.optimizers.Adam(rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        **special,
    )
    fit = dict(epochs=data["epochs"], batch_size=size, verbose=0)
    record = kcr.callbacks.RhoHistory()
    begin = time.perf_counter()
    if run == "baseline":
        model.fit(x[:n], y[:n], **fit)
    elif "fixed" in options:
        model.freeze_rho()
        model.fit(x[:n], y[:n], **fit)
    else:
        part = options.get("part", 1)
        few, of_reg = int(part * m), slice(m, m + int(part * (n - m)))
        special = {k: int(options[k]) for k in FIT & set(options)}
        if "merge" in options:
            special["merge_epochs"] = int(options["merge"] * data["epochs"])
        model.fit(
            x[:few],
            y[:few],
            reg_data=(x[of_reg], y[of_reg]),
            callbacks=[record],
            **fit,
            **special,
        )
    seconds = time.perf_counter() - begin
    result: dict[str, Any] = dict(data=name, run=run, seed=seed)
    result |= scores(model, *test)
    result |= dict(
        seconds=seconds,
        rho=[round(float(np.mean(v)), 3) for v in model.get_rho().values()],
    )
    for key, schedule in (("refit", None), ("schedule", record)):
        if not options.get(key):
            continue
        begin = time.perf_counter()
        final = kcr.refit(model, x[:n], y[:n], schedule=schedule, **fit)
        result[key] = scores(final, *test)
        result[key]["seconds"] = time.perf_counter() - begin
    return result


def print_table(results: list[dict[str, Any]], names: list[str]) -> None:
    """Means and standard errors over seeds, as lines of Markdown."""
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for result in results:
        for key in ("", "refit", "schedule"):
            if result["data"] in names and (not key or key in result):
                row = (result["data"], result["run"], key)
                rows.setdefault(row, []).append(result[key] if key else result)
    print("| data | run | seeds | accuracy | NLL | ECE |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (name, run, key), found in rows.items():
        cells = [name, f"{run}, {key}" if key else run, str(len(found))]
        for score, (factor, digits) in SCORES.items():
            values = factor * np.array([f[score] for f in found])
            cell = f"{values.mean():.{digits}f}"
            if len(values) > 1:
                error = values.std(ddof=1) / len(values) ** 0.5
                cell += f" ± {error:.{digits}f}"
            cells.append(cell)
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--run", nargs="+", default=[])
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    results = []
    if arguments.out.exists():
        lines = arguments.out.read_text().splitlines()
        results = [json.loads(line) for line in lines]
    if arguments.table:
        print_table(results, arguments.data)
        return
    done = {(r["data"], r["run"], r["seed"]) for r in results}
    for seed in arguments.seeds:
        for run in arguments.run:
            for name in arguments.data:
                if (name, run, seed) in done:
                    continue
                result = one_run(name, run, seed)
                line = json.dumps(result)
                print(line, flush=True)
                with arguments.out.open("a") as out:
                    out.write(line + "\n")


if __name__ == "__main__":
    main()
