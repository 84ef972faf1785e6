"""Trains on all GPUs of a machine, or on several machines.

docs/distribution.md says how to start it. Needs scikit-learn, for its data.
"""

import argparse
import os

import keras
import tensorflow as tf
from sklearn.datasets import load_digits

import keras_crossreg as kcr

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--save", default="distributed.keras")
arguments = parser.parse_args()

# First of all: TensorFlow connects the machines when it starts.
if "TF_CONFIG" in os.environ:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
else:
    strategy = tf.distribute.MirroredStrategy()
replicas = strategy.num_replicas_in_sync

# The same on every machine: the data, and the order they come in.
keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32")
train, reg, test = slice(0, 1000), slice(1000, 1100), slice(1100, None)

# Everything that has variables is made in the scope.
with strategy.scope():
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(64, use_bias=False)(inputs)
    hidden = keras.layers.BatchNormalization(center=False, scale=False)(hidden)
    hidden = kcr.layers.GaussianNoiseScale()(hidden)
    hidden = keras.layers.ReLU()(hidden)
    outputs = keras.layers.Dense(10, activation="softmax")(hidden)
    model = kcr.CrossRegModel(inputs, outputs)
    model.compile(
        "adam",
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        reg_freq=8,
    )

# One machine of a cluster, its chief, writes: files, and the progress bar.
cluster = strategy.cluster_resolver
is_chief = cluster is None or cluster.task_id == 0

# Batch sizes are of all replicas together.
model.fit(
    x[train],
    y[train],
    batch_size=16 * replicas,
    reg_data=(x[reg], y[reg]),
    reg_batch_size=16 * replicas,
    epochs=arguments.epochs,
    verbose=2 if is_chief else 0,
)

# On every machine: they average their results.
loss, accuracy = model.evaluate(x[test], y[test], verbose=0)

if is_chief:
    print(f"{replicas} replicas, test accuracy {accuracy:.3f}")
    model.rho_summary()
    model.save(arguments.save)
