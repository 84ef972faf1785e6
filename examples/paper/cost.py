"""What each method of noise.py spends on its accuracy.

Seconds of training, tuning included, and forward passes of one example: those
of training, of every trial of the search, and the K samples of the steps of
rho. Seconds are those of the processor, or of the wall where there is a GPU,
and include what TensorFlow does once for every network; validation is left
out. Reads the results of noise.py, and trains what is missing there.

    python examples/paper/cost.py --scale smoke     # seconds
    python examples/paper/cost.py                   # half an hour, or none
"""

from __future__ import annotations

from functools import partial

from common import Columns
from common import dots
from common import main
from common import some
from noise import RUNS
from noise import WITH_MORE_LAYERS

# Whose results these are.
STORED = "noise"
COST: Columns = {
    "training": ("seconds", 0, 1),
    "passes": ("million forward passes", 2, 1e-6),
}


def command(arguments: list[str] | None = None) -> None:
    main(
        __doc__,
        "cost",
        RUNS,
        arguments,
        columns=some("accuracy", "nll") | COST,
        figures={"": partial(dots, columns=some("accuracy") | COST)},
        scales=WITH_MORE_LAYERS,
        stored=STORED,
    )


if __name__ == "__main__":
    command()
