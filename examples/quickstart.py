"""Learned noise on a survey, in about a minute.

A dense network on 2,300 answers memorizes them, and is too sure of itself.
Dropout helps, but which rate? Trains, on three cuts of the data,

1. without dropout, and with a rate of .1, of .25 and of .5, by Keras alone;
2. once with noise of learned strength, and no guess.

All have the same network, rows and epochs. Prints the mean of the cuts and its
standard error, and writes `quickstart.png` into the current folder.

    python examples/quickstart.py
    python examples/quickstart.py --cuts 0 --epochs 4
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from typing import Any

# Before TensorFlow, which is talkative.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")
# In networks as small as these, threads of PyTorch wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
logging.getLogger("tensorflow").setLevel(logging.ERROR)

import keras
import matplotlib.pyplot as plt
import numpy as np
import rich
import rich.table
from statsmodels.datasets import fair

import keras_crossreg as kcr

RATES = 0.0, 0.1, 0.25, 0.5
LEARNED = "learned noise"
BATCH_SIZE = 128
# Rows for theta and for rho; Keras alone trains on both. The rest is to test.
TRAIN, REG = 2000, 300
BLUE, GREY = "#0072B2", "0.45"


def load(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Eight answers each, and whether there was an affair; no two are alike."""
    table = fair.load_pandas().data
    table["affairs"] = table["affairs"] > 0
    table = table.drop_duplicates().sample(frac=1.0, random_state=seed)
    y = table.pop("affairs").to_numpy("int32")
    mean, std = table[:TRAIN].mean(), table[:TRAIN].std()
    return ((table - mean) / std).to_numpy("float32"), y


def build(rate: float = 0.0) -> keras.Model:
    """A network as users have it."""
    x = inputs = keras.Input((8,))
    for i in range(3):
        x = keras.layers.Dense(128, use_bias=False)(x)
        x = keras.layers.BatchNormalization(name=f"norm_{i + 1}")(x)
        x = keras.layers.ReLU()(x)
        x = keras.layers.Dropout(rate)(x) if rate else x
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    return keras.Model(inputs, outputs)


def compile_for(model: keras.Model, rows: int, epochs: int) -> None:
    steps = epochs * -(-rows // BATCH_SIZE)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(rate), loss)


def one_cut(seed: int, epochs: int) -> tuple[dict[str, Any], Any]:
    """Scores by run, and what was learned over the epochs."""
    x, y = load(seed)
    n = TRAIN + REG
    fit: Any = dict(epochs=epochs, batch_size=BATCH_SIZE, verbose=0)
    scores = {}

    def measure(name: str, model: keras.Model, begin: float) -> None:
        p = model.predict(x[n:], batch_size=1024, verbose=0)
        scores[name] = {
            "accuracy, %": 100 * float(np.mean(p.argmax(-1) == y[n:])),
            "NLL": float(kcr.metrics.NegativeLogLikelihood()(y[n:], p)),
            "ECE": float(kcr.metrics.ExpectedCalibrationError()(y[n:], p)),
            "seconds": time.perf_counter() - begin,
        }

    for rate in RATES:
        keras.utils.set_random_seed(seed)
        begin = time.perf_counter()
        model = build(rate)
        compile_for(model, n, epochs)
        model.fit(x[:n], y[:n], **fit)
        measure(f"dropout {rate:g}" if rate else "no dropout", model, begin)

    keras.utils.set_random_seed(seed)
    begin = time.perf_counter()
    model = kcr.add_noise(build())
    compile_for(model, TRAIN, epochs)
    learned = kcr.callbacks.RhoHistory()
    model.fit(
        x[:TRAIN],
        y[:TRAIN],
        reg_data=(x[TRAIN:n], y[TRAIN:n]),
        # The second half trains on all rows, with the noise that was learned.
        merge_epochs=epochs // 2,
        callbacks=[learned],
        **fit,
    )
    measure(LEARNED, model, begin)
    model.rho_summary()
    return scores, learned


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cuts", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args(arguments)
    scores, learned = [], []
    for seed in options.cuts:
        print(f"Cut {seed}: five networks, {options.epochs} epochs of each")
        cut, history = one_cut(seed, options.epochs)
        scores.append(cut)
        learned.append(history)
    rich.print(table(scores))
    draw(scores, learned[0], options.epochs)
    print("Wrote quickstart.png")


def mean_and_error(scores: Any, run: str, name: str) -> tuple[float, float]:
    values = [cut[run][name] for cut in scores]
    if len(values) == 1:
        return values[0], 0.0
    return np.mean(values), np.std(values, ddof=1) / len(values) ** 0.5


def table(scores: list[dict[str, Any]]) -> rich.table.Table:
    title = f"Test rows, mean and standard error of {len(scores)} cuts"
    result = rich.table.Table(title=title)
    result.add_column("Run")
    digits = {"accuracy, %": 1, "NLL": 3, "ECE": 3, "seconds": 1}
    for name in digits:
        result.add_column(name, justify="right")
    for run in scores[0]:
        cells = []
        for name, places in digits.items():
            mean, error = mean_and_error(scores, run, name)
            cells.append(f"{mean:.{places}f} ± {error:.{places}f}")
        result.add_row(run, *cells)
    return result


def draw(scores: list[dict[str, Any]], learned: Any, epochs: int) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    kcr.visualization.plot_rho_history(learned, ax=axes[0])
    half = epochs - epochs // 2
    axes[0].axvspan(half + 0.5, epochs + 0.5, color="0.93", zorder=0)
    axes[0].text(
        (half + epochs) / 2 + 0.5,
        0.03,
        "finish,\nall rows",
        transform=axes[0].get_xaxis_transform(),
        ha="center",
        color="0.35",
        fontsize=9,
    )
    titles = {"NLL": "Test NLL", "ECE": "Calibration error (ECE)"}
    for ax, (name, title) in zip(axes[1:], titles.items(), strict=True):
        for place, run in enumerate(scores[0]):
            color = BLUE if run == LEARNED else GREY
            mean, error = mean_and_error(scores, run, name)
            ax.errorbar(
                mean, place, xerr=error, fmt="o", color=color, ms=8, capsize=4
            )
            ax.annotate(
                f"{mean:.3f}",
                (mean, place),
                (0, 9),
                textcoords="offset points",
                ha="center",
                color=color,
                fontsize=9,
            )
        ax.set_yticks(range(len(scores[0])), list(scores[0]))
        ax.set_ylim(len(scores[0]) - 0.5, -0.7)
        ax.margins(x=0.12)
        ax.set_xlabel(f"{title}, lower is better")
        ax.grid(axis="x", alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes[2].set_yticklabels([])
    figure.savefig("quickstart.png", dpi=150)


if __name__ == "__main__":
    main()
