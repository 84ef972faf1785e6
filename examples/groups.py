"""Group sparsity against scikit-learn's `MultiTaskLassoCV`.

Which of 13 chemical measurements tell three wines apart? Linear regression of
the three classes on scikit-learn's wine data, thirty training and thirty
regularization rows, ten random splits. A measurement is left out where all
three of its weights are zero. `MultiTaskLassoCV` fits a path of strengths and
takes the best on the regularization rows;
`kcr.regularizers.LearnedGroupL1` learns the norm on them in one run.

Prints a table and writes `groups.png` into the current folder.
"""

from __future__ import annotations

import os

# Before TensorFlow, which is talkative.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")

import argparse

import keras
import matplotlib.pyplot as plt
import numpy as np
import rich
import rich.progress
import rich.table
from full_batch import Rows
from full_batch import error
from full_batch import learn
from sklearn.datasets import load_wine
from sklearn.linear_model import MultiTaskLasso
from sklearn.linear_model import MultiTaskLassoCV
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import keras_crossreg as kcr

ROWS, STEPS = 30, 2000
STRENGTHS = np.geomspace(1, 1e-4, 300)
PRECISION = dict(tol=1e-6, max_iter=20_000)
RUNS = ("direct", "implicit")


def make_data(seed: int) -> list[Rows]:
    """Training, regularization and test rows; inputs in units of the first."""
    x, y = load_wine(return_X_y=True)
    y = np.eye(3)[y]
    x, x_test, y, y_test = train_test_split(
        x, y, train_size=2 * ROWS, random_state=seed
    )
    x, x_reg, y, y_reg = train_test_split(
        x, y, train_size=ROWS, random_state=seed
    )
    scaler, mean = StandardScaler().fit(x), y.mean(0)
    return [
        (scaler.transform(a).astype("float32"), (b - mean).astype("float32"))
        for a, b in ((x, y), (x_reg, y_reg), (x_test, y_test))
    ]


def cross_validate(train: Rows, reg: Rows) -> np.ndarray:
    """`MultiTaskLassoCV` with one split, fitted to its first part."""
    x, y = (
        np.concatenate(pair).astype("float64")
        for pair in zip(train, reg, strict=True)
    )
    rows = np.arange(len(x))
    search = MultiTaskLassoCV(
        alphas=STRENGTHS,
        cv=[(rows[:ROWS], rows[ROWS:])],
        fit_intercept=False,
        **PRECISION,
    ).fit(x, y)
    best = MultiTaskLasso(search.alpha_, fit_intercept=False, **PRECISION)
    return best.fit(x[:ROWS], y[:ROWS]).coef_.T


def learn_groups(train: Rows, reg: Rows, hypergradient: str) -> np.ndarray:
    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense(
        3,
        use_bias=False,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.02),
        kernel_regularizer=kcr.regularizers.LearnedGroupL1(axis=0),
    )
    learn(layer, train, reg, hypergradient, STEPS)
    return layer.kernel.numpy()


def kept(weights: np.ndarray) -> np.ndarray:
    return np.any(weights != 0, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=10)
    splits = range(parser.parse_args().splits)

    names = ("MultiTaskLassoCV", *RUNS)
    table = rich.table.Table(title="Learned group norm, wine")
    table.add_column("split")
    table.add_column("test MSE\nleast squares", justify="right")
    for name in names:
        short = name.removeprefix("MultiTask")
        table.add_column(f"inputs\n{short}", justify="right")
        table.add_column("test\nMSE", justify="right")
    test_errors: dict[str, list[float]] = {name: [] for name in names}
    same: dict[str, int] = dict.fromkeys(RUNS, 0)
    norms: dict[str, np.ndarray] = {}
    for seed in rich.progress.track(splits, "Learning"):
        train, reg, test = make_data(seed)
        ends = {"MultiTaskLassoCV": cross_validate(train, reg)}
        for run in RUNS:
            ends[run] = learn_groups(train, reg, run)
            same[run] += np.array_equal(
                kept(ends[run]), kept(ends["MultiTaskLassoCV"])
            )
        norms = norms or {
            name: np.linalg.norm(w, axis=1) for name, w in ends.items()
        }
        # Ridge of no strength to speak of.
        plain = Ridge(1e-6, fit_intercept=False).fit(*train).coef_.T
        row = [str(seed), f"{error(test, plain):.4f}"]
        for name, w in ends.items():
            test_errors[name].append(error(test, w))
            row += [str(kept(w).sum()), f"{error(test, w):.4f}"]
        table.add_row(*row)
    rich.print(table)
    best = np.array(test_errors["MultiTaskLassoCV"])
    for run in RUNS:
        ratio = np.array(test_errors[run]) / best
        rich.print(
            f"{run}: the inputs of MultiTaskLassoCV on {same[run]} of "
            f"{len(splits)} splits; test error {ratio.mean() - 1:+.2%} on "
            f"average, {ratio.max() - 1:+.2%} at worst"
        )

    inputs = load_wine().feature_names
    _, axis = plt.subplots(figsize=(9, 5), layout="constrained")
    height = 0.8 / len(names)
    for i, (name, color) in enumerate(
        zip(names, ("k", "C1", "C0"), strict=True)
    ):
        axis.barh(
            np.arange(len(inputs)) + (i - 1) * height,
            norms[name],
            height,
            color=color,
            label=f"{name}: {np.count_nonzero(norms[name])} of {len(inputs)}",
        )
    axis.set(
        yticks=np.arange(len(inputs)),
        yticklabels=[name.replace("_", " ") for name in inputs],
        xlabel="norm of the three weights of an input",
        title="split 0",
    )
    axis.invert_yaxis()
    axis.legend()
    plt.savefig("groups.png", dpi=120)
    rich.print("Wrote groups.png")


if __name__ == "__main__":
    main()
