"""How the gradient of rho takes in that theta answers to rho."""

from keras_crossreg.hypergradients.by_name import get
from keras_crossreg.hypergradients.generalization_gap import GeneralizationGap
from keras_crossreg.hypergradients.options import Hypergradient
from keras_crossreg.hypergradients.options import Implicit
from keras_crossreg.hypergradients.options import OneStep

__all__ = ["GeneralizationGap", "Hypergradient", "Implicit", "OneStep", "get"]
