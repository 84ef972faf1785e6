"""Why rho wait: learned translation, with moving averages in time and not.

Not in the paper. Batch normalization predicts by moving averages, which start
at 0 and 1 and forget that by `momentum` a step; the regularization pass sees
that network. Varied are the first width of the translation in pixels, how many
steps rho wait (200 is the default here), and `momentum`. In the last rows
widths stay where they start, and the regularization set is trained on too.
There is augmentation alone, as in the first rows of augmentation.py.

    python examples/paper/warmup.py --scale smoke     # seconds
    python examples/paper/warmup.py                   # a quarter of an hour
"""

from __future__ import annotations

from functools import partial

import keras
from augmentation import augmented
from augmentation import row
from common import THIN
from common import Columns
from common import Experiment
from common import Row
from common import dots
from common import main
from common import quick
from common import some

TRANSLATION: Columns = {
    "translation": ("translation, px", 2, 1),
}


def learned(
    experiment: Experiment,
    translation: float,
    reg_warmup: int | None,
    momentum: float = 0.99,
) -> Row:
    model = augmented(experiment, translation=translation)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum
    settings = dict(reg_warmup=reg_warmup)
    return row(
        experiment, experiment.cross_regularize(model, settings=settings)
    )


def fixed(experiment: Experiment, translation: float) -> Row:
    model = augmented(experiment, translation=translation)
    model.freeze_rho()
    return row(experiment, experiment.fit(model, experiment.everything))


AT_ONCE = dict(translation=1, reg_warmup=0)
RUNS = {
    "learned from 1 px, at once": partial(learned, **AT_ONCE),
    "learned from 1 px, at once, momentum 0.9": partial(
        learned, **AT_ONCE, momentum=0.9
    ),
    **{
        f"learned from {start} px": partial(
            learned, translation=start, reg_warmup=None
        )
        for start in (1, 2, 3)
    },
    **{
        f"{start} px, fixed": partial(fixed, translation=start)
        for start in (0.5, 1, 2, 3)
    },
}


def command(arguments: list[str] | None = None) -> None:
    main(
        __doc__,
        "warmup",
        RUNS,
        arguments,
        columns=some("accuracy", "gap", "nll", "ece") | TRANSLATION,
        figures={
            "": partial(dots, columns=some("accuracy", "nll") | TRANSLATION)
        },
        scales=quick(blocks=THIN),
    )


if __name__ == "__main__":
    command()
