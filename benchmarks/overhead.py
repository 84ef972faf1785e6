"""Cost of cross-regularized training: ratios of epochs, medians, in one run.

    python benchmarks/overhead.py

Three models of the same network take turns, a `fit` each: without noise, with
noise of a fixed sigma, and cross-regularized by the defaults. Ratios of the CPU
seconds of each round, which other work on the machine moves less than the
clock, medians over the rounds; what `fit` does once is in them. The
regularization pass should add `K * B_reg / (r * B) * 2/3` to the second.
"""

from __future__ import annotations

import argparse
import time

import keras
import numpy as np
from defaults import dense
from defaults import vgg

import keras_crossreg as kcr
from keras_crossreg import cross_reg_model as defaults

NETWORKS = {
    "VGG, 32x32x3": ((32, 32, 3), vgg([16, 16, 32, 32, 64, 64], 64), 1536),
    "dense, 64": ((64,), dense([256, 256, 256]), 20000),
}
BATCH_SIZE = 128


def model_of(shape, body, noise) -> kcr.CrossRegModel:
    inputs = keras.Input(shape)
    outputs = keras.layers.Dense(10, activation="softmax")(body(inputs, noise))
    model = kcr.CrossRegModel(inputs, outputs)
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    limit = defaults.DEFAULT_NUM_SAMPLES / defaults.DEFAULT_REG_FREQ * 2 / 3
    print(f"The regularization pass should add {100 * limit:.0f} %.")
    for name, (shape, body, size) in NETWORKS.items():
        x = np.random.default_rng(0).normal(size=(size, *shape))
        x, y = x.astype("float32"), np.arange(size) % 10
        reg = x[:512] + 1.0, y[:512]
        plain = model_of(shape, body, None)
        fixed = model_of(shape, body, kcr.layers.GaussianNoiseScale)
        fixed.freeze_rho()
        learned = model_of(shape, body, kcr.layers.GaussianNoiseScale)
        seconds: dict[str, list[float]] = {"plain": [], "fixed": [], "ours": []}
        for _ in range(rounds + 1):
            for key, model, more in (
                ("plain", plain, {}),
                ("fixed", fixed, {}),
                ("ours", learned, {"reg_data": reg}),
            ):
                begin = time.process_time()
                # Four epochs, so that r divides their steps or nearly so.
                model.fit(
                    x, y, batch_size=BATCH_SIZE, epochs=4, verbose=0, **more
                )
                seconds[key].append(time.process_time() - begin)
        # The first round compiles.
        plain_, fixed_, ours = (np.array(v[1:]) for v in seconds.values())
        for label, ratio in (
            ("fixed noise / no noise", fixed_ / plain_),
            ("cross-regularized / fixed noise", ours / fixed_),
            ("cross-regularized / no noise", ours / plain_),
        ):
            low, high = ratio.min(), ratio.max()
            print(
                f"{name}: {label}: {np.median(ratio):.2f} "
                f"({low:.2f} to {high:.2f})"
            )


if __name__ == "__main__":
    main()
