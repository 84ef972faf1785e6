"""Population based training, by Ray Tune, of what the benchmarks train.

Every `GENERATION` epochs the quarter of the population with the largest loss
on the regularization set takes weights, optimizer state and rates of the best
quarter, and changes the rates; the rest is left alone.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from gpu_cases import device

import keras_crossreg as kcr

# Epochs between two selections.
GENERATION = 2
Row = dict[str, Any]


@dataclasses.dataclass
class Breed:
    """What the members of a population have in common.

    Args:
        untrained: Returns a compiled network. Its rho are the rates.
        train: `(x, y)`.
        reg: `(x, y)`, to select by.
        epochs: Of the whole training.
        batch_size: Of the training.
        low: The smallest rate.
        high: The largest.
        log: Whether first rates are drawn on a logarithmic scale.
        seed: Of all that is random but the search itself.
        clock: Whose seconds are reported.
    """

    untrained: Callable[[], kcr.CrossRegModel]
    train: tuple[np.ndarray, np.ndarray]
    reg: tuple[np.ndarray, np.ndarray]
    epochs: int
    batch_size: int
    low: float
    high: float
    log: bool
    seed: int
    clock: Callable[[], float] = time.process_time

    def frozen(self) -> kcr.CrossRegModel:
        """An untrained member, whose rates stay as they are."""
        model = self.untrained()
        model.freeze_rho()
        # Or their state would not be loaded.
        model.optimizer.build(model.trainable_variables)
        model.rho_optimizer.build(model.rho_variables)
        return model


def ray_tune() -> Any:
    """Ray Tune, which nothing but a population needs."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    try:
        from ray import tune
    except ImportError as error:
        raise SystemExit(
            "Population based training needs Ray Tune: "
            "pip install 'keras-crossreg[search]'"
        ) from error
    return tune


def evolved(
    breed: Breed, size: int
) -> tuple[kcr.CrossRegModel, list[float], list[Row]]:
    """The best member at the end, its rates, and what all reported.

    Args:
        breed: What is trained.
        size: How many members.

    Returns:
        The network, its rates, and of every member in every generation:
        `member`, `rates`, `epochs` until then, `loss` on the regularization
        set and `seconds` of the generation, without those that it took to
        start a process.
    """
    tune = ray_tune()
    import ray

    reports: list[Row] = []

    class Reports(tune.Callback):
        def on_trial_result(self, *args: Any, result: Row, **_: Any) -> None:
            names = "rates", "epochs", "loss", "seconds"
            number = int(result["trial_id"].split("_")[-1])
            reports.append(
                dict(member=number) | {name: result[name] for name in names}
            )

    # Processes of Ray import what this one can.
    paths = [str(pathlib.Path(__file__).parent), *sys.path]
    with tempfile.TemporaryDirectory() as folder:
        tuner = tuner_of(tune, breed, size, folder, Reports())
        with ray.init(
            num_cpus=1,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            runtime_env=dict(env_vars=dict(PYTHONPATH=os.pathsep.join(paths))),
        ):
            results = tuner.fit()
        for error in results.errors:
            raise error
        best = results.get_best_result(scope="last")
        model = breed.frozen()
        model.load_weights(f"{best.checkpoint.path}/state.weights.h5")
    return model, best.metrics["rates"], reports


def tuner_of(
    tune: Any, breed: Breed, size: int, folder: str, reports: Any
) -> Any:
    from ray.tune.schedulers import PopulationBasedTraining

    domain = tune.loguniform if breed.log else tune.uniform
    number = len(breed.untrained().get_rho())
    space = {f"rate_{i}": domain(breed.low, breed.high) for i in range(number)}

    def within(config: Row) -> Row:
        rates = np.clip(list(config.values()), breed.low, breed.high)
        return dict(zip(config, rates.tolist(), strict=True))

    scheduler = PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=1,
        hyperparam_mutations=space,
        custom_explore_fn=within,
        synch=True,
    )
    return tune.Tuner(
        member(tune, breed),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            num_samples=size,
            scheduler=scheduler,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            storage_path=folder,
            verbose=0,
            callbacks=[reports],
            stop={"training_iteration": -(-breed.epochs // GENERATION)},
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
        ),
    )


def member(tune: Any, breed: Breed) -> Any:
    """What Ray trains, a generation a step; one process takes turns."""

    class Member(tune.Trainable):
        def setup(self, config: Row, breed: Breed) -> None:
            keras.utils.set_random_seed(breed.seed)
            self.breed = breed
            self.fit = dict(batch_size=breed.batch_size, verbose=0)
            self.model = breed.frozen()
            # Ray starts a process for every generation. It compiles here.
            few = [a[: breed.batch_size] for a in breed.train]
            self.model.fit(*few, **self.fit)
            self.reg_loss()
            self.reset_config(config)
            self.begin = breed.clock()

        def reset_config(self, config: Row) -> bool:
            """Goes on with another member, whose state is loaded, if any."""
            fresh = self.breed.frozen()
            self.model.set_weights(fresh.get_weights())
            state = self.model.optimizer.variables, fresh.optimizer.variables
            for variable, value in zip(*state, strict=True):
                variable.assign(value)
            return True

        def reg_loss(self) -> float:
            reg = self.breed.reg
            return self.model.evaluate(*reg, verbose=0, return_dict=True)[
                "loss"
            ]

        def step(self) -> Row:
            keras.utils.set_random_seed(
                self.breed.seed + 1000 * (self.iteration + 1)
            )
            paths = self.model.get_rho()
            rates = [self.config[f"rate_{i}"] for i in range(len(paths))]
            self.model.set_rho(dict(zip(paths, rates, strict=True)))
            first = self.iteration * GENERATION
            last = min(first + GENERATION, self.breed.epochs)
            self.model.fit(
                *self.breed.train, initial_epoch=first, epochs=last, **self.fit
            )
            loss = self.reg_loss()
            # Of all that this process did since the last one.
            end = self.breed.clock()
            spent, self.begin = end - self.begin, end
            return dict(rates=rates, epochs=last, loss=loss, seconds=spent)

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            self.model.save_weights(f"{checkpoint_dir}/state.weights.h5")

        def load_checkpoint(self, checkpoint: str) -> None:
            # With the state of the optimizer. The rates are set in a step.
            self.model.load_weights(f"{checkpoint}/state.weights.h5")

    trainable = tune.with_parameters(Member, breed=breed)
    return tune.with_resources(
        trainable, dict(cpu=1, gpu=0 if device() == "cpu" else 1)
    )
