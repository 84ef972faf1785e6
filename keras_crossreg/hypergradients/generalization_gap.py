"""A first-order gradient of noise in which theta's answer has a part."""

from __future__ import annotations

from typing import Any

import keras

from keras_crossreg.checks import check_number
from keras_crossreg.hypergradients.options import Hypergradient


@keras.saving.register_keras_serializable(package="keras_crossreg")
class GeneralizationGap(Hypergradient):
    """Noise closes the generalization gap twice: as theta are, and as they get.

    `dL_train/drho + c d(L_reg - L_train)/drho`, both losses those of the
    average of K samples, with theta held. First order: one more sampling pass,
    over as many training examples as there are in the regularization batch.

    With `L_reg = L_train + gap`, theta at the optimum of training and the
    envelope theorem, the whole derivative of `L_reg` is `dL_train/drho` and
    that of the gap. Of the latter the direct gradient sees what noise does to
    predictions of theta as they are now. It misses that theta which are
    trained under more noise memorize less, and so it learns too little noise.
    `c` says how much of the gap noise closes in all, in units of what it
    closes at once: 1 is the direct gradient, 2 takes theta's answer to be as
    much again. That is a rule of thumb and no theorem;
    `docs/defaults.md` has what it was measured on.

    For rho of layers that are stochastic in sampling passes: noise, dropout,
    augmentation. Other rho, such as norms and temperatures, have the direct
    gradient: there it is close to the whole one.

    Args:
        factor: Float c, at least 1. Defaults to `2.0`.
        batch_size: Integer, training examples of a rho step. `None` for as
            many as the regularization batch has. Defaults to `None`.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> gap = kcr.hypergradients.GeneralizationGap(factor=1.5)
    >>> model.compile("adam", "mse", hypergradient=gap)
    """

    def __init__(
        self, factor: float = 2.0, batch_size: int | None = None
    ) -> None:
        super().__init__(batch_size)
        self.factor = check_number("factor", factor, 1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}
