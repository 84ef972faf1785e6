"""What moves rho, where Keras's optimizers do not know what rho are."""

from keras_crossreg.optimizers.anchored_adam import AnchoredAdam

__all__ = ["AnchoredAdam"]
