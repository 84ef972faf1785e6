"""Costs of the library, as ratios of CPU seconds, in one run.

    python benchmarks/run_all.py --out costs.json

Cases take turns, in rounds; other work on the machine moves ratios of CPU
seconds within a round less than the clock. Medians over the rounds, and the
lowest and highest. The first round compiles and does not count. `--only` names
sections. What a hypergradient costs is in `benchmarks/hypergradient.py`.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import rich
import rich.table
import tensorflow as tf
from defaults import augmented
from defaults import dense
from defaults import normalized
from defaults import vgg
from hypergradient import growth
from hypergradient import growth_of

import keras_crossreg as kcr

Cases = dict[str, Callable[[], Any]]
# K and r, with regularization batches as large as those of training.
SETTINGS = [(4, 16), (8, 80)]
BATCH_SIZE = 128
OURS = kcr.layers.GaussianNoiseScale
# Settings of `compile` and `fit`, for `memory`.
ALL_IN_ONE = dict(num_samples=64, samples_per_pass=64)


def resnet(filters: list[int]) -> Callable[..., Any]:
    def convolve(x: Any, count: int) -> Any:
        layer = keras.layers.Conv2D(count, 3, padding="same", use_bias=False)
        return layer(x)

    def body(x: Any, noise: Any) -> Any:
        for count in filters:
            x = normalized(convolve(x, count), noise)
            branch = normalized(convolve(x, count), noise)
            x = keras.layers.Add()([x, convolve(branch, count)])
            x = keras.layers.MaxPooling2D()(x)
        return keras.layers.GlobalAveragePooling2D()(normalized(x, noise))

    return body


def vgg_16(x: Any, noise: Any) -> Any:
    """Thirteen convolutions, and a dense layer as in `examples/paper`."""
    for count, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            x = keras.layers.Conv2D(count, 3, padding="same", use_bias=False)(x)
            x = normalized(x, noise)
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Flatten()(x)
    return normalized(keras.layers.Dense(512, use_bias=False)(x), noise)


# Shape of an input, hidden layers, rows of a batch.
NETWORKS = {
    "small CNN": ((16, 16, 3), vgg([16, 32], 32), BATCH_SIZE),
    "VGG": ((32, 32, 3), vgg([16, 16, 32, 32, 64, 64], 64), BATCH_SIZE),
    "VGG-16": ((32, 32, 3), vgg_16, 16),
    "ResNet": ((16, 16, 3), resnet([16, 32, 64]), BATCH_SIZE),
    "dense": ((64,), dense([256, 256, 256]), BATCH_SIZE),
}


def model_of(
    shape: Any, body: Any, noise: Any, **arguments: Any
) -> kcr.CrossRegModel:
    inputs = keras.Input(shape)
    outputs = keras.layers.Dense(10, activation="softmax")(body(inputs, noise))
    model = kcr.CrossRegModel(inputs, outputs)
    model.compile("adam", "sparse_categorical_crossentropy", **arguments)
    return model


def take_turns(
    cases: Cases,
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, np.ndarray]:
    """CPU seconds, or those of another clock, of each case in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds + 1):
        for name, run in cases.items():
            begin = clock()
            run()
            seconds[name].append(clock() - begin)
    return {name: np.array(s[1:]) for name, s in seconds.items()}


def spread(values: np.ndarray, limit: float | None = None) -> dict[str, Any]:
    """What is reported of one number per round."""
    low, median, high = np.quantile(values, [0.0, 0.5, 1.0]).round(4).tolist()
    return {"median": median, "low": low, "high": high, "limit": limit}


def noise(rounds: int) -> dict[str, Any]:
    """Nanoseconds to make one number of noise."""
    shape = (128, 32, 32, 8)
    generator = kcr.random.SeedGenerator(0)
    kinds: Cases = {
        "keras.random.normal": lambda: keras.random.normal(
            shape, seed=generator
        ),
        "all different": lambda: kcr.random.normal(
            shape, generator, "float32", reuse=1
        ),
        "sampling": lambda: kcr.random.normal(
            shape, generator, "float32", num_samples=16
        ),
        "training": lambda: kcr.random.normal(shape, generator, "float32"),
    }
    cases: Cases = {k: tf.function(kind) for k, kind in kinds.items()}
    for kind in ("sampling", "training"):
        cases[f"{kind}, jit"] = tf.function(kinds[kind], jit_compile=True)
    return {
        f"{name}, ns": spread(1e9 * s / np.prod(shape))
        for name, s in take_turns(cases, rounds).items()
    }


def keras_noise(initial_scale: float = 0.3) -> keras.layers.Layer:
    return keras.layers.GaussianNoise(initial_scale)


class Fit:
    """Calls `fit` on random data; as with rho frozen, without `num_samples`.

    `network`: one of those above, or its name.
    """

    def __init__(
        self,
        network: Any,
        noise: Any,
        steps: int = 4,
        num_samples: int | None = None,
        reg_freq: int = 1,
        reg_rows: int | None = None,
        epochs: int = 1,
        **settings: Any,
    ) -> None:
        if isinstance(network, str):
            network = NETWORKS[network]
        shape, body, rows = network
        # Rho steps from the first on: these runs are short.
        settings |= dict(
            num_samples=num_samples or 8, reg_freq=reg_freq, reg_warmup=0
        )
        self.model = model_of(shape, body, noise, **settings)
        x = np.random.default_rng(0).normal(size=(steps * rows, *shape))
        x, y = x.astype("float32"), np.arange(steps * rows) % 10
        self.arguments: dict[str, Any] = dict(
            x=x, y=y, batch_size=rows, epochs=epochs, verbose=0
        )
        if num_samples:
            reg = x[: reg_rows or rows] + 1.0, y[: reg_rows or rows]
            self.arguments |= dict(reg_data=reg, reg_batch_size=len(reg[0]))
        else:
            self.model.freeze_rho()

    def __call__(self) -> None:
        self.model.fit(**self.arguments)


def rho_step(rounds: int) -> dict[str, Any]:
    """Of a theta step with noise over one without; of rho steps every r."""
    found = {}
    for name in NETWORKS:
        cases: Cases = {
            "none": Fit(name, None),
            "keras": Fit(name, keras_noise),
            "frozen": Fit(name, OURS),
        }
        for k, _ in SETTINGS:
            cases[f"K={k}"] = Fit(name, OURS, num_samples=k)
        seconds = take_turns(cases, rounds)
        none, frozen = seconds["none"], seconds["frozen"]
        found[f"{name}: noise / none"] = spread(frozen / none)
        keras_cost = spread(seconds["keras"] / none)
        found[f"{name}: keras.layers.GaussianNoise / none"] = keras_cost
        for k, r in SETTINGS:
            # A rho step after every step, and so r times too many.
            cost = 1 + (seconds[f"K={k}"] / frozen - 1) / r
            limit = 1 + k / r * 2 / 3
            found[f"{name}: K={k}, r={r} / frozen"] = spread(cost, limit)
            base = frozen / seconds["keras"]
            over_keras = spread(cost * base, limit)
            found[f"{name}: K={k}, r={r} / GaussianNoise"] = over_keras
    return found


def fit(rounds: int) -> dict[str, Any]:
    """Of `fit` over the same with rho frozen: as above, of 480 steps."""
    found = {}
    for k, r in SETTINGS:
        for steps_per_execution in (1, 8):
            more = dict(
                steps=80, epochs=6, steps_per_execution=steps_per_execution
            )
            cases: Cases = {
                "frozen": Fit("dense", OURS, **more),
                "ours": Fit("dense", OURS, num_samples=k, reg_freq=r, **more),
            }
            seconds = take_turns(cases, rounds)
            label = f"dense: K={k}, r={r}, {steps_per_execution} step(s)"
            found[f"{label} an execution"] = spread(
                seconds["ours"] / seconds["frozen"], 1 + k / r * 2 / 3
            )
    return found


def defaults_cost(rounds: int) -> dict[str, Any]:
    """Of `fit` with all defaults, over training without noise.

    On the network of `defaults.py --data cifar10` and `cifar10_augmented`. The
    run that learns holds a tenth as much out as it trains on; the baseline and
    the refit have all. Rho wait for 200 of its 1,580 steps.
    """
    shape, steps = (32, 32, 3), 12  # And one of rho.
    body = vgg([32, 32, 64, 64, 128, 128], 128)
    plain = shape, body, BATCH_SIZE
    ours = {
        "noise": plain,
        "noise, augmentation": (shape, augmented(body), BATCH_SIZE),
    }
    cases: Cases = {
        "none": Fit(plain, None, steps),
        "keras": Fit(plain, keras_noise, steps),
    }
    learning = dict(num_samples=16, reg_freq=12, reg_rows=BATCH_SIZE // 8)
    for name, network in ours.items():
        cases[name] = Fit(network, OURS, steps)
        cases[f"{name}, learn"] = Fit(network, OURS, steps, **learning)
    seconds = take_turns(cases, rounds)
    none = seconds["none"]
    found = {"keras.layers.GaussianNoise": spread(seconds["keras"] / none)}
    for name in ours:
        refit, learn = seconds[name], seconds[f"{name}, learn"]
        learn = (200 * refit + 1380 * learn) / 1580 * 10 / 11
        found[f"{name}: one run"] = spread(learn / none, 1.25)
        both = spread((learn + refit) / none, 2.25)
        found[f"{name}: one run and a refit"] = both
    return found


def waiting(rounds: int) -> dict[str, Any]:
    """By the clock: Keras alone, fits of arrays over those of untuned data."""
    options = tf.data.Options()
    options.autotune.enabled = False
    found = {}
    for steps in (10, 20, 40, 80):
        arrays, untuned = (Fit("small CNN", None, steps) for _ in range(2))
        x, y, rows = map(untuned.arguments.pop, ("x", "y", "batch_size"))
        data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x))
        data = data.batch(rows).with_options(options)
        untuned.arguments |= dict(x=data, shuffle=False)
        cases: Cases = {"arrays": arrays, "untuned": untuned}
        seconds = take_turns(cases, rounds, time.perf_counter)
        work = np.median(seconds["untuned"])
        ratio = seconds["arrays"] / seconds["untuned"]
        found[f"{steps} steps, {work:.2f} s"] = spread(ratio)
    return found


def memory(rounds: int) -> dict[str, Any]:
    """What the process grows by in a fit, over that with 16 samples."""
    found: dict[str, Any] = {}
    first = None
    for setting in (dict(num_samples=16), dict(num_samples=64), ALL_IN_ONE):
        peak = growth_of(__file__, json.dumps(setting))
        first = first or peak
        label = ", ".join(f"{name}={value}" for name, value in setting.items())
        found[f"VGG: {label}"] = spread(np.array([peak / first]))
    return found


def predict(rounds: int) -> dict[str, Any]:
    """Of an averaged `predict` at K = 16, over 16 plain predictions."""
    found = {}
    for name, (shape, body, rows) in NETWORKS.items():
        x = np.random.default_rng(0).normal(size=(rows, *shape))
        x = x.astype("float32")

        def at_the_end(inputs: Any, noise: Any, body: Any = body) -> Any:
            x = body(inputs, None)
            return noise()(x) if noise else x

        models = {
            "plain": model_of(shape, body, None),
            "noise in every layer": model_of(shape, body, OURS),
            "noise in the last": model_of(shape, at_the_end, OURS),
        }
        size = rows // 4
        tiled = np.concatenate([x] * 16)
        cases: Cases = {}
        for case, model in models.items():
            model.compile(eval_num_samples=16)
            plain = case == "plain"
            cases[case] = functools.partial(
                model.predict,
                tiled if plain else x,
                16 * size if plain else size,
                verbose=0,
            )
        seconds = take_turns(cases, rounds)
        plain_seconds = seconds.pop("plain")
        for case, s in seconds.items():
            found[f"{name}: {case}"] = spread(s / plain_seconds, 1.05)
    return found


def augmentation(rounds: int) -> dict[str, Any]:
    """Of `LearnedAugmentation`, 128 images warped, over Keras's ways to it."""
    images = np.random.default_rng(0).random((128, 32, 32, 3), "float32")
    images = tf.constant(images)
    layer = kcr.layers.LearnedAugmentation(brightness=None, contrast=None)
    layer(images)
    # What it does, each with the one transform that it is made of.
    fixed = [
        keras.layers.RandomTranslation(0.03, 0.03),
        keras.layers.RandomRotation(0.01),
        keras.layers.RandomShear(0.05),
        keras.layers.RandomZoom(0.05),
    ]

    def chain(layers: Any) -> Any:
        outputs = images
        for each in layers:
            outputs = each(outputs, training=True)
        return outputs

    rows = tf.cast(tf.range(32), "float32") + 0.5
    places = tf.stack(tf.meshgrid(rows, rows, tf.range(3.0), indexing="ij"))

    def coordinates() -> Any:
        return tf.map_fn(
            lambda image: keras.ops.image.map_coordinates(image, places, 1),
            images,
        )

    cases = {
        "ours": tf.function(lambda: layer(images, training=True)),
        "all": tf.function(lambda: chain(fixed)),
        "one": tf.function(lambda: chain(fixed[:1])),
        "map_coordinates": tf.function(coordinates),
    }
    seconds = take_turns(cases, rounds)
    ours = seconds["ours"]
    return {
        "over Keras's four layers": spread(ours / seconds["all"], 2),
        "over one of them": spread(ours / seconds["one"]),
        "over map_coordinates": spread(
            ours / seconds["map_coordinates"], 1 / 5
        ),
    }


def scaling(rounds: int) -> dict[str, Any]:
    """Of training steps, over those at the first value of each row."""

    def case(
        k: int = 8,
        r: int = 1,
        rows: int = 512,
        depth: int = 2,
        axis: Any = None,
    ) -> Callable[[], Any]:
        x = inputs = keras.Input((64,))
        for _ in range(depth):
            x = keras.layers.Dense(512)(x)
            x = keras.layers.Reshape((16, 32))(x)
            x = OURS(axis=axis)(x)
            x = keras.layers.Flatten()(x)
        model = kcr.CrossRegModel(inputs, keras.layers.Dense(1)(x))
        model.compile("adam", "mse", num_samples=k, reg_freq=r)
        x, y = np.ones((512, 64), "float32"), np.ones((512, 1), "float32")
        reg = np.zeros((rows, 64), "float32"), y[:1].repeat(rows, 0)
        return lambda: model.fit(
            x, y, batch_size=32, verbose=0, reg_data=reg, reg_batch_size=32
        )

    # Of more rho than its examples can tell apart.
    warnings.simplefilter("ignore", UserWarning)
    rows_of: dict[str, dict[int, Any]] = {
        "rho": {
            8: case(depth=8),
            128: case(depth=8, axis=1),
            4096: case(depth=8, axis=(1, 2)),
        },
        "K": {k: case(k=k) for k in (2, 4, 8, 16)},
        "r": {r: case(r=r) for r in (1, 2, 4, 8, 16)},
        "examples in reg_data": {n: case(rows=n) for n in (64, 512, 4096)},
        "depth": {d: case(depth=d) for d in (1, 2, 4, 8)},
    }
    found = {}
    for label, by_value in rows_of.items():
        cases = {str(value): run for value, run in by_value.items()}
        seconds = take_turns(cases, rounds)
        first = seconds[next(iter(cases))]
        for value, s in seconds.items():
            found[f"{label}: {value}"] = spread(s / first)
    return found


def draw(found: dict[str, Any], path: str) -> None:
    """Each row of `scaling`: median, lowest and highest."""
    import matplotlib.pyplot as plt

    rows: dict[str, list[Any]] = {}
    for label, row in found.items():
        name, value = label.split(": ")
        rows.setdefault(name, []).append((int(value), row))
    _, axes = plt.subplots(
        1, len(rows), figsize=(11, 2.4), layout="constrained"
    )
    for ax, (name, points) in zip(axes, rows.items(), strict=True):
        x = [value for value, _ in points]
        y = np.array([[r["low"], r["median"], r["high"]] for _, r in points]).T
        ax.errorbar(x, y[1], [y[1] - y[0], y[2] - y[1]], marker="o", capsize=2)
        if name not in ("K", "depth"):  # Where a line is straight.
            ax.set_xscale("log", base=2)
        ax.set_xticks(x, x)
        ax.set_ylim(0, 1.1 * y.max())
        ax.set_xlabel(name)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("time of a step")
    plt.savefig(path, dpi=150)


def import_time(rounds: int) -> dict[str, Any]:
    """Seconds that `import keras_crossreg` adds to `import keras`."""
    code = (
        "import time, keras; begin = time.process_time(); "
        "import keras_crossreg; print(time.process_time() - begin)"
    )
    added = [
        float(
            subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for _ in range(rounds)
    ]
    return {"seconds": spread(np.array(added), 0.2)}


SECTIONS = [
    noise,
    rho_step,
    fit,
    defaults_cost,
    waiting,
    memory,
    predict,
    augmentation,
    scaling,
    import_time,
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--out", help="a file for the numbers, as JSON")
    parser.add_argument("--figure", help="a file for the picture of scaling")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        setting = json.loads(arguments.memory_of)
        run = Fit("VGG", OURS, reg_rows=128, **setting)
        print("kB:", growth(run))
        return
    results = {}
    for section in SECTIONS:
        if arguments.only and section.__name__ not in arguments.only:
            continue
        found = results[section.__name__] = section(arguments.rounds)
        table = rich.table.Table("", "median", "from to", "limit")
        table.title = f"{section.__name__}. {section.__doc__}"
        for name, row in found.items():
            limit = "" if row["limit"] is None else f"{row['limit']:.2f}"
            range_ = f"{row['low']:.2f} to {row['high']:.2f}"
            table.add_row(name, f"{row['median']:.2f}", range_, limit)
        rich.print(table)
    if arguments.figure:
        draw(results["scaling"], arguments.figure)
    if arguments.out:
        pathlib.Path(arguments.out).write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
