"""A learned norm against scikit-learn's `RidgeCV`, with one held-out split.

Linear regression, the norm of whose weights is learned. Two designs:
isotropic, and of condition number 1000. Two hypergradients: `"direct"`, the
paper's, and `"implicit"`, which adds that the weights answer to their norm.

The first ends at the cross-validation optimum where the design is isotropic,
and elsewhere not; the second ends there in both. Prints a table and writes
`ridge.png` into the current folder: the loss on the regularization set along
the path of ridge solutions, and where each run ended.
"""

from __future__ import annotations

import os

# Before TensorFlow, which is talkative.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")

import keras
import matplotlib.pyplot as plt
import numpy as np
import rich
import rich.table
from full_batch import Rows
from full_batch import error
from full_batch import learn
from sklearn.linear_model import Ridge
from sklearn.linear_model import RidgeCV

import keras_crossreg as kcr

FEATURES, TRAIN, REG, TEST = 10, 60, 200, 2000
STEPS = 6000
STRENGTHS = np.geomspace(1e-5, 1e3, 500)
SEED = 0


def make_data(condition: float, seed: int = SEED) -> list[Rows]:
    """Training, regularization and test rows."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(FEATURES, FEATURES)))
    spectrum = np.geomspace(1, 1 / condition, FEATURES)
    scale = np.sqrt(spectrum * FEATURES / spectrum.sum())
    w = rng.normal(size=FEATURES) / np.sqrt(FEATURES)
    x = rng.normal(size=(TRAIN + REG + TEST, FEATURES)) * scale @ basis.T
    y = x @ w + rng.normal(size=len(x))
    x, y = x.astype("float32"), y.astype("float32")[:, None]
    cuts = [TRAIN, TRAIN + REG]
    return list(zip(np.split(x, cuts), np.split(y, cuts), strict=True))


def cross_validate(train, reg) -> np.ndarray:
    """`RidgeCV` with one split, and its choice refitted on the first part."""
    x, y = (np.concatenate(pair) for pair in zip(train, reg, strict=True))
    rows = np.arange(len(x))
    search = RidgeCV(
        STRENGTHS, fit_intercept=False, cv=[(rows[:TRAIN], rows[TRAIN:])]
    ).fit(x, y[:, 0])
    return solve(train, search.alpha_)


def solve(data, strength: float) -> np.ndarray:
    x, y = data
    return Ridge(strength, fit_intercept=False).fit(x, y[:, 0]).coef_[:, None]


def learn_norm(train, reg, hypergradient) -> np.ndarray:
    """The weights as learned, from the norm that the layer drew."""
    keras.utils.set_random_seed(SEED)
    layer = kcr.layers.NormMagnitude(keras.layers.Dense(1, use_bias=False))
    learn(layer, train, reg, hypergradient, STEPS)
    return layer.magnitude * layer.layer.kernel.numpy()


def main() -> None:
    table = rich.table.Table(title="Learned norm and RidgeCV")
    for column in ("condition", "solution", "distance", "reg MSE", "test MSE"):
        table.add_column(column)
    _, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, condition in zip(axes, (1.0, 1000.0), strict=True):
        train, reg, test = make_data(condition)
        best = cross_validate(train, reg)
        path = [solve(train, s) for s in STRENGTHS]
        axis.plot(
            [np.linalg.norm(w) for w in path],
            [error(reg, w) for w in path],
            color="gray",
            label="ridge solutions",
        )
        solutions = {"RidgeCV": (best, "k*"), "least squares": (path[0], "kx")}
        for hypergradient, style in (("direct", "C1o"), ("implicit", "C0o")):
            w = learn_norm(train, reg, hypergradient)
            solutions[hypergradient] = w, style
        # The first are the largest: the others may lie on them.
        sizes = (14, 8, 10, 6)
        for size, (name, (w, style)) in zip(
            sizes, solutions.items(), strict=True
        ):
            away = np.linalg.norm(w - best) / np.linalg.norm(best)
            table.add_row(
                f"{condition:.0f}",
                name,
                f"{away:.2%}",
                f"{error(reg, w):.4f}",
                f"{error(test, w):.4f}",
            )
            axis.plot(
                np.linalg.norm(w),
                error(reg, w),
                style,
                label=name,
                markersize=size,
            )
        axis.set(
            title=f"condition number {condition:.0f}",
            xlabel="norm of the weights",
            ylabel="MSE on the regularization set",
        )
        axis.legend()
    rich.print(table)
    plt.savefig("ridge.png", dpi=120)


if __name__ == "__main__":
    main()
