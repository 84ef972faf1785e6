"""Makes the figures of the documentation from the quickstart's network.

Run from the root of the repository:

    python docs/figures/make.py
"""

from __future__ import annotations

import os
import pathlib
import sys

# Before TensorFlow, which is talkative.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "examples"))

import keras
import matplotlib.pyplot as plt
import quickstart
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_crossreg as kcr


def main() -> None:
    keras.utils.set_random_seed(quickstart.SEED)
    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8, 1).astype("float32") / 16.0
    x, x_test, y, y_test = train_test_split(
        x, y, train_size=500, stratify=y, random_state=quickstart.SEED
    )
    baseline = quickstart.build(regularized=False)
    model = quickstart.build(regularized=True)
    learned = kcr.callbacks.RhoHistory()
    fit = dict(epochs=quickstart.EPOCHS, batch_size=32, verbose=0)
    baseline.fit(x, y, **fit)
    model.fit(
        x[:420],
        y[:420],
        reg_data=(x[420:], y[420:]),
        callbacks=[learned],
        **fit,
    )
    model.rho_summary()

    ax = kcr.visualization.plot_rho_history(learned, "noise")
    save(ax, "rho_history")
    ax = kcr.visualization.plot_rho_by_layer(model, "noise")
    save(ax, "rho_by_layer")
    ax = None
    for label, m in ("no regularization", baseline), ("learned", model):
        p = m.predict(x_test, batch_size=len(x_test), verbose=0)
        ax = kcr.visualization.plot_reliability_diagram(
            y_test, p, label=label, ax=ax
        )
    save(ax, "reliability")


def save(ax: plt.Axes, name: str) -> None:
    # The hash makes the names in the file the same in every run.
    with plt.rc_context({"svg.hashsalt": name}):
        ax.figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
