"""Metrics of how far predicted probabilities can be trusted."""

from keras_crossreg.metrics.brier_score import BrierScore
from keras_crossreg.metrics.expected_calibration_error import (
    ExpectedCalibrationError,
)
from keras_crossreg.metrics.negative_log_likelihood import NegativeLogLikelihood

__all__ = [
    "BrierScore",
    "ExpectedCalibrationError",
    "NegativeLogLikelihood",
]
