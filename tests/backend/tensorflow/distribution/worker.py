"""One of two workers; `test_distribution.py` starts both."""

import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf
from helpers import compile_model
from helpers import make_data
from helpers import make_model
from helpers import values
from still import train
from still import twin_data

import keras_crossreg as kcr

# Before anything else that TensorFlow does.
strategy = tf.distribute.MultiWorkerMirroredStrategy()

KEPT = {}


def keep(name, value):
    KEPT[name] = np.asarray(value)


def save_kept(folder):
    task = strategy.cluster_resolver.task_id
    np.savez(folder / f"worker_{task}.npz", **KEPT)


def still_training(folder):
    """As on one device."""
    checkpoint = keras.callbacks.ModelCheckpoint(folder / "model.keras")
    is_chief = strategy.cluster_resolver.task_id == 0
    model, history = train(
        strategy,
        callbacks=[checkpoint] if is_chief else None,
        validation_data=None,
    )
    for name, value in history.items():
        keep(f"log {name}", value)
    for i, value in enumerate(values(model.weights)):
        keep(f"weight {i}", value)


def noise():
    """What this worker draws, where all start from the same seed."""
    with strategy.scope():
        layer = kcr.layers.GaussianNoiseScale(seed=1)
        layer.build((None, 4))
    x = np.ones((3, 4), "float32")
    outputs = strategy.run(tf.function(lambda: layer(x, training=True)))
    keep("noise", strategy.experimental_local_results(outputs)[0])


class Watch(kcr.CrossRegModel):
    """Notes the first feature of the regularization rows that it sees."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def rho_step(self, data):
        self.seen.append(data[0][:, 0].numpy())
        return super().rho_step(data)


def shards():
    """The regularization rows that this worker sees."""
    rows = np.arange(12, dtype="float32")
    arrays = np.stack([rows] * 3, axis=1), rows.astype("int32") % 2
    dataset = tf.data.Dataset.from_tensor_slices(arrays).batch(4)
    for name, reg_data in (("arrays", arrays), ("dataset", dataset)):
        with strategy.scope():
            model = compile_model(make_model(cls=Watch), reg_freq=1)
        model.fit(
            *twin_data(),
            batch_size=8,
            reg_data=reg_data,
            reg_batch_size=4,
            verbose=0,
        )
        keep(f"rows of {name}", np.stack(model.seen))


def refusal():
    """A clear error, of both workers."""
    with strategy.scope():
        model = compile_model(make_model())
    try:
        model.fit(*make_data(), reg_data=make_data(1, seed=1), verbose=0)
    except ValueError as error:
        keep("error", str(error))


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    still_training(folder)
    noise()
    shards()
    refusal()
    save_kept(folder)
