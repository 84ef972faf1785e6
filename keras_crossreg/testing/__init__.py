"""What tests of layers of one's own call."""

from keras_crossreg.testing.check_rho_layer import check_rho_layer

__all__ = ["check_rho_layer"]
