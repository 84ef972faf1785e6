"""Weight regularizers whose strength is learned."""

from keras_crossreg.regularizers.learned_group_l1 import LearnedGroupL1
from keras_crossreg.regularizers.learned_l1 import LearnedL1
from keras_crossreg.regularizers.learned_l2 import LearnedL2
from keras_crossreg.regularizers.learned_regularizer import LearnedRegularizer
from keras_crossreg.regularizers.learned_smoothness import LearnedSmoothness

__all__ = [
    "LearnedGroupL1",
    "LearnedL1",
    "LearnedL2",
    "LearnedRegularizer",
    "LearnedSmoothness",
]
