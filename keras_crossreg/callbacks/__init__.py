"""Callbacks that follow what is learned."""

from keras_crossreg.callbacks.rho_history import RhoHistory

__all__ = ["RhoHistory"]
