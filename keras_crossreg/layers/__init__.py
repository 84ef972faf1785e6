"""Layers that own a regularization weight."""

from keras_crossreg.layers.gaussian_noise_scale import GaussianNoiseScale
from keras_crossreg.layers.learned_augmentation import LearnedAugmentation
from keras_crossreg.layers.norm_magnitude import NormMagnitude
from keras_crossreg.layers.rho_layer import RhoLayer

__all__ = [
    "GaussianNoiseScale",
    "LearnedAugmentation",
    "NormMagnitude",
    "RhoLayer",
]
