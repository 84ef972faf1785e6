"""gradhpo, on JAX: T1-T2 and HyperDistill, of weight decay and of noise."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gradhpo
import jax
import jax.numpy as jnp
import numpy as np
import optax

from peer_runs.problem import CLASSES
from peer_runs.problem import DECAY
from peer_runs.problem import EPSILON
from peer_runs.problem import NOISE
from peer_runs.problem import RATES
from peer_runs.problem import SAMPLES
from peer_runs.problem import WIDTHS
from peer_runs.problem import Batches
from peer_runs.problem import Predict
from peer_runs.problem import Problem
from peer_runs.problem import Run
from peer_runs.problem import Seconds
from peer_runs.problem import best_rate
from peer_runs.problem import main
from peer_runs.problem import timed

Params = dict[str, Any]
HORIZON = 20  # Its own default T.


def normalized(x: Any) -> Any:
    return (x - x.mean(0)) / jnp.sqrt(x.var(0) + EPSILON)


def logits_of(params: Params, x: Any, normalize: Any = None) -> Any:
    for i in range(len(WIDTHS)):
        x = x @ params[f"kernel_{i}"]
        x = jax.nn.relu(normalize(i, x) if normalize else normalized(x))
    return x @ params[f"kernel_{len(WIDTHS)}"] + params["bias"]


def noisy_logits_of(
    params: Params, logs: Params, x: Any, key: Any, normalize: Any = None
) -> Any:
    for i in range(len(WIDTHS)):
        x = x @ params[f"kernel_{i}"]
        x = normalize(i, x) if normalize else normalized(x)
        noise = jax.random.normal(jax.random.fold_in(key, i), x.shape)
        x = jax.nn.relu(x + jnp.exp(logs[f"log_{i}"]) * noise)
    return x @ params[f"kernel_{len(WIDTHS)}"] + params["bias"]


def cross_entropy(logits: Any, y: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def plain_loss(params: Params, batch: Any) -> Any:
    x, y, _ = batch
    return cross_entropy(logits_of(params, x), y)


def decayed_loss(params: Params, logs: Params, batch: Any) -> Any:
    squares = [
        jnp.exp(log) * jnp.sum(params[name.replace("log", "kernel")] ** 2)
        for name, log in logs.items()
    ]
    return plain_loss(params, batch) + 0.5 * sum(squares)


def decay_reg_loss(params: Params, logs: Params, batch: Any) -> Any:
    return plain_loss(params, batch)


def noisy_loss(params: Params, logs: Params, batch: Any) -> Any:
    x, y, seed = batch
    key = jax.random.key(seed)
    return cross_entropy(noisy_logits_of(params, logs, x, key), y)


def noise_reg_loss(params: Params, logs: Params, batch: Any) -> Any:
    x, y, seed = batch
    x = jnp.tile(x, (SAMPLES, 1))
    logits = noisy_logits_of(params, logs, x, jax.random.key(seed))
    p = jax.nn.softmax(logits).reshape(SAMPLES, -1, CLASSES).mean(0)
    return -jnp.log(jnp.take_along_axis(p, y[:, None], 1)).mean()


def moments_of(params: Params, x: Any, logs: Any = None, seed: int = 0) -> Any:
    """Of the training rows: a loss has no place for moving averages."""
    moments = []
    key = jax.random.key(seed)
    for i in range(len(WIDTHS)):
        x = x @ params[f"kernel_{i}"]
        moments.append((x.mean(0), x.var(0)))
        x = normalized(x)
        if logs is not None:
            noise = jax.random.normal(jax.random.fold_in(key, i), x.shape)
            x = x + jnp.exp(logs[f"log_{i}"]) * noise
        x = jax.nn.relu(x)
    return moments


def adam(p: Problem, part: str) -> Any:
    steps = p.epochs * p.steps(part)
    return optax.adam(optax.cosine_decay_schedule(p.rate, steps), eps=1e-7)


def plain_training(params: Params, p: Problem, part: str) -> Any:
    optimizer = adam(p, part)
    batches = Batches(p.rows[part], p.batch_size, p.seed)
    state = [params, optimizer.init(params)]

    @jax.jit
    def step(params: Params, memory: Any, batch: Any) -> Any:
        gradient = jax.grad(plain_loss)(params, batch)
        updates, memory = optimizer.update(gradient, memory, params)
        return optax.apply_updates(params, updates), memory

    def epoch() -> Params:
        for batch in batches:
            state[:] = step(*state, batch)
        return jax.block_until_ready(state[0])

    return epoch


def hyper_training(
    params: Params,
    logs: Params,
    p: Problem,
    kind: Callable[..., Any],
    losses: Any,
    rate: float,
    reg_batch_size: int,
) -> Any:
    train = Batches(p.rows["train"], p.batch_size, p.seed).forever()
    reg = Batches(p.rows["reg"], reg_batch_size, p.seed).forever()
    optimizer = kind(adam(p, "train"), optax.adam(rate), T=HORIZON)
    state = [optimizer.init(params, logs)]

    def run(episodes: int) -> Any:
        state[0] = optimizer.run(
            state[0],
            episodes,
            functools.partial(next, train),
            functools.partial(next, reg),
            *losses,
        )
        return jax.block_until_ready(state[0].params), state[0].hyperparams

    return run, optimizer, state, train, reg


def start(p: Problem) -> Params:
    kernels = {f"kernel_{i}": k for i, k in enumerate(p.kernels())}
    params = dict(kernels, bias=np.zeros(CLASSES, "float32"))
    return jax.tree.map(jnp.asarray, params)


def predictor(params: Params, p: Problem, logs: Any = None) -> Predict:
    part = "train+reg" if logs is None else "train"
    moments = moments_of(params, p.rows[part][0], logs)

    def normalize(i: int, x: Any) -> Any:
        mean, variance = moments[i]
        return (x - mean) / jnp.sqrt(variance + EPSILON)

    def predict(x: np.ndarray) -> np.ndarray:
        if logs is None:
            return np.asarray(jax.nn.softmax(logits_of(params, x, normalize)))
        samples = [
            jax.nn.softmax(
                noisy_logits_of(params, logs, x, jax.random.key(i), normalize)
            )
            for i in range(SAMPLES)
        ]
        return np.mean(samples, axis=0)

    return predict


def plain(p: Problem) -> tuple[Predict, dict[str, Any]]:
    epoch = plain_training(start(p), p, "train+reg")
    for _ in range(p.epochs):
        params = epoch()
    return predictor(params, p), {}


ALGORITHMS = {
    # At its own eps, 1e-4, the quotient of a step of Adam is mere rounding.
    "t1t2": functools.partial(gradhpo.T1T2Optimizer, eps=0.1),
    "hyperdistill": gradhpo.OnlineHypergradientOptimizer,
}


def training_of(algorithm: str, kind: str, p: Problem, rate: float) -> Any:
    noisy = kind == "noise"
    # T1-T2 has one difference quotient for a whole array: one array a layer.
    logs = {
        f"log_{i}": jnp.asarray(np.log(NOISE if noisy else DECAY), "float32")
        for i in range(len(WIDTHS) + 1 - noisy)
    }
    losses = (
        (noisy_loss, noise_reg_loss)
        if noisy
        else (decayed_loss, decay_reg_loss)
    )
    size = p.batch_size // 8 if noisy else p.batch_size
    kinds = ALGORITHMS[algorithm]
    parts = hyper_training(start(p), logs, p, kinds, losses, rate, size)
    return *parts, losses


def train(
    algorithm: str, kind: str, p: Problem, rate: float
) -> tuple[Predict, dict[str, Any]]:
    run, *_ = training_of(algorithm, kind, p, rate)
    params, logs = run(max(1, p.epochs * p.steps() // HORIZON))
    learned = [float(f"{np.exp(v):.3g}") for v in logs.values()]
    scales = logs if kind == "noise" else None
    return predictor(params, p, scales), dict(learned=learned)


def epochs(algorithm: str, kind: str, p: Problem) -> tuple[Seconds, Seconds]:
    """What `run` does, but for HyperDistill's estimate of a factor.

    That is due once in 50 episodes, and the first time before any step.
    """
    parts = training_of(algorithm, kind, p, RATES[0])
    _, optimizer, state, train, reg, losses = parts
    plain_epoch = plain_training(start(p), p, "train")

    def steps() -> None:
        # Two episodes are an epoch of cifar10_dense: 40 steps.
        for _ in range(max(1, p.steps() // HORIZON)):
            first = dict.fromkeys(("w_star", "phi"), state[0].params)
            known = {k: v for k, v in first.items() if k in state[0].metadata}
            state[0] = state[0].update(step=0, metadata=known)
            for _ in range(HORIZON):
                state[0] = optimizer.step(
                    state[0], next(train), next(reg), *losses
                )
        jax.block_until_ready(state[0].params)

    return timed(steps), timed(plain_epoch)


def run_of(algorithm: str, kind: str, *code: Any) -> Run:
    shared = (normalized, cross_entropy, moments_of, adam, hyper_training)
    return Run(
        lambda p: best_rate(p, functools.partial(train, algorithm, kind)),
        functools.partial(epochs, algorithm, kind),
        (*shared, *code),
        choices=len(RATES),
    )


DECAY_CODE = (logits_of, plain_loss, decayed_loss, decay_reg_loss)
NOISE_CODE = (noisy_logits_of, noisy_loss, noise_reg_loss)
RUNS = {
    "plain": Run(
        plain,
        None,
        (
            normalized,
            logits_of,
            cross_entropy,
            plain_loss,
            moments_of,
            adam,
            plain_training,
        ),
    ),
    "t1t2_decay": run_of("t1t2", "decay", *DECAY_CODE),
    "t1t2_noise": run_of("t1t2", "noise", *NOISE_CODE),
    "hyperdistill_decay": run_of("hyperdistill", "decay", *DECAY_CODE),
    "hyperdistill_noise": run_of("hyperdistill", "noise", *NOISE_CODE),
}

if __name__ == "__main__":
    main(RUNS)
