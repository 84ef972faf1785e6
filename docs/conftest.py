"""Runs every Python block of the documentation, page by page.

The blocks of a page share one namespace. It starts with what the pages say it
does: small parts of scikit-learn's digits, and a model that was fitted.
"""

import contextlib
import tempfile

import keras
import numpy as np
from sklearn.datasets import load_digits
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import keras_crossreg as kcr


def setup(namespace):
    keras.utils.set_random_seed(0)
    x, y = load_digits(return_X_y=True)
    x = (x / 16.0).astype("float32")
    ends = np.cumsum([160, 40, 40, 100])
    parts = zip(np.split(x, ends), np.split(y, ends), strict=True)
    for name in ("train", "reg", "val", "test"):
        namespace[f"x_{name}"], namespace[f"y_{name}"] = next(parts)
    namespace.update(keras=keras, kcr=kcr, np=np)

    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(32, use_bias=False)(inputs)
    hidden = keras.layers.BatchNormalization(center=False, scale=False)(hidden)
    hidden = kcr.layers.GaussianNoiseScale(name="noise")(hidden)
    hidden = keras.layers.ReLU()(hidden)
    outputs = keras.layers.Dense(10, activation="softmax")(hidden)
    model = kcr.CrossRegModel(inputs, outputs)
    model.compile(
        "adam",
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        reg_freq=4,
        run_eagerly=True,
    )
    model.fit(
        namespace["x_train"],
        namespace["y_train"],
        reg_data=(namespace["x_reg"], namespace["y_reg"]),
        verbose=0,
    )
    namespace["model"] = model

    # Blocks may write files.
    stack = contextlib.ExitStack()
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    stack.enter_context(contextlib.chdir(folder))
    namespace["_stack"] = stack


def teardown(namespace):
    namespace["_stack"].close()
    keras.utils.clear_session()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    pattern="*.md",
    setup=setup,
    teardown=teardown,
).pytest()
