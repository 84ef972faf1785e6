"""A learned L1 norm against scikit-learn's `LassoCV`, with one held-out split.

Linear regression on scikit-learn's diabetes data, ten random splits into
training, regularization and test rows. `LassoCV` fits a path of strengths to
the training rows and takes the best on the regularization rows;
`kcr.regularizers.LearnedL1` learns the norm on them in one run. The
regularization loss can have several minima along the path, so each is learned
from a small norm and from the one that Keras draws, and the end of least
regularization loss is taken.

Prints a table and writes `lasso.png` into the current folder.
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
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LassoCV
from sklearn.linear_model import lasso_path
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import keras_crossreg as kcr

STEPS = 3000
STRENGTHS = np.geomspace(1, 1e-5, 1000)
PRECISION = dict(tol=1e-9, max_iter=100_000)
RUNS = {"direct": "C1", "implicit": "C0"}


def make_data(seed: int) -> list[Rows]:
    """Training, regularization and test rows, in units of the first."""
    x, y = load_diabetes(return_X_y=True)
    y = y[:, None]
    x, x_test, y, y_test = train_test_split(
        x, y, test_size=0.25, random_state=seed
    )
    x, x_reg, y, y_reg = train_test_split(
        x, y, test_size=1 / 3, random_state=seed
    )
    of_x, of_y = StandardScaler().fit(x), StandardScaler().fit(y)
    return [
        (of_x.transform(a).astype("float32"), of_y.transform(b).astype("f4"))
        for a, b in ((x, y), (x_reg, y_reg), (x_test, y_test))
    ]


def cross_validate(train: Rows, reg: Rows) -> np.ndarray:
    """`LassoCV` with one split, fitted to its first part."""
    x, y = (
        np.concatenate(pair).astype("float64")
        for pair in zip(train, reg, strict=True)
    )
    rows, cut = np.arange(len(x)), len(train[0])
    search = LassoCV(
        alphas=STRENGTHS,
        cv=[(rows[:cut], rows[cut:])],
        fit_intercept=False,
        **PRECISION,
    ).fit(x, y[:, 0])
    return path(train)[:, STRENGTHS == search.alpha_]


def path(train: Rows) -> np.ndarray:
    """Weights `(features, strengths)`."""
    x, y = (a.astype("float64") for a in train)
    return lasso_path(x, y[:, 0], alphas=STRENGTHS, **PRECISION)[1]


def learn_l1(train: Rows, reg: Rows, hypergradient: str) -> np.ndarray:
    """The better end of two starts, by the regularization loss."""
    ends = []
    for start in (
        keras.initializers.RandomNormal(stddev=0.02, seed=0),
        keras.initializers.GlorotUniform(seed=0),
    ):
        layer = keras.layers.Dense(
            1,
            use_bias=False,
            kernel_initializer=start,
            kernel_regularizer=kcr.regularizers.LearnedL1(),
        )
        learn(layer, train, reg, hypergradient, STEPS)
        ends.append(layer.kernel.numpy())
    return min(ends, key=lambda w: error(reg, w))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=10)
    splits = range(parser.parse_args().splits)

    table = rich.table.Table(title="Learned L1 norm and LassoCV, diabetes")
    table.add_column("split")
    for name in ("LassoCV", *RUNS):
        table.add_column(f"weights\n{name}", justify="right")
        table.add_column("test\nMSE", justify="right")
    test_errors: dict[str, list[float]] = {n: [] for n in ("LassoCV", *RUNS)}
    same: dict[str, int] = dict.fromkeys(RUNS, 0)
    first = {}
    for seed in rich.progress.track(splits, "Learning"):
        train, reg, test = make_data(seed)
        ends = {"LassoCV": cross_validate(train, reg)}
        for run in RUNS:
            ends[run] = learn_l1(train, reg, run)
            same[run] += np.array_equal(ends[run] != 0, ends["LassoCV"] != 0)
        first = first or ends
        row = [str(seed)]
        for name, w in ends.items():
            test_errors[name].append(error(test, w))
            row += [str(np.count_nonzero(w)), f"{error(test, w):.4f}"]
        table.add_row(*row)
    rich.print(table)
    best = np.array(test_errors["LassoCV"])
    for run in RUNS:
        ratio = np.array(test_errors[run]) / best
        rich.print(
            f"{run}: the weights of LassoCV on {same[run]} of {len(splits)} "
            f"splits; test error {ratio.mean() - 1:+.2%} on average, "
            f"{ratio.max() - 1:+.2%} at worst"
        )
    plot(first, test_errors)


def plot(first: dict[str, np.ndarray], test_errors: dict) -> None:
    train, reg, _ = make_data(0)
    weights = path(train)
    norms = np.abs(weights).sum(0)
    _, (left, middle, right) = plt.subplots(
        1, 3, figsize=(14, 4), layout="constrained"
    )
    left.plot(norms, [error(reg, w[:, None]) for w in weights.T], "gray")
    middle.plot(norms, weights.T, "gray", linewidth=1)
    colors = {"LassoCV": "k", **RUNS}
    for size, (name, w) in zip((14, 10, 6), first.items(), strict=True):
        style = dict(color=colors[name], markersize=size, linestyle="none")
        marker = "*" if name == "LassoCV" else "o"
        norm = np.abs(w).sum()
        left.plot(norm, error(reg, w), marker, label=name, **style)
        middle.plot(np.full(len(w), norm), w, marker, label=name, **style)
    left.set(ylabel="MSE on the regularization set", title="split 0")
    left.legend()
    middle.set(ylabel="weights", title="split 0: the path of the lasso")
    for axis in (left, middle):
        axis.set(xlabel="L1 norm of the weights")
    place = np.arange(len(test_errors["LassoCV"]))
    for run, color in RUNS.items():
        ratio = np.divide(test_errors[run], test_errors["LassoCV"])
        right.plot(place, 100 * (ratio - 1), "o", color=color, label=run)
    right.axhline(0, color="k", label="LassoCV")
    right.set(
        xlabel="split",
        xticks=place,
        ylabel="%",
        title="test error, more than LassoCV's",
    )
    right.legend()
    plt.savefig("lasso.png", dpi=120)
    rich.print("Wrote lasso.png")


if __name__ == "__main__":
    main()
