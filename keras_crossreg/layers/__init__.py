"""Layers that own a regularization weight."""

from keras_crossreg.layers.gaussian_noise_scale import GaussianNoiseScale
from keras_crossreg.layers.learned_augmentation import LearnedAugmentation
from keras_crossreg.layers.learned_dropout import LearnedDropout
from keras_crossreg.layers.learned_gaussian_dropout import (
    LearnedGaussianDropout,
)
from keras_crossreg.layers.norm_magnitude import NormMagnitude
from keras_crossreg.layers.rho_layer import RhoLayer
from keras_crossreg.layers.temperature import Temperature

__all__ = [
    "GaussianNoiseScale",
    "LearnedAugmentation",
    "LearnedDropout",
    "LearnedGaussianDropout",
    "NormMagnitude",
    "RhoLayer",
    "Temperature",
]
