"""Learned augmentation: translation, rotation, shear, zoom and brightness.

Rows of natural images first (`--data svhn_cropped` is the paper's set): no
augmentation, the layer's start values as they are, and what is learned. Then a
question of a reviewer, on scikit-learn's digits: is a rotation learned where
it would change the label, as that of a 6 or a 9? Its width starts at 10 and at
90 degrees. In the control, all images were turned by random quarters of a
circle before: to turn them further changes no label that could be told. Digits
are of 8 by 8 pixels, at most 1,000 to train on and 200 for regularization.

    python examples/paper/augmentation.py --scale smoke     # seconds
    python examples/paper/augmentation.py                   # 10 minutes
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import keras
import numpy as np
from common import THIN
from common import Columns
from common import Experiment
from common import Row
from common import dots
from common import kcr
from common import main
from common import probabilities
from common import quick
from common import some
from sklearn.datasets import load_digits


def row(experiment: Experiment, model: kcr.CrossRegModel) -> Row:
    """With the learned widths by name."""
    rho = model.get_rho().items()
    widths = {path.rpartition("/")[2]: width for path, width in rho}
    return experiment.row(model) | widths


def plain(experiment: Experiment) -> Row:
    model = experiment.fit(experiment.build(), experiment.everything)
    return row(experiment, model)


def augmented(experiment: Experiment, **starts: float) -> kcr.CrossRegModel:
    layer = kcr.layers.LearnedAugmentation(contrast=None, **starts)
    return experiment.build(first=layer)


def at_start(experiment: Experiment) -> Row:
    model = augmented(experiment)
    model.freeze_rho()
    return row(experiment, experiment.fit(model, experiment.everything))


def learned(experiment: Experiment) -> Row:
    model = experiment.cross_regularize(augmented(experiment))
    return row(experiment, model)


def finished(experiment: Experiment) -> Row:
    """In one run: rho learn in half of the epochs."""
    return row(experiment, experiment.finish(augmented(experiment)))


def refitted(experiment: Experiment) -> Row:
    model = experiment.cross_regularize(augmented(experiment))
    return row(experiment, experiment.refit(model))


class Digits(Experiment):
    """Of eight by eight pixels; `turned` by random quarters of a circle."""

    def __init__(self, like: Experiment, turned: bool) -> None:
        self.turned = turned
        scale = dataclasses.replace(
            like.scale,
            train=min(like.scale.train, 1000),
            reg=min(like.scale.reg, 200),
            test=min(like.scale.test, 597),
            blocks=((16,), (32,)),
            units=64,
            epochs=min(2 * like.scale.epochs, 40),
            batch_size=min(like.scale.batch_size, 32),
        )
        super().__init__(scale, like.seed, "digits")

    def load(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        data = load_digits()
        x, y = data.images[..., None], data.target.astype("int32")
        if self.turned:
            rng = np.random.default_rng(0)
            quarters = rng.integers(0, 4, len(x))
            pairs = zip(x, quarters, strict=True)
            x = np.stack([np.rot90(image, n) for image, n in pairs])
        chosen = slice(None, 1200) if split == "train" else slice(1200, None)
        return x[chosen], y[chosen]

    def prepare(self, x: np.ndarray) -> np.ndarray:
        return x.astype("float32") / 8 - 1


def rotated(
    like: Experiment, start: float | None, learns: bool, turned: bool
) -> Row:
    """Digits with rotation alone, from a first width in degrees."""
    experiment = Digits(like, turned)
    layer = None
    if start is not None:
        others = dict.fromkeys(
            ("translation", "shear", "zoom", "brightness", "contrast")
        )
        layer = kcr.layers.LearnedAugmentation(rotation=start, **others)
    model = experiment.build(first=layer)
    if learns:
        # Steps of about a degree.
        faster = dict(rho_optimizer=keras.optimizers.Adam(1.0), reg_freq=4)
        experiment.cross_regularize(model, settings=faster)
    else:
        model.freeze_rho()
        experiment.fit(model, experiment.everything)
    x, y = experiment.test
    right = probabilities(model, x).argmax(axis=-1) == y
    likely_wrong = float(right[np.isin(y, (6, 9))].mean())
    return row(experiment, model) | dict(six_nine=likely_wrong)


def digits(turned: bool) -> dict[str, Callable[[Experiment], Row]]:
    kinds = {
        "no rotation": (None, False),
        "rotation 90, fixed": (90.0, False),
        "rotation learned from 90": (90.0, True),
        "rotation learned from 10": (10.0, True),
    }
    name = "turned digits" if turned else "digits"
    return {
        f"{name}, {kind}": partial(
            rotated, start=start, learns=learns, turned=turned
        )
        for kind, (start, learns) in kinds.items()
    }


RUNS = {
    "no augmentation": plain,
    "start values, fixed": at_start,
    "cross-regularized": learned,
    "cross-regularized, refit": refitted,
    **digits(turned=False),
    **digits(turned=True),
}
PAPER_RUNS = {
    "no augmentation": plain,
    "start values, fixed": at_start,
    "cross-regularized": learned,
    "cross-regularized, finished": finished,
}
WIDTHS: Columns = {
    "translation": ("translation, px", 2, 1),
    "rotation": ("rotation, degrees", 1, 1),
    "shear": ("shear, degrees", 1, 1),
    "zoom": ("zoom", 3, 1),
    "brightness": ("brightness", 3, 1),
    "six_nine": ("6 and 9 right, %", 1, 100),
}


def command(arguments: list[str] | None = None) -> None:
    shown = some("accuracy", "gap") | {"rotation": WIDTHS["rotation"]}
    main(
        __doc__,
        "augmentation",
        RUNS,
        arguments,
        columns=some("accuracy", "gap", "nll") | WIDTHS,
        figures={"": partial(dots, columns=shown)},
        scales=quick(blocks=THIN),
        at_scale={"paper": PAPER_RUNS},
    )


if __name__ == "__main__":
    command()
