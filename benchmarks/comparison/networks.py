"""Networks with two kinds of places for a regularizer, full or empty."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

Body = Callable[[Any, "Regularizer"], Any]


@dataclasses.dataclass(frozen=True)
class Regularizer:
    """What the places hold: by default nothing.

    Args:
        noise: Returns a layer for the place in front of an activation, or
            behind a normalization. It is told whether something normalizes
            its input.
        dropout: Returns a layer for the place behind the activation of a
            hidden layer, or behind a block.
    """

    noise: Callable[[bool], keras.layers.Layer] | None = None
    dropout: Callable[[], keras.layers.Layer] | None = None

    def before(self, x: Any, normalized: bool) -> Any:
        return x if self.noise is None else self.noise(normalized)(x)

    def behind(self, x: Any) -> Any:
        return x if self.dropout is None else self.dropout()(x)


NOTHING = Regularizer()


def activate(x: Any, regularizer: Regularizer, normalized: bool) -> Any:
    if normalized:
        # Noise goes behind a normalization without a trainable scale. All
        # rivals have the same one.
        x = keras.layers.BatchNormalization(center=False, scale=False)(x)
    return keras.layers.ReLU()(regularizer.before(x, normalized))


def hidden_layers(
    x: Any, widths: list[int], regularizer: Regularizer, normalized: bool
) -> Any:
    for width in widths:
        x = keras.layers.Dense(width, use_bias=not normalized)(x)
        x = regularizer.behind(activate(x, regularizer, normalized))
    return x


def dense(widths: list[int], normalized: bool = False) -> Body:
    def body(x: Any, regularizer: Regularizer) -> Any:
        return hidden_layers(x, widths, regularizer, normalized)

    return body


def image_blocks(filters: list[int], units: int) -> Body:
    """A small VGG: two convolutions a block, all normalized."""

    def body(x: Any, regularizer: Regularizer) -> Any:
        for count in filters:
            for _ in range(2):
                layer = keras.layers.Conv2D(
                    count, 3, padding="same", use_bias=False
                )
                x = activate(layer(x), regularizer, normalized=True)
            x = regularizer.behind(keras.layers.MaxPooling2D()(x))
        x = keras.layers.Flatten()(x)
        return hidden_layers(x, [units], regularizer, normalized=True)

    return body


def simple_convnet(filters: list[int], units: int) -> Body:
    """As in Keras's first example: nothing is normalized."""

    def body(x: Any, regularizer: Regularizer) -> Any:
        for count in filters:
            x = keras.layers.Conv2D(count, 3, padding="same")(x)
            x = activate(x, regularizer, normalized=False)
        x = regularizer.behind(keras.layers.MaxPooling2D()(x))
        x = keras.layers.Flatten()(x)
        return hidden_layers(x, [units], regularizer, normalized=False)

    return body


def hub_vgg(filters: list[int], units: int) -> Body:
    """KerasHub's VGG; the places are in its dense head, as there."""

    def body(x: Any, regularizer: Regularizer) -> Any:
        try:
            import keras_hub
        except ImportError as error:
            raise SystemExit(
                "This task needs KerasHub: pip install keras-hub"
            ) from error
        backbone = keras_hub.models.VGGBackbone(
            stackwise_num_repeats=[2] * len(filters),
            stackwise_num_filters=filters,
            image_shape=x.shape[1:],
        )
        x = keras.layers.Flatten()(backbone(x))
        return hidden_layers(x, [units] * 2, regularizer, normalized=False)

    return body


def convolutions_in_time(filters: list[int], units: int) -> Body:
    def body(x: Any, regularizer: Regularizer) -> Any:
        for count in filters:
            x = keras.layers.Conv1D(count, 3)(x)
            x = activate(x, regularizer, normalized=False)
            x = regularizer.behind(x)
        x = keras.layers.Flatten()(x)
        return hidden_layers(x, [units], regularizer, normalized=False)

    return body


def recurrent(words: int, width: int) -> Body:
    """A bidirectional GRU reads the embedded words."""

    def body(x: Any, regularizer: Regularizer) -> Any:
        x = keras.layers.Embedding(words, width, mask_zero=True)(x)
        x = regularizer.behind(regularizer.before(x, normalized=False))
        x = keras.layers.Bidirectional(keras.layers.GRU(width))(x)
        return regularizer.behind(regularizer.before(x, normalized=False))

    return body


@keras.saving.register_keras_serializable("keras_crossreg_benchmarks")
class Position(keras.layers.Layer):
    """Adds a learned vector for each place in the sequence."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        self.vectors = self.add_weight(
            name="vectors", shape=input_shape[1:], initializer="random_normal"
        )

    def call(self, inputs: Any) -> Any:
        return inputs + ops.cast(self.vectors, inputs.dtype)


def transformer(words: int, width: int, heads: int, depth: int) -> Body:
    """Blocks of attention and a dense network, normalized at their inputs."""

    def body(x: Any, regularizer: Regularizer) -> Any:
        def normalized(x: Any) -> Any:
            layer = keras.layers.LayerNormalization(center=False, scale=False)
            return regularizer.before(layer(x), normalized=True)

        x = keras.layers.Embedding(words, width, mask_zero=True)(x)
        x = regularizer.behind(Position()(x))
        for _ in range(depth):
            h = normalized(x)
            h = keras.layers.MultiHeadAttention(heads, width // heads)(h, h)
            x = keras.layers.Add()([x, regularizer.behind(h)])
            h = normalized(x)
            h = keras.layers.Dense(2 * width, activation="gelu")(h)
            h = keras.layers.Dense(width)(h)
            x = keras.layers.Add()([x, regularizer.behind(h)])
        return keras.layers.GlobalAveragePooling1D()(normalized(x))

    return body
