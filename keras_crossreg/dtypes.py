"""In which precision sums and logs are made."""

from __future__ import annotations

from typing import Any

import keras


def at_least_float32(dtype: Any) -> str:
    """The dtype itself if it is float64, and float32 otherwise.

    `keras.backend.result_type` has float32 for float64 and float32, but on
    TensorFlow.
    """
    is_double = keras.backend.standardize_dtype(dtype) == "float64"
    return "float64" if is_double else "float32"
