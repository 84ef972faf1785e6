"""Estimators of the gradient of a dropout rate, against the exact one.

The loss is the negative log likelihood of the average of K = 4 sampled
predictions, its gradient that of logit(rate). Six inputs have 64 masks, so
that the expectation can be summed. Prints, for each estimator, the mean over
draws and the deviation of a single draw.
"""

import itertools
import math

import numpy as np
import tensorflow as tf

SIZE, K, DRAWS = 6, 4, 20_000
RATES = (0.05, 0.2, 0.5, 0.8)
ESTIMATORS = ("layer", "gaussian", "concrete 0.1", "concrete 0.67")


def probability(x, weights):
    """Of the first class."""
    for w in weights[:-1]:
        x = tf.nn.relu(x @ w)
    return tf.nn.softmax(x @ weights[-1])[:, 0]


def exact_gradient(h, weights, rate):
    masks = np.array(list(itertools.product([0, 1], repeat=SIZE)), "float64")
    sets = np.array(
        list(itertools.combinations_with_replacement(range(len(masks)), K))
    )
    # How many ordered draws a set stands for.
    ways, run = np.full(len(sets), float(math.factorial(K))), np.ones(len(sets))
    for j in range(1, K):
        run = np.where(sets[:, j] == sets[:, j - 1], run + 1, 1)
        ways /= run

    def loss(rho):
        p = 1 / (1 + math.exp(-rho))
        chance = np.where(masks > 0, 1 - p, p).prod(axis=1)
        q = probability(tf.constant(h * masks / (1 - p)), weights).numpy()
        return -(ways * chance[sets].prod(1) * np.log(q[sets].mean(1))).sum()

    rho, step = math.log(rate / (1 - rate)), 1e-4
    return (loss(rho + step) - loss(rho - step)) / (2 * step)


def estimates(kind, h, weights, rate, rng):
    rho = tf.fill(
        [DRAWS, 1, 1], tf.constant(math.log(rate / (1 - rate)), "float64")
    )
    u = tf.constant(rng.uniform(size=(DRAWS, K, SIZE)))
    with tf.GradientTape() as tape:
        tape.watch(rho)
        keep = tf.sigmoid(-rho)
        if kind == "layer":
            fixed = tf.stop_gradient(keep)
            noise = tf.where(u < fixed, 1 / fixed - 1, -1.0)
            factor = 1 + noise * tf.exp((rho - tf.stop_gradient(rho)) / 2)
        elif kind == "gaussian":
            eps = tf.constant(rng.normal(size=(DRAWS, K, SIZE)))
            factor = 1 + tf.exp(rho / 2) * eps
        else:
            temperature = float(kind.split()[1])
            logit = tf.math.log(u) - tf.math.log(1 - u) - rho
            factor = tf.sigmoid(logit / temperature) / keep
        q = probability(tf.reshape(h * factor, [-1, SIZE]), weights)
        loss = -tf.math.log(tf.reduce_mean(tf.reshape(q, [DRAWS, K]), axis=1))
    return tape.gradient(loss, rho).numpy().ravel()


def main():
    rng = np.random.default_rng(0)
    for hidden, trial in itertools.product((0, 8), range(3)):
        h = np.abs(rng.normal(size=SIZE))
        sizes = [SIZE, hidden, 3] if hidden else [SIZE, 3]
        weights = [
            0.6 * rng.normal(size=shape) for shape in itertools.pairwise(sizes)
        ]
        for rate in RATES:
            exact = exact_gradient(h, weights, rate)
            print(
                f"hidden={hidden} {trial=} {rate=} exact {exact:+.4f}", end=""
            )
            for kind in ESTIMATORS:
                found = estimates(kind, h, weights, rate, rng)
                print(
                    f" | {kind} {found.mean():+.4f} ({found.std():.3f})", end=""
                )
            print(flush=True)


if __name__ == "__main__":
    main()
