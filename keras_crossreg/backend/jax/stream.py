"""Batches of the regularization set on JAX."""

from __future__ import annotations

from typing import Any

import jax
import keras
from keras import tree

from keras_crossreg.trainers.array_stream import ArrayStream


class JaxStream(ArrayStream):
    """Regularization batches, sent to the device ahead of their steps."""

    def _on_device(self, batch: Any) -> Any:
        if keras.distribution.distribution() is not None:
            # The layout of a batch is that of Keras, which shares it out.
            return batch
        return tree.map_structure(
            lambda x: None if x is None else jax.device_put(x), batch
        )
