"""What cross-regularization needs: K, r, averages, two sets, alternation.

One row changes one thing of the defaults, K = 16 and r = 12:

- K and r;
- deterministic validation: the regularization pass without noise, whose
  gradient of sigma is zero. Sigma stays where it starts;
- rho on both sets: regularization batches are drawn from the training set
  too;
- one step: what theta's next step on the training batch answers to rho is
  added to the gradient, as in T1-T2 of Luketina et al., 2016;
- joint: theta and rho follow one loss, of a training batch with one sample of
  the noise, in one step. Nothing is held out.

The deterministic and the joint row have steps of their own, by TensorFlow, and
are not there on other backends.

    python examples/paper/ablation.py --scale smoke     # seconds
    python examples/paper/ablation.py                   # 20 minutes
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
from common import THIN
from common import Columns
from common import Experiment
from common import Row
from common import dots
from common import kcr
from common import main
from common import noise
from common import quick
from common import some

DEFAULTS = "cross-regularized, K = 16, r = 12"
OWN_STEPS = keras.backend.backend() == "tensorflow"


def row(experiment: Experiment, model: kcr.CrossRegModel) -> Row:
    found = experiment.row(model)
    sigmas = found["rho"] or [0.0]
    return found | dict(least=min(sigmas), most=max(sigmas))


def plain(experiment: Experiment) -> Row:
    model = experiment.fit(experiment.build(), experiment.everything)
    return row(experiment, model)


def with_settings(**settings: Any) -> Callable[[Experiment], Row]:
    def run(experiment: Experiment) -> Row:
        model = experiment.build(noise)
        experiment.cross_regularize(model, settings=settings)
        return row(experiment, model)

    return run


def deterministic(experiment: Experiment) -> Row:
    from ablation_steps import Deterministic

    model = experiment.build(noise, kind=Deterministic)
    return row(experiment, experiment.cross_regularize(model))


def both_sets(experiment: Experiment) -> Row:
    model = experiment.fit(
        experiment.build(noise),
        experiment.train,
        reg_data=experiment.everything,
    )
    return row(experiment, model)


def joint(experiment: Experiment) -> Row:
    from ablation_steps import Joint

    model = experiment.build(noise, kind=Joint)
    # Not in steps of their own.
    model.freeze_rho()
    return row(experiment, experiment.fit(model, experiment.everything))


RUNS = {
    "no regularization": plain,
    DEFAULTS: with_settings(),
    **{
        f"K = {k}": with_settings(num_samples=k, reg_freq=12)
        for k in (1, 2, 4, 8, 32)
    },
    **{f"r = {r}": with_settings(reg_freq=r) for r in (1, 4, 36, 100)},
    **({"deterministic validation": deterministic} if OWN_STEPS else {}),
    "rho on both sets": both_sets,
    "one step": with_settings(hypergradient="one_step"),
    **({"joint": joint} if OWN_STEPS else {}),
}
SIGMAS: Columns = {
    "least": ("least sigma", 2, 1),
    "most": ("largest sigma", 2, 1),
}


def command(arguments: list[str] | None = None) -> None:
    main(
        __doc__,
        "ablation",
        RUNS,
        arguments,
        columns=some("accuracy", "gap", "nll", "ece") | SIGMAS | some("time"),
        figures={"": partial(dots, columns=some("accuracy", "nll") | SIGMAS)},
        scales=quick(blocks=THIN),
    )


if __name__ == "__main__":
    command()
