"""Makes the figures of the documentation, from the survey of docs/defaults.md.

Run from the root of the repository:

    python docs/figures/make.py
"""

from __future__ import annotations

import itertools
import os
import pathlib
import sys

# Before TensorFlow, which is talkative.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))

import keras
import matplotlib.pyplot as plt
import numpy as np
from defaults import affairs
from defaults import build

import keras_crossreg as kcr


def main() -> None:
    keras.utils.set_random_seed(0)
    data = affairs()
    x, y = data["x"], data["y"]
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    m, n = data["train"], data["train"] + data["reg"]

    count = itertools.count(1)
    model = build(
        data,
        lambda: kcr.layers.GaussianNoiseScale(name=f"noise_{next(count)}"),
    )
    baseline = build(data, None)
    for network in model, baseline:
        network.compile("adam", "sparse_categorical_crossentropy")
    learned = kcr.callbacks.RhoHistory()
    fit = dict(epochs=data["epochs"], batch_size=data["batch_size"], verbose=0)
    baseline.fit(x[:n], y[:n], **fit)
    model.fit(
        x[:m], y[:m], reg_data=(x[m:n], y[m:n]), callbacks=[learned], **fit
    )
    model.rho_summary()

    save(kcr.visualization.plot_rho_history(learned), "rho_history")
    save(kcr.visualization.plot_rho_by_layer(model), "rho_by_layer")
    ax = None
    networks = {"no regularization": baseline, "cross-regularized": model}
    for label, network in networks.items():
        p = network.predict(x[n:], batch_size=500, verbose=0)
        ax = kcr.visualization.plot_reliability_diagram(
            y[n:], p, label=label, ax=ax
        )
    save(ax, "reliability")


def save(ax: plt.Axes, name: str) -> None:
    # The salt makes the names in the file the same in every run.
    with plt.rc_context({"svg.hashsalt": name}):
        ax.figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
