"""How the gradient of rho takes in that theta answers to rho."""

from keras_crossreg.hypergradients.options import Hypergradient
from keras_crossreg.hypergradients.options import Implicit
from keras_crossreg.hypergradients.options import OneStep
from keras_crossreg.hypergradients.options import get

__all__ = ["Hypergradient", "Implicit", "OneStep", "get"]
