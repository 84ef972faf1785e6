"""What users already have, and cross-regularization, on one task each.

All rivals but `early_stopping` and `temperature`, which need it for
themselves, train on the regularization set too.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

import keras_crossreg as kcr
from comparison.data import Task
from comparison.networks import NOTHING
from comparison.networks import Regularizer
from comparison.scores import Predict
from comparison.scores import fitted_temperature

SAMPLES = 16
LEGS = 3
TRIALS = 20
# Strengths that are held through the whole run, in the layers of ours.
HELD = {
    "noise": (0.1, 0.2, 0.3, 0.5, 0.8, 1.2),
    "dropout": (0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
}
# Beside the default.
HYPERGRADIENTS = ("direct",)
# The part of the epochs that finish.
FINISHES = {"finish": 0.5, "quarter": 0.25}


@keras.saving.register_keras_serializable("keras_crossreg_benchmarks")
class AlwaysDropout(keras.layers.Dropout):
    """Dropout that is on in predictions too."""

    def call(self, inputs: Any, training: bool = False) -> Any:
        return super().call(inputs, training=True)


def dropout(rate: float) -> Regularizer:
    return Regularizer(dropout=lambda: keras.layers.Dropout(rate))


def gaussian_noise(stddev: float) -> Regularizer:
    return Regularizer(noise=lambda _: keras.layers.GaussianNoise(stddev))


def learned_noise(sigma: float = 0.3) -> Regularizer:
    def layer(normalized: bool) -> keras.layers.Layer:
        return kcr.layers.GaussianNoiseScale(sigma, relative=not normalized)

    return Regularizer(noise=layer)


def learned_dropout(rate: float = 0.25) -> Regularizer:
    return Regularizer(dropout=lambda: kcr.layers.LearnedDropout(rate))


def learned_both() -> Regularizer:
    """Each starts with half of the variance of one alone."""
    noise, dropout = learned_noise(0.2), learned_dropout(0.125)
    return Regularizer(noise=noise.noise, dropout=dropout.dropout)


OURS: dict[str, Callable[..., Regularizer]] = {
    "noise": learned_noise,
    "dropout": learned_dropout,
    "both": learned_both,
}


class Training:
    """Trains networks for one task, and adds up what it costs.

    Args:
        task: The data and the network.
        seed: Of what is random.
        trials: Of the search with KerasTuner.
    """

    def __init__(self, task: Task, seed: int, trials: int = TRIALS) -> None:
        self.task, self.seed, self.trials = task, seed, trials
        self.passes = 0.0
        self.notes: dict[str, Any] = {}

    @property
    def cost(self) -> float:
        """In trainings of the plain network on all the data."""
        rows = len(self.task.part("train+reg")[0])
        return self.passes / (rows * self.task.epochs)

    def compile(
        self,
        model: keras.Model,
        steps: int,
        decay: float = 0.0,
        smoothing: float = 0.0,
        **special: Any,
    ) -> None:
        rate = keras.optimizers.schedules.CosineDecay(
            self.task.learning_rate, max(steps, 1)
        )
        optimizer: Any = keras.optimizers.Adam(rate)
        if decay:
            optimizer = keras.optimizers.AdamW(rate, weight_decay=decay)
        loss: Any = "sparse_categorical_crossentropy"
        if self.task.is_regression:
            loss = "mean_squared_error"
        elif smoothing:
            loss = smoothed(smoothing)
        model.compile(optimizer, loss, **special)

    def steps(self, rows: int, epochs: int) -> int:
        return -(-rows // self.task.batch_size) * epochs

    def fit(
        self, model: keras.Model, part: str, epochs: int, **options: Any
    ) -> None:
        data = self.task.part(part)
        model.fit(
            *data,
            epochs=epochs,
            batch_size=self.task.batch_size,
            verbose=0,
            **options,
        )
        self.passes += len(data[0]) * len(model.history.epoch)

    def fixed(
        self,
        regularizer: Regularizer = NOTHING,
        *,
        part: str = "train+reg",
        restarts: bool = False,
        decay: float = 0.0,
        smoothing: float = 0.0,
        **options: Any,
    ) -> keras.Model:
        """A network that was trained by Keras alone."""
        model = self.task.build(regularizer)
        epochs = np.arange(self.task.epochs)
        legs = np.array_split(epochs, LEGS) if restarts else [epochs]
        for i, leg in enumerate(legs):
            if i:
                shrink_and_perturb(model)
            steps = self.steps(len(self.task.part(part)[0]), len(leg))
            self.compile(model, steps, decay, smoothing)
            self.fit(model, part, len(leg), **options)
        return model

    def learned(
        self, kind: str, *variants: str, held: float | None = None
    ) -> keras.Model:
        """A network whose regularization was learned, or `held` from there."""
        special: dict[str, Any] = {}
        if "adam" in variants:
            special["rho_optimizer"] = keras.optimizers.Adam(0.1)
        for name in HYPERGRADIENTS:
            if name in variants:
                special["hypergradient"] = name
        task = self.task
        if held is not None:
            model = task.build(OURS[kind](held), kcr.CrossRegModel)
            special["rho_optimizer"] = keras.optimizers.SGD(0.0)
        elif kind == "learn":
            model = kcr.learn_regularizers(task.build(dropout(0.25)))
        else:
            model = task.build(OURS[kind](), kcr.CrossRegModel)
        merged = 0
        for name, part in FINISHES.items():
            if name in variants:
                merged = max(1, round(task.epochs * part))
        (x, _), (x_reg, _) = task.part("train"), task.part("reg")
        self.compile(model, self.steps(len(x), task.epochs), **special)
        self.fit(
            model,
            "train",
            task.epochs,
            reg_data=task.part("reg"),
            merge_epochs=merged,
        )
        self.passes += merged * len(x_reg)
        # A pass of a sample moves no theta, which is a third of the work.
        sampled = SAMPLES * (task.batch_size // 8)
        self.passes += int(model.rho_optimizer.iterations) * sampled * 2 / 3
        self.notes["rho"] = {
            key: np.round(value, 4).tolist()
            for key, value in model.get_rho().items()
        }
        if "refit" in variants:
            data = task.part("train+reg")
            model = kcr.refit(
                model,
                *data,
                epochs=task.epochs,
                batch_size=task.batch_size,
                verbose=0,
            )
            self.passes += len(data[0]) * task.epochs
        return model


def smoothed(smoothing: float) -> Callable[[Any, Any], Any]:
    """The cross-entropy with smoothed labels, of integer labels."""

    def loss(y: Any, p: Any) -> Any:
        labels = ops.one_hot(ops.reshape(y, (-1,)), p.shape[-1])
        return keras.losses.categorical_crossentropy(
            labels, p, label_smoothing=smoothing
        )

    return loss


def shrink_and_perturb(model: keras.Model) -> None:
    """Ash and Adams (2020): half of theta, and a tenth of a fresh one."""
    fresh = keras.models.clone_model(model)
    for old, new in zip(
        model.trainable_variables, fresh.trainable_variables, strict=True
    ):
        old.assign(0.5 * old + 0.1 * new)
    # What batch normalization expects shrinks with the kernels.
    factors = {"moving_mean": 0.5, "moving_variance": 0.25}
    for variable in model.non_trainable_variables:
        if variable.name in factors:
            variable.assign(variable * factors[variable.name])


def of(model: keras.Model) -> Predict:
    def predict(x: np.ndarray) -> np.ndarray:
        return np.asarray(model.predict(x, batch_size=500, verbose=0))

    return predict


def mean_of(predictors: list[Predict]) -> Predict:
    return lambda x: np.mean([predict(x) for predict in predictors], axis=0)


# The runs: each trains, and returns what predicts.


def fixed(**options: Any) -> Callable[[Training, bool], Predict]:
    def run(training: Training, restarts: bool) -> Predict:
        return of(training.fixed(restarts=restarts, **options))

    return run


def early_stopping(training: Training, restarts: bool) -> Predict:
    callback = keras.callbacks.EarlyStopping(
        patience=max(2, training.task.epochs // 5), restore_best_weights=True
    )
    model = training.fixed(
        part="train",
        validation_data=training.task.part("reg"),
        callbacks=[callback],
    )
    return of(model)


def mc_dropout(rate: float) -> Callable[[Training, bool], Predict]:
    """Gal and Ghahramani (2016)."""

    def run(training: Training, restarts: bool) -> Predict:
        model = training.fixed(dropout(rate))
        on = Regularizer(dropout=lambda: AlwaysDropout(rate))
        sampled = training.task.build(on)
        sampled.set_weights(model.get_weights())
        return mean_of([of(sampled)] * SAMPLES)

    return run


def temperature(training: Training, restarts: bool) -> Predict:
    model = training.fixed(part="train")
    return fitted_temperature(of(model), training.task.part("reg"))


def ensemble(size: int) -> Callable[[Training, bool], Predict]:
    """Lakshminarayanan et al. (2017)."""

    def run(training: Training, restarts: bool) -> Predict:
        members = []
        for i in range(size):
            keras.utils.set_random_seed(1000 * i + training.seed)
            members.append(of(training.fixed()))
        return mean_of(members)

    return run


def tuner(training: Training, restarts: bool) -> Predict:
    """Bayesian search over one rate of dropout, and weight decay."""
    import keras_tuner

    def settings(hp: Any) -> dict[str, Any]:
        rate = hp.Float("rate", 0.0, 0.6)
        decay = hp.Float("weight_decay", 1e-3, 10.0, sampling="log")
        return dict(regularizer=dropout(rate), decay=decay)

    class Search(keras_tuner.BayesianOptimization):
        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> float:
            keras.utils.set_random_seed(training.seed)
            chosen = settings(trial.hyperparameters)
            model = training.fixed(part="train", **chosen)
            # The NLL at the end; a squared error ranks regressions alike.
            x, y = training.task.part("reg")
            return float(model.evaluate(x, y, verbose=0))

    with tempfile.TemporaryDirectory() as folder:
        space = keras_tuner.HyperParameters()
        settings(space)
        search = Search(
            objective=keras_tuner.Objective("loss", "min"),
            hyperparameters=space,
            max_trials=training.trials,
            seed=training.seed,
            directory=folder,
        )
        search.search(verbose=0)
        best = search.get_best_hyperparameters()[0]
    training.notes["best"] = dict(best.values)
    keras.utils.set_random_seed(training.seed)
    return of(training.fixed(**settings(best)))


def ours(
    kind: str, *variants: str, held: float | None = None
) -> Callable[[Training, bool], Predict]:
    def run(training: Training, restarts: bool) -> Predict:
        return of(training.learned(kind, *variants, held=held))

    return run


@dataclasses.dataclass(frozen=True)
class Run:
    """One row of the table.

    Args:
        train: Trains, and returns what predicts.
        restarts: Whether the training is cut in legs. Defaults to `False`.
        for_regression: Whether it makes sense there. Defaults to `True`.
    """

    train: Callable[[Training, bool], Predict]
    restarts: bool = False
    for_regression: bool = True


def all_runs() -> dict[str, Run]:
    simple = {"plain": fixed()}
    for rate in (0.1, 0.25, 0.5):
        simple[f"dropout={rate}"] = fixed(regularizer=dropout(rate))
    simple["noise=0.3"] = fixed(regularizer=gaussian_noise(0.3))
    for decay in (0.04, 0.4, 4.0):
        simple[f"adamw={decay:g}"] = fixed(decay=decay)
    runs = {name: Run(train) for name, train in simple.items()}
    runs["label_smoothing=0.1"] = Run(
        fixed(smoothing=0.1), for_regression=False
    )
    runs["early_stopping"] = Run(early_stopping)
    runs["mc_dropout=0.25"] = Run(mc_dropout(0.25))
    runs["temperature"] = Run(temperature, for_regression=False)
    runs["ensemble=3"] = Run(ensemble(3))
    runs["tuner"] = Run(tuner)
    for name in RESTARTED:
        runs[f"{name}+restarts"] = Run(simple[name], restarts=True)
    ways = itertools.product(
        (*OURS, "learn"),
        ("", *HYPERGRADIENTS),
        ("", "adam"),
        ("", *FINISHES, "refit"),
    )
    for kind, *rest in ways:
        variants = [v for v in rest if v]
        name = "+".join([f"ours={kind}", *variants])
        runs[name] = Run(ours(kind, *variants))
    for kind, strengths in HELD.items():
        for held in strengths:
            name = f"ours={kind}+held={held}+finish"
            runs[name] = Run(ours(kind, "finish", held=held))
    return runs


RESTARTED = ("plain", "dropout=0.25", "dropout=0.5", "noise=0.3", "adamw=0.4")
RUNS = all_runs()
