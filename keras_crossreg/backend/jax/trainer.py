"""Theta's step, rho's step, and their alternation, on JAX."""

from __future__ import annotations

from keras_crossreg.trainers.trainer import CrossRegTrainer


class JaxTrainer(CrossRegTrainer):
    """The training half of `CrossRegModel`, on JAX."""
