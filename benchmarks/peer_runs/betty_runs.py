"""Betty, on PyTorch: its hypergradient of weight decay and of noise."""

from __future__ import annotations

import functools
import itertools
import logging
from typing import Any

import numpy as np
import torch
from betty.configs import Config
from betty.configs import EngineConfig
from betty.engine import Engine
from betty.problems import ImplicitProblem
from torch import nn
from torch.nn import functional

from peer_runs.problem import CLASSES
from peer_runs.problem import DECAY
from peer_runs.problem import EPSILON
from peer_runs.problem import MOMENTUM
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

LAYERS = len(WIDTHS) + 1


class Network(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        sizes = [inputs, *WIDTHS]
        self.dense = nn.ModuleList(
            nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes)
        )
        self.norm = nn.ModuleList(
            nn.BatchNorm1d(
                width, eps=EPSILON, momentum=1 - MOMENTUM, affine=False
            )
            for width in WIDTHS
        )
        self.last = nn.Linear(WIDTHS[-1], CLASSES)

    def forward(self, x: Any) -> Any:
        for dense, norm in zip(self.dense, self.norm, strict=True):
            x = functional.relu(norm(dense(x)))
        return self.last(x)


class NoisyNetwork(Network):
    def forward(self, x: Any, scales: Any, seed: int) -> Any:
        # Betty evaluates a batch again at other weights and takes the
        # difference, for which the noise has to be the same.
        generator = torch.Generator().manual_seed(seed)
        for dense, norm, scale in zip(
            self.dense, self.norm, scales, strict=True
        ):
            x = norm(dense(x))
            noise = torch.randn(x.shape, generator=generator)
            x = functional.relu(x + scale * noise)
        return self.last(x)


class Strengths(nn.Module):
    """One for each layer, in logarithms."""

    def __init__(self, count: int, start: float) -> None:
        super().__init__()
        self.logs = nn.Parameter(torch.full((count,), float(np.log(start))))

    def forward(self) -> Any:
        return self.logs.exp()


class DecayedTraining(ImplicitProblem):
    def training_step(self, batch: Any) -> Any:
        x, y, _ = batch
        network = self.module
        kernels = [layer.weight for layer in (*network.dense, network.last)]
        squares = torch.stack([kernel.square().sum() for kernel in kernels])
        loss = functional.cross_entropy(network(x), y)
        return loss + 0.5 * (self.strengths() * squares).sum()


class DecaySelection(ImplicitProblem):
    def training_step(self, batch: Any) -> Any:
        x, y, _ = batch
        return functional.cross_entropy(self.training_problem(x), y)


class NoisyTraining(ImplicitProblem):
    def training_step(self, batch: Any) -> Any:
        x, y, seed = batch
        logits = self.module(x, self.strengths(), seed)
        return functional.cross_entropy(logits, y)


class NoiseSelection(ImplicitProblem):
    def training_step(self, batch: Any) -> Any:
        x, y, seed = batch
        x = x.repeat(SAMPLES, 1)
        logits = self.training_problem(x, self.module(), seed)
        p = functional.softmax(logits, -1).reshape(SAMPLES, -1, CLASSES)
        return functional.nll_loss(torch.log(p.mean(0)), y)


class Loader:
    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        for x, y, seed in self.batches:
            yield torch.from_numpy(x), torch.from_numpy(y).long(), seed


def optimizer_of(network: Network, p: Problem, part: str) -> Any:
    optimizer = torch.optim.Adam(network.parameters(), p.rate, eps=1e-7)
    steps = p.epochs * p.steps(part)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, steps
    )


def plain_training(network: Network, p: Problem, part: str) -> Any:
    optimizer, schedule = optimizer_of(network, p, part)
    loader = Loader(Batches(p.rows[part], p.batch_size, p.seed))

    def epoch() -> None:
        network.train()
        for x, y, _ in loader:
            optimizer.zero_grad()
            functional.cross_entropy(network(x), y).backward()
            optimizer.step()
            schedule.step()

    return epoch


def engine_of(
    network: Network,
    strengths: Strengths,
    p: Problem,
    rate: float,
    classes: tuple[type, type],
    reg_batch_size: int,
) -> Engine:
    optimizer, schedule = optimizer_of(network, p, "train")
    training = classes[0](
        name="training_problem",
        config=Config(type="darts", unroll_steps=1),
        module=network,
        optimizer=optimizer,
        scheduler=schedule,
        train_data_loader=Loader(
            Batches(p.rows["train"], p.batch_size, p.seed)
        ),
    )
    selection = classes[1](
        name="strengths",
        config=Config(retain_graph=True),
        module=strengths,
        optimizer=torch.optim.Adam(strengths.parameters(), rate),
        train_data_loader=Loader(
            Batches(p.rows["reg"], reg_batch_size, p.seed)
        ),
    )
    return Engine(
        [training, selection],
        EngineConfig(train_iters=p.epochs * p.steps()),
        {"u2l": {selection: [training]}, "l2u": {training: [selection]}},
    )


def start(kind: type[Network], p: Problem) -> Network:
    torch.manual_seed(p.seed)
    network = kind(p.rows["train"][0].shape[1])
    kernels = p.kernels()
    layers = [*network.dense, network.last]
    with torch.no_grad():
        for layer, kernel in zip(layers, kernels, strict=True):
            layer.weight.copy_(torch.from_numpy(kernel.T))
        network.last.bias.zero_()
    return network


def predictor(network: Any, *scales: Any) -> Predict:
    @torch.no_grad()
    def predict(x: np.ndarray) -> np.ndarray:
        network.eval()
        rows = torch.from_numpy(x)
        samples = [
            functional.softmax(network(rows, *scales, seed), -1)
            if scales
            else functional.softmax(network(rows), -1)
            for seed in range(SAMPLES if scales else 1)
        ]
        return torch.stack(samples).mean(0).numpy()

    return predict


def plain(p: Problem) -> tuple[Predict, dict[str, Any]]:
    network = start(Network, p)
    epoch = plain_training(network, p, "train+reg")
    for _ in range(p.epochs):
        epoch()
    return predictor(network), {}


def problem_of(kind: str, p: Problem, rate: float) -> Any:
    noisy = kind == "noise"
    network = start(NoisyNetwork if noisy else Network, p)
    strengths = Strengths(
        LAYERS - noisy,  # The last layer has a kernel, but no noise.
        NOISE if noisy else DECAY,
    )
    classes = (
        (NoisyTraining, NoiseSelection)
        if noisy
        else (DecayedTraining, DecaySelection)
    )
    # As ours: an eighth of the rows, for all samples of noise.
    size = p.batch_size // 8 if noisy else p.batch_size
    engine = engine_of(network, strengths, p, rate, classes, size)
    return network, strengths, engine


def train(kind: str, p: Problem, rate: float) -> tuple[Predict, dict[str, Any]]:
    network, strengths, engine = problem_of(kind, p, rate)
    engine.run()
    found = strengths().detach()
    learned = [float(f"{v:.3g}") for v in found.tolist()]
    scales = (found,) if kind == "noise" else ()
    return predictor(network, *scales), dict(learned=learned)


def epochs(kind: str, p: Problem) -> tuple[Seconds, Seconds]:
    _, _, engine = problem_of(kind, p, RATES[0])
    engine.train_iters = p.steps()
    plain_epoch = plain_training(start(Network, p), p, "train")
    return timed(engine.run), timed(plain_epoch)


def run_of(kind: str, *code: Any) -> Run:
    return Run(
        lambda p: best_rate(p, functools.partial(train, kind)),
        functools.partial(epochs, kind),
        (Network, Strengths, Loader, optimizer_of, engine_of, *code),
        choices=len(RATES),
    )


RUNS = {
    "plain": Run(plain, None, (Network, Loader, optimizer_of, plain_training)),
    "decay": run_of("decay", DecayedTraining, DecaySelection),
    "noise": run_of("noise", NoisyNetwork, NoisyTraining, NoiseSelection),
}

if __name__ == "__main__":
    logging.disable(logging.INFO)  # Betty's, of every run of an engine.
    torch.set_num_threads(1)
    main(RUNS)
