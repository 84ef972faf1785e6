"""The networks that are measured on a GPU, with noise in the usual places.

Each takes the inputs, and what makes a layer of noise or `None`, and returns
features. Images are of 32 by 32 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from defaults import normalized

Body = Callable[[Any, Any], Any]


def convolution(filters: int, size: int = 3, strides: int = 1) -> Any:
    return keras.layers.Conv2D(
        filters, size, strides, padding="same", use_bias=False
    )


def vgg_16(width: int = 64) -> Body:
    """Thirteen convolutions, and a dense layer as in `examples/paper`."""

    def body(x: Any, noise: Any) -> Any:
        for factor, repeats in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
            for _ in range(repeats):
                x = normalized(convolution(factor * width)(x), noise)
            x = keras.layers.MaxPooling2D()(x)
        x = keras.layers.Flatten()(x)
        dense = keras.layers.Dense(8 * width, use_bias=False)
        return normalized(dense(x), noise)

    return body


def wrn_16(width: int = 64) -> Body:
    """Two blocks a group; WRN-16-4 with a `width` of 64.

    Reference:

    - Zagoruyko and Komodakis, 2016, Wide residual networks.
    """

    def block(x: Any, noise: Any, filters: int, strides: int) -> Any:
        x = normalized(x, noise)
        y = convolution(filters, strides=strides)(x)
        y = convolution(filters)(normalized(y, noise))
        if strides > 1 or x.shape[-1] != filters:
            x = convolution(filters, 1, strides)(x)
        return keras.layers.add([x, y])

    def body(x: Any, noise: Any) -> Any:
        x = convolution(16)(x)
        for group in range(3):
            for i in range(2):
                strides = 2 if group and not i else 1
                x = block(x, noise, width * 2**group, strides)
        return keras.layers.GlobalAveragePooling2D()(normalized(x, noise))

    return body


class Places(keras.layers.Layer):
    """Adds what is learned of each place."""

    def build(self, input_shape: Any) -> None:
        self.table = self.add_weight(shape=input_shape[1:], name="table")

    def call(self, inputs: Any) -> Any:
        return inputs + self.table


def transformer(width: int = 192, depth: int = 6) -> Body:
    """Of 64 patches of 4 by 4 pixels, noise behind each normalization."""

    def normalized_rows(x: Any, noise: Any) -> Any:
        x = keras.layers.LayerNormalization(center=False, scale=False)(x)
        return noise()(x) if noise else x

    def body(x: Any, noise: Any) -> Any:
        x = keras.layers.Conv2D(width, 4, strides=4)(x)
        x = keras.layers.Reshape((-1, width))(x)
        x = Places()(x)
        for _ in range(depth):
            y = normalized_rows(x, noise)
            heads = max(width // 64, 1)
            x = x + keras.layers.MultiHeadAttention(heads, width // heads)(y, y)
            y = normalized_rows(x, noise)
            y = keras.layers.Dense(4 * width, activation="gelu")(y)
            x = x + keras.layers.Dense(width)(y)
        return keras.layers.GlobalAveragePooling1D()(normalized_rows(x, noise))

    return body


NETWORKS: dict[str, Callable[..., Body]] = {
    "VGG-16": vgg_16,
    "WRN-16-4": wrn_16,
    "transformer": transformer,
}
# A width with which a network is compiled and run in seconds.
NARROW = {"VGG-16": 4, "WRN-16-4": 4, "transformer": 8}
