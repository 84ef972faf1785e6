"""Costs of the library, as ratios of CPU seconds, in one run.

    python benchmarks/run_all.py --out costs.json

Cases take turns, in rounds; other work on the machine moves ratios of CPU
seconds within a round less than the clock. Medians over the rounds, and the
lowest and highest. The first round compiles and does not count. `--only` names
sections. What a hypergradient costs is in `benchmarks/hypergradient.py`.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import rich
import rich.table
import tensorflow as tf
from defaults import dense
from defaults import normalized
from defaults import vgg

import keras_crossreg as kcr

Cases = dict[str, Callable[[], Any]]
# K, r and steps per execution.
SETTINGS = [(8, 48, 1), (4, 16, 1), (8, 80, 1), (8, 80, 8)]
BATCH_SIZE = 128


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


# Shape of an input, hidden layers, examples.
NETWORKS = {
    "VGG": ((32, 32, 3), vgg([16, 16, 32, 32, 64, 64], 64), 1536),
    "small CNN": ((16, 16, 3), vgg([16, 32], 32), 5120),
    "ResNet": ((16, 16, 3), resnet([16, 32, 64]), 2560),
    "dense": ((64,), dense([256, 256, 256]), 10240),
}


def model_of(
    shape: Any, body: Any, noise: Any, **arguments: Any
) -> kcr.CrossRegModel:
    inputs = keras.Input(shape)
    outputs = keras.layers.Dense(10, activation="softmax")(body(inputs, noise))
    model = kcr.CrossRegModel(inputs, outputs)
    model.compile("adam", "sparse_categorical_crossentropy", **arguments)
    return model


def take_turns(cases: Cases, rounds: int) -> dict[str, np.ndarray]:
    """CPU seconds of each case, in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds + 1):
        for name, run in cases.items():
            begin = time.process_time()
            run()
            seconds[name].append(time.process_time() - begin)
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
        "sampling": lambda: kcr.random.normal(shape, generator, "float32"),
        "training": lambda: kcr.random.normal(
            shape, generator, "float32", kcr.random.TRAINING_REUSE
        ),
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


def fit(rounds: int) -> dict[str, Any]:
    """Of `fit`, over the same network with its noise fixed."""
    found = {}
    for name, (shape, body, size) in NETWORKS.items():
        x = np.random.default_rng(0).normal(size=(size, *shape))
        x, y = x.astype("float32"), np.arange(size) % 10
        reg = x[:512] + 1.0, y[:512]

        def case(noise, freeze, settings, x=x, y=y, reg=reg, **network):
            # Epochs that r divides, or nearly so.
            epochs = max(1, round(80 * BATCH_SIZE / len(x)))
            num_samples, reg_freq, steps_per_execution = settings
            model = model_of(
                **network,
                noise=noise,
                num_samples=num_samples,
                reg_freq=reg_freq,
                steps_per_execution=steps_per_execution,
            )
            more = {}
            if freeze:
                model.freeze_rho()
            else:
                more["reg_data"] = reg
            return lambda: model.fit(
                x, y, batch_size=BATCH_SIZE, epochs=epochs, verbose=0, **more
            )

        network = dict(shape=shape, body=body)
        ours = kcr.layers.GaussianNoiseScale
        cases = {
            "no noise": case(None, True, SETTINGS[0], **network),
            "fixed": case(ours, True, SETTINGS[0], **network),
            "fixed, 8": case(ours, True, SETTINGS[-1], **network),
            "keras": case(keras_noise, True, SETTINGS[0], **network),
        }
        for settings in SETTINGS:
            cases[str(settings)] = case(ours, False, settings, **network)
        seconds = take_turns(cases, rounds)
        plain, fixed = seconds["no noise"], seconds["fixed"]
        found[f"{name}: fixed noise / none"] = spread(fixed / plain)
        found[f"{name}: keras.layers.GaussianNoise / none"] = spread(
            seconds["keras"] / plain
        )
        for settings in SETTINGS:
            num_samples, reg_freq, steps = settings
            label = f"{name}: K={num_samples}, r={reg_freq}"
            base = fixed
            if steps > 1:
                base = seconds["fixed, 8"]
                label += f", steps_per_execution={steps}"
            limit = 1 + num_samples / reg_freq * 2 / 3
            cost = seconds[str(settings)]
            found[f"{label}, over fixed noise"] = spread(cost / base, limit)
            found[f"{label}, over none"] = spread(cost / plain)
    return found


def predict(rounds: int) -> dict[str, Any]:
    """Of an averaged `predict` at K = 16, over 16 plain predictions."""
    found = {}
    for name, (shape, body, _) in NETWORKS.items():
        x = np.random.default_rng(0).normal(size=(128, *shape))
        x = x.astype("float32")
        model = model_of(shape, body, kcr.layers.GaussianNoiseScale)
        model.compile(eval_num_samples=16)
        plain = model_of(shape, body, None)
        tiled = np.concatenate([x] * 16)
        cases: Cases = {
            "plain": lambda m=plain, x=tiled: m.predict(x, 16 * 32, verbose=0),
            "ours": lambda m=model, x=x: m.predict(x, 32, verbose=0),
        }
        seconds = take_turns(cases, rounds)
        found[name] = spread(seconds["ours"] / seconds["plain"], 1.05)
    return found


def augmentation(rounds: int) -> dict[str, Any]:
    """Of `LearnedAugmentation`'s warp, over Keras's two for 128 images."""
    images = np.random.default_rng(0).random((128, 32, 32, 3), "float32")
    images = tf.constant(images)
    layer = kcr.layers.LearnedAugmentation(brightness=None, contrast=None)
    layer(images)
    transform = tf.tile([[1.0, 0.1, 1.0, -0.1, 1.0, 1.0, 0.0, 0.0]], (128, 1))
    rows = tf.cast(tf.range(32), "float32") + 0.5
    places = tf.stack(tf.meshgrid(rows, rows, tf.range(3.0), indexing="ij"))

    def coordinates() -> Any:
        return tf.map_fn(
            lambda image: keras.ops.image.map_coordinates(image, places, 1),
            images,
        )

    cases = {
        "ours": tf.function(lambda: layer(images, training=True)),
        "affine_transform": tf.function(
            lambda: keras.ops.image.affine_transform(images, transform)
        ),
        "map_coordinates": tf.function(coordinates),
    }
    seconds = take_turns(cases, rounds)
    ours = seconds["ours"]
    return {
        "over affine_transform": spread(ours / seconds["affine_transform"], 2),
        "over map_coordinates": spread(
            ours / seconds["map_coordinates"], 1 / 5
        ),
    }


def scaling(rounds: int) -> dict[str, Any]:
    """Of a theta step and a rho step, over those at the first of a row."""

    def case(units=1000, depth=1, k=8, rows=512, axis=None):
        inputs = keras.Input((64,))
        x = inputs
        for _ in range(depth):
            x = keras.layers.Dense(units)(x)
            x = kcr.layers.GaussianNoiseScale(axis=axis)(x)
        model = kcr.CrossRegModel(inputs, keras.layers.Dense(1)(x))
        model.compile("adam", "mse", num_samples=k, reg_freq=1)
        x, y = np.ones((512, 64), "float32"), np.ones((512, 1), "float32")
        reg = np.zeros((rows, 64), "float32"), y[:1].repeat(rows, 0)
        return lambda: model.fit(
            x, y, batch_size=64, verbose=0, reg_data=reg, reg_batch_size=64
        )

    rows_of = {
        "number of rho, 10,000 units": [
            ("1", case(10_000)),
            ("10,000", case(10_000, axis=-1)),
        ],
        "K": [(str(k), case(k=k)) for k in (4, 8, 16)],
        "rows of reg_data": [(str(n), case(rows=n)) for n in (64, 4096)],
        "depth": [(str(d), case(depth=d)) for d in (1, 2, 4)],
    }
    found = {}
    for label, cases in rows_of.items():
        seconds = take_turns(dict(cases), rounds)
        first = seconds[cases[0][0]]
        for name, s in list(seconds.items())[1:]:
            found[f"{label}: {name} over {cases[0][0]}"] = spread(s / first)
    return found


def import_time(rounds: int) -> dict[str, Any]:
    """Of `import keras_crossreg`, over `import keras`."""
    seconds: dict[str, list[float]] = {"keras": [], "keras_crossreg": []}
    for _ in range(rounds):
        for name, values in seconds.items():
            code = f"import time, {name}; print(time.process_time())"
            output = subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            values.append(float(output))
    ours, theirs = (np.array(v) for v in reversed(seconds.values()))
    return {"keras_crossreg / keras": spread(ours / theirs)}


SECTIONS = [noise, fit, predict, augmentation, scaling, import_time]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--out", help="a file for the numbers, as JSON")
    arguments = parser.parse_args()
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
    if arguments.out:
        pathlib.Path(arguments.out).write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
