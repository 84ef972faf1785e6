"""A learned smoothness against scipy's cross-validated smoothing spline.

Sixty noisy points of a curve, and sixty more as the regularization set.
`scipy.interpolate.make_smoothing_spline` is fitted for a grid of penalties, of
which the best on the regularization set is taken. Beside it a cubic B-spline
whose roughness `kcr.regularizers.LearnedSmoothness` learns in one run, from
an almost straight line.

Prints a table over five data sets and writes `spline.png` into the current
folder.
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
import rich.progress
import rich.table
from full_batch import Rows
from full_batch import learn
from scipy.interpolate import BSpline
from scipy.interpolate import make_smoothing_spline

import keras_crossreg as kcr

POINTS, COEFFICIENTS, STEPS = 60, 24, 2000
PENALTIES = np.geomspace(1e-9, 10, 200)
RUNS = {"direct": "C1", "implicit": "C0"}


def curve(x: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * x) + 0.5 * np.sin(6 * np.pi * x) * (x > 0.5)


def make_data(seed: int) -> list[Rows]:
    """Training and regularization points."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(2):
        x = np.sort(rng.uniform(size=POINTS))
        parts.append((x, curve(x) + 0.4 * rng.normal(size=POINTS)))
    return parts


def basis(x: np.ndarray) -> np.ndarray:
    """Cubic B-splines on equal intervals of [0, 1]: `(n, COEFFICIENTS)`."""
    knots = np.arange(-3, COEFFICIENTS + 1) / (COEFFICIENTS - 3)
    inside = np.clip(x, 0, 1 - 1e-9)
    return BSpline.design_matrix(inside, knots, 3).toarray().astype("float32")


def cross_validate(train: Rows, reg: Rows) -> BSpline:
    """The smoothing spline of least regularization loss."""
    splines = [make_smoothing_spline(*train, lam=lam) for lam in PENALTIES]
    return min(splines, key=lambda spline: error(spline(reg[0]), reg[1]))


def learn_spline(train: Rows, reg: Rows, hypergradient: str) -> np.ndarray:
    """The coefficients."""
    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense(
        1,
        use_bias=False,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.02),
        kernel_regularizer=kcr.regularizers.LearnedSmoothness(order=2),
    )
    columns = [(basis(x), y[:, None].astype("f4")) for x, y in (train, reg)]
    learn(layer, *columns, hypergradient, STEPS, learning_rate=0.05)
    return layer.kernel.numpy()[:, 0]


def error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean((a - b) ** 2))


def main() -> None:
    table = rich.table.Table(
        title="Learned smoothness and make_smoothing_spline"
    )
    for column in ("data", "spline", "reg MSE", "more", "MSE to the curve"):
        justify = "left" if column in ("data", "spline") else "right"
        table.add_column(column, justify=justify)
    grid = np.linspace(0, 1, 500)
    _, (left, right) = plt.subplots(
        1, 2, figsize=(12, 4.5), layout="constrained"
    )
    for seed in rich.progress.track(range(5), "Learning"):
        train, reg = make_data(seed)
        best = cross_validate(train, reg)
        fits = {"scipy, best penalty": (best(reg[0]), best(grid), "k")}
        for run, color in RUNS.items():
            w = learn_spline(train, reg, run)
            fits[run] = basis(reg[0]) @ w, basis(grid) @ w, color
        least = error(fits["scipy, best penalty"][0], reg[1])
        for name, (on_reg, on_grid, color) in fits.items():
            loss = error(on_reg, reg[1])
            table.add_row(
                str(seed),
                name,
                f"{loss:.4f}",
                f"{loss / least - 1:+.1%}",
                f"{error(on_grid, curve(grid)):.4f}",
            )
            if seed == 0:
                left.plot(grid, on_grid, color, label=name)
        if seed == 0:
            left.plot(*train, ".", color="gray", label="training points")
            left.plot(grid, curve(grid), "gray", linestyle=":", label="curve")
            left.set(title="data 0", xlabel="x", ylabel="y")
            left.legend(fontsize="small")
            losses = [
                error(make_smoothing_spline(*train, lam=p)(reg[0]), reg[1])
                for p in PENALTIES
            ]
            right.semilogx(PENALTIES, losses, "k", label="scipy")
            for run, color in RUNS.items():
                loss = error(fits[run][0], reg[1])
                right.axhline(loss, color=color, label=run)
            right.set(
                title="data 0",
                xlabel="penalty of make_smoothing_spline",
                ylabel="MSE on the regularization set",
            )
            right.legend()
    rich.print(table)
    plt.savefig("spline.png", dpi=120)
    rich.print("Wrote spline.png")


if __name__ == "__main__":
    main()
