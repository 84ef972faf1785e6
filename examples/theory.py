"""The theory of cross-regularization, checked by experiment.

1. Linear convergence: on a quadratic, the distance of theta and rho from
   their fixed point against the training steps, and the rate that the
   eigenvalues of the alternation say.
2. Statistical error: the excess loss of k learned norms on regularization
   sets of m rows, and the slope of its logarithm against that of k / m.
3. Invariance to the start: where a learned L2 and L1 norm end, from starts
   over three decades.

Prints what it found and writes `theory.png` into the current folder.
"""

from __future__ import annotations

import os

# Before TensorFlow, which is talkative.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")

import warnings

import keras
import lasso
import matplotlib.pyplot as plt
import numpy as np
import rich
import rich.progress
import ridge
import scipy.signal
import scipy.stats
from full_batch import error
from full_batch import learn

import keras_crossreg as kcr

RUNS = {"direct": "C1", "implicit": "C0"}
# Of the diabetes data.
SPLIT = 2


class RhoDense(keras.layers.Layer):
    """A linear map to one output whose kernel is rho."""

    def build(self, input_shape):
        self.kernel = kcr.mark_rho(
            self.add_weight(
                shape=(input_shape[-1], 1), initializer="zeros", name="rho"
            )
        )

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.kernel)


def alternate(steps: int, rate: float = 0.1, seed: int = 0):
    """Distances from the fixed point, and the factor of a step by theory.

    `y = x theta + z rho`: a quadratic in both. Theta by SGD on the training
    rows, then rho by SGD on the regularization rows.
    """
    rng = np.random.default_rng(seed)
    x, z = rng.normal(size=(2, 200, 3)) * [[[1.0]], [[0.7]]]
    # Correlated, so that each answers to the other.
    z += 0.8 * x
    y = x.sum(1) + z.sum(1) + rng.normal(size=200)
    x, z, y = (a.astype("float32") for a in (x, z, y[:, None]))
    train, reg = ((x[p], z[p], y[p]) for p in (slice(100), slice(100, 200)))

    of_theta, of_rho = keras.Input((3,)), keras.Input((3,))
    dense, rho = keras.layers.Dense(1, use_bias=False), RhoDense()
    model = kcr.CrossRegModel(
        [of_theta, of_rho],
        keras.layers.Add()([dense(of_theta), rho(of_rho)]),
    )
    model.compile(
        keras.optimizers.SGD(rate),
        "mse",
        rho_optimizer=keras.optimizers.SGD(rate),
        reg_freq=1,
    )
    states = []
    for _ in range(steps):
        model.train_on_batch(train[:2], train[2], reg_data=(reg[:2], reg[2]))
        states.append(np.concatenate([dense.kernel, rho.kernel])[:, 0])

    # One step of theta, then one of rho, as matrices on (theta, rho).
    def gradient(rows, own):
        both = np.concatenate(rows[:2], axis=1).astype("float64")
        ours = rows[own].astype("float64")
        scale = 2 / len(both)
        return scale * ours.T @ both, scale * ours.T @ rows[2]

    step, shift = np.eye(6), np.zeros((6, 1))
    for rows, own, part in ((train, 0, slice(3)), (reg, 1, slice(3, 6))):
        curvature, constant = gradient(rows, own)
        one = np.eye(6)
        one[part] -= rate * curvature
        step, shift = one @ step, one @ shift
        shift[part] += rate * constant
    fixed = np.linalg.solve(np.eye(6) - step, shift)[:, 0]
    factor = np.abs(np.linalg.eigvals(step)).max()
    return np.linalg.norm(np.array(states) - fixed, axis=1), factor


def excess(k: int, m: int, problems: int = 64, seed: int = 0) -> np.ndarray:
    """Excess loss of k learned norms, of each of so many problems.

    `y = sum_g rho_g u_g . x_g + noise` with k blocks of two inputs, every
    output a problem of its own. The inputs are white, so that the expected
    loss of a norm exceeds that of the best one for the learned direction by
    the square of their distance.
    """
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(k, 2, problems))
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    rows = []
    for n in (400, m):
        x = rng.normal(size=(n, 2 * k))
        y = x @ w.reshape(2 * k, -1) + rng.normal(size=(n, problems))
        rows.append((x.astype("float32"), y.astype("float32")))
    blocks = [
        kcr.layers.NormMagnitude(
            keras.layers.Dense(problems, use_bias=False), axis=-1
        )
        for _ in range(k)
    ]

    inputs = keras.Input((2 * k,))
    outputs = [
        block(inputs[:, 2 * g : 2 * g + 2]) for g, block in enumerate(blocks)
    ]
    total = keras.layers.Add()(outputs) if k > 1 else outputs[0]
    with warnings.catch_warnings():
        # Every problem has k, not all of them together.
        warnings.filterwarnings("ignore", ".* rho learn from")
        model = keras.Model(inputs, total)
        learn(model, *rows, "direct", 400, learning_rate=0.1)
    found = np.array([block.magnitude[0] for block in blocks])
    best = np.einsum(
        "kdp,kdp->kp", [block.layer.kernel.numpy() for block in blocks], w
    )
    return np.sum((found - best) ** 2, axis=0)


def ends_of_norm(start: float, hypergradient: str, steps: int = 4000) -> float:
    """Of a ridge problem of condition number 30."""
    train, reg, _ = ridge.make_data(30.0, seed=1)
    layer = kcr.layers.NormMagnitude(
        keras.layers.Dense(
            1,
            use_bias=False,
            kernel_initializer=start_of_norm(start, np.linalg.norm, 10),
        )
    )
    learn(layer, train, reg, hypergradient, steps)
    return float(np.linalg.norm(layer.magnitude))


def ends_of_l1(start: float, hypergradient: str) -> float:
    """Of diabetes, on a split with several minima along the path."""
    train, reg, _ = lasso.make_data(SPLIT)
    layer = keras.layers.Dense(
        1,
        use_bias=False,
        kernel_initializer=start_of_norm(start, lambda w: np.abs(w).sum(), 10),
        kernel_regularizer=kcr.regularizers.LearnedL1(),
    )
    learn(layer, train, reg, hypergradient, 3000)
    return float(np.abs(layer.kernel.numpy()).sum())


def start_of_norm(norm, measure, features: int, seed: int = 0):
    w = np.random.default_rng(seed).normal(size=(features, 1))
    return keras.initializers.Constant(norm * w / measure(w))


def main() -> None:
    _, (left, middle, right) = plt.subplots(
        1, 3, figsize=(15, 4.5), layout="constrained"
    )
    distances, factor = alternate(steps=250)
    steps = np.arange(1, len(distances) + 1)
    fit = scipy.stats.linregress(steps[100:], np.log(distances[100:]))
    rich.print(
        f"1. The distance shrinks by {np.exp(fit.slope):.4f} a step "
        f"(r2 = {fit.rvalue**2:.5f}); by the eigenvalues {factor:.4f}"
    )
    left.semilogy(steps, distances, label="measured")
    left.semilogy(
        steps,
        distances[-1] * factor ** (steps - steps[-1]),
        "k:",
        label=f"{factor:.3f} a step, by theory",
    )
    left.set(
        title="linear convergence",
        xlabel="training steps",
        ylabel="distance from the fixed point",
    )
    left.legend()

    cells = [
        (k, m) for k in (1, 2, 4, 8, 16) for m in (50, 100, 200, 400, 800, 1600)
    ]
    cells = [(k, m) for k, m in cells if m >= 10 * k]
    means, errors = [], []
    for k, m in rich.progress.track(cells, "Sets and numbers"):
        losses = excess(k, m, seed=1000 * k + m)
        means.append(losses.mean())
        errors.append(losses.std(ddof=1) / len(losses) ** 0.5)
    ratio = np.array([k / m for k, m in cells])
    fit = scipy.stats.linregress(np.log(ratio), np.log(means))
    width = fit.stderr * scipy.stats.t.ppf(0.975, len(cells) - 2)
    rich.print(
        f"2. The excess loss grows as (k / m) to the power of {fit.slope:.3f} "
        f"+- {width:.3f} (95 %), the distance of rho to {fit.slope / 2:.3f} "
        f"+- {width / 2:.3f}"
    )
    for k in sorted({k for k, _ in cells}):
        own = [i for i, cell in enumerate(cells) if cell[0] == k]
        middle.errorbar(
            ratio[own],
            np.array(means)[own],
            np.array(errors)[own],
            fmt="o",
            label=f"k = {k}",
        )
    line = np.array([ratio.min(), ratio.max()])
    middle.plot(line, np.exp(fit.intercept) * line**fit.slope, "k", linewidth=1)
    middle.plot(line, np.sqrt(line), "k:", label="sqrt(k / m)")
    middle.set(
        xscale="log",
        yscale="log",
        title=f"excess loss, slope {fit.slope:.2f} ± {width:.2f}",
        xlabel="k / m",
        ylabel="above the loss of the best norms",
    )
    middle.legend(fontsize="small")

    starts = np.geomspace(0.01, 10, 4)
    problems = {"L2": (ends_of_norm, "o-"), "L1": (ends_of_l1, "s--")}
    for name, (end, style) in problems.items():
        for run, color in RUNS.items():
            found = [
                end(start, run)
                for start in rich.progress.track(starts, f"{name}, {run}")
            ]
            rich.print(f"3. {name}, {run}: {np.round(found, 3)}")
            right.plot(
                starts, found, style, color=color, label=f"{name}, {run}"
            )
    train, reg, _ = lasso.make_data(SPLIT)
    weights = lasso.path(train)
    losses = np.array([error(reg, w[:, None]) for w in weights.T])
    for place in scipy.signal.argrelmin(losses)[0]:
        norm = np.abs(weights[:, place]).sum()
        right.axhline(norm, color="0.7", linewidth=1, zorder=0)
        rich.print(f"   L1: a minimum along the path at {norm:.3f}")
    right.set(
        xscale="log",
        ylim=(0, None),
        title="starts and ends (gray: minima of the lasso)",
        xlabel="norm at the start",
        ylabel="norm at the end",
    )
    right.legend()
    plt.savefig("theory.png", dpi=120)
    rich.print("Wrote theory.png")


if __name__ == "__main__":
    main()
