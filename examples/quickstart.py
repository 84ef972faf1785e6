"""Learned regularization on scikit-learn's digits, in under a minute.

A dense network on few examples overfits, and is too sure of itself. Trains it

1. without regularization, on all the examples;
2. cross-regularized: noise and augmentation are learned on 80 of them;
3. refitted: anew on all of them, with what the second run learned.

Prints a table and writes `quickstart.png` into the current folder.
"""

from __future__ import annotations

import os
import time
from typing import Any

# Before TensorFlow, which is talkative.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")

import keras
import matplotlib.pyplot as plt
import rich
import rich.table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_crossreg as kcr

EPOCHS = 100
SEED = 0


def build(regularized: bool) -> kcr.CrossRegModel:
    x = inputs = keras.Input((8, 8, 1))
    if regularized:
        x = kcr.layers.LearnedAugmentation(
            translation=0.5,
            rotation=5.0,
            shear=5.0,
            brightness=None,
            contrast=None,
            fill_mode="constant",
            name="augmentation",
        )(x)
    x = keras.layers.Flatten()(x)
    if regularized:
        x = kcr.layers.GaussianNoiseScale(name="noise_0")(x)
    for i in range(3):
        x = keras.layers.Dense(256, use_bias=False)(x)
        x = keras.layers.BatchNormalization(center=False, scale=False)(x)
        if regularized:
            x = kcr.layers.GaussianNoiseScale(name=f"noise_{i + 1}")(x)
        x = keras.layers.ReLU()(x)
    outputs = keras.layers.Dense(10, activation="softmax")(x)
    model = kcr.CrossRegModel(inputs, outputs)
    model.compile(
        optimizer="adam",
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


class Progress(keras.callbacks.Callback):
    """One bar a run."""

    def __init__(self, title: str) -> None:
        super().__init__()
        print(title)
        self.bar = keras.utils.Progbar(EPOCHS, unit_name="epoch")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.bar.update(epoch + 1, [("loss", logs["loss"])])


def main() -> None:
    keras.utils.set_random_seed(SEED)
    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8, 1).astype("float32") / 16.0
    x, x_test, y, y_test = train_test_split(
        x, y, train_size=500, stratify=y, random_state=SEED
    )
    x_train, y_train, x_reg, y_reg = x[:420], y[:420], x[420:], y[420:]
    fit: dict[str, Any] = dict(epochs=EPOCHS, batch_size=32, verbose=0)

    results = {}

    def measure(name: str, model: keras.Model, begin: float) -> None:
        seconds = time.perf_counter() - begin
        p = model.predict(x_test, batch_size=len(x_test), verbose=0)
        rho = model.get_rho().items()
        sigma = [value for path, value in rho if path.startswith("noise")]
        results[name] = (p, seconds, sigma)

    begin = time.perf_counter()
    baseline = build(regularized=False)
    bar = Progress("Without regularization, on all 500 examples")
    baseline.fit(x, y, callbacks=[bar], **fit)
    measure("no regularization", baseline, begin)

    begin = time.perf_counter()
    model = build(regularized=True)
    bar = Progress("Cross-regularized, 420 + 80 examples")
    learned = kcr.callbacks.RhoHistory()
    model.fit(
        x_train,
        y_train,
        reg_data=(x_reg, y_reg),
        callbacks=[bar, learned],
        **fit,
    )
    measure("cross-regularized", model, begin)

    begin = time.perf_counter()
    bar = Progress("Refitted on all 500 examples, with what was learned")
    final = kcr.refit(model, x, y, callbacks=[bar], **fit)
    measure("refitted", final, begin)

    print()
    model.rho_summary()
    rich.print(table(results, y_test))
    draw(results, y_test, learned)
    print("Wrote quickstart.png")


def table(results: dict[str, Any], y: Any) -> rich.table.Table:
    result = rich.table.Table(title=f"Digits, {len(y)} test images")
    result.add_column("Run")
    for name in ("Accuracy", "NLL", "ECE", "Seconds", "Sigma by layer"):
        result.add_column(name, justify="right")
    for name, (p, seconds, sigma) in results.items():
        accuracy = keras.metrics.SparseCategoricalAccuracy()(y, p)
        nll = kcr.metrics.NegativeLogLikelihood()(y, p)
        ece = kcr.metrics.ExpectedCalibrationError()(y, p)
        result.add_row(
            name,
            f"{100 * accuracy:.1f} %",
            f"{nll:.3f}",
            f"{ece:.3f}",
            f"{seconds:.1f}",
            " ".join(f"{value:.2f}" for value in sigma) or "-",
        )
    return result


def draw(results: dict[str, Any], y: Any, learned: Any) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
    kcr.visualization.plot_rho_history(learned, "noise", ax=axes[0])
    runs = "no regularization", "cross-regularized"
    for ax, name in zip(axes[1:], runs, strict=True):
        kcr.visualization.plot_reliability_diagram(
            y, results[name][0], label=name, ax=ax
        )
    figure.savefig("quickstart.png", dpi=150)


if __name__ == "__main__":
    main()
