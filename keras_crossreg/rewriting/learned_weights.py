"""Weight regularizers of a fixed strength as learned ones."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_crossreg.regularizers.learned_l1 import LearnedL1
from keras_crossreg.regularizers.learned_l2 import LearnedL2
from keras_crossreg.regularizers.learned_regularizer import LearnedRegularizer
from keras_crossreg.rewriting.learned_forms import Form
from keras_crossreg.rewriting.learned_forms import Learned
from keras_crossreg.rewriting.learned_forms import Left
from keras_crossreg.rho import is_rho

_LEARNED: dict[type, Any] = {
    keras.regularizers.L1: LearnedL1,
    keras.regularizers.L2: LearnedL2,
}
_STRENGTHS = {keras.regularizers.L1: "l1", keras.regularizers.L2: "l2"}


def weight_form(weight: keras.Variable) -> Form:
    """The form of the regularizer of a weight.

    A learned one has no strength: what it learns is the norm, which starts at
    that of the weight.

    Returns:
        `None` where the weight has no regularizer, or one that learns.
    """
    given = getattr(weight, "regularizer", None)
    if given is None or isinstance(given, LearnedRegularizer):
        return None
    if isinstance(given, keras.regularizers.L1L2):
        return Left("of L1 and L2 at once, only one norm could be learned")
    if type(given) not in _LEARNED:
        return Left(f"{type(given).__name__} has no learned form")
    if float(getattr(given, _STRENGTHS[type(given)])) == 0:
        return Left("a strength of 0 regularizes nothing")
    if is_rho(weight):
        return Left("the weight is rho, and learns already")
    if weight.constraint is not None:
        return Left(
            "the weight has a constraint, and learned regularizers are one"
        )
    learned = _LEARNED[type(given)]()
    complexity = learned.complexity(ops.convert_to_tensor(weight))
    norm = float(ops.convert_to_numpy(complexity))
    if not 0 < norm < np.inf:
        return Left(
            f"the weight has a norm of {norm:.4g}, from which none can be "
            "learned"
        )
    start = f"{learned.name.replace('_', ' ')} {norm:.4g}"
    return Learned(learned, start)
