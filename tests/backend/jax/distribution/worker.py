"""Trains on so many virtual devices, and writes down what came out.

Run as `worker.py DEVICES KIND`, in a process of its own: JAX counts devices
only when it starts.
"""

import os
import sys

DEVICES, KIND = int(sys.argv[1]), sys.argv[2]
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"

import json

import keras
import numpy as np
from keras import distribution as dist

import keras_crossreg as kcr


def distribute():
    """Sets the distribution that `KIND` names."""
    if KIND == "one":
        return
    devices = dist.list_devices("cpu")
    if KIND == "data":
        dist.set_distribution(dist.DataParallel(devices=devices))
        return
    shape = (DEVICES // 2, 2)
    mesh = dist.DeviceMesh(shape, ["batch", "model"], devices)
    layout = dist.LayoutMap(mesh)
    layout[".*dense.*kernel"] = dist.TensorLayout([None, "model"], mesh)
    dist.set_distribution(
        dist.ModelParallel(layout_map=layout, batch_dim_name="batch")
    )


def make_data(rows, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 6)).astype("float32")
    return x, (x[:, 0] * x[:, 1] > 0).astype("int32")


def make_model(regularizer=None):
    inputs = keras.Input((6,))
    x = kcr.layers.NormMagnitude(
        keras.layers.Dense(8, use_bias=False, name="dense_1")
    )(inputs)
    x = keras.layers.BatchNormalization(center=False, scale=False)(x)
    x = kcr.layers.GaussianNoiseScale(0.5, seed=1)(x)
    x = keras.layers.ReLU()(x)
    x = kcr.layers.LearnedDropout(0.2, seed=2)(x)
    x = keras.layers.Dense(
        8, "relu", kernel_regularizer=regularizer, name="dense_2"
    )(x)
    outputs = keras.layers.Dense(2, activation="softmax", name="out")(x)
    return kcr.CrossRegModel(inputs, outputs)


def run(regularizer=None, fit=(), **kwargs):
    # With seed 0 an input of a ReLU comes so near to zero that rounding
    # decides on its side, and with it on what follows.
    keras.utils.set_random_seed(1)
    model = make_model(regularizer)
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        **{
            "rho_optimizer": keras.optimizers.SGD(0.5),
            "num_samples": 4,
            "reg_freq": 2,
            "reg_warmup": 0,
            **kwargs,
        },
    )
    x, y = make_data(64, 0)
    history = model.fit(
        x,
        y,
        batch_size=16,
        epochs=4,
        shuffle=False,
        verbose=0,
        reg_data=make_data(40, 1),
        validation_data=make_data(32, 2),
        # It is rounded up to what the devices can share.
        **{"reg_batch_size": 7 if DEVICES > 2 else 8, **dict(fit)},
    )
    samples = model.predict_samples(x, 3, batch_size=16, verbose=0)
    return {
        "history": history.history,
        "rho": {k: np.asarray(v).tolist() for k, v in model.get_rho().items()},
        "predictions": model.predict(x, batch_size=16, verbose=0).tolist(),
        "spread": np.std(samples, axis=0).mean(axis=1).tolist(),
        "sharding": sorted(
            {str(v.value.sharding.spec) for v in model.variables}
            if KIND != "one"
            else []
        ),
    }


distribute()
RUNS = {
    "direct": {},
    "gap": dict(hypergradient="gap"),
    "in passes": dict(num_samples=6, samples_per_pass=2),
    "learned regularizer": dict(regularizer=kcr.regularizers.LearnedL2()),
    "one step": dict(
        regularizer=kcr.regularizers.LearnedL2(), hypergradient="one_step"
    ),
    "implicit": dict(
        regularizer=kcr.regularizers.LearnedL2(),
        hypergradient=kcr.hypergradients.Implicit(num_terms=3, damping=10.0),
        rho_optimizer=keras.optimizers.SGD(0.01),
    ),
    "merged": dict(fit={"merge_epochs": 2}, hypergradient="direct"),
}
DEFAULT = dict(hypergradient="direct")
print(json.dumps({k: run(**{**DEFAULT, **v}) for k, v in RUNS.items()}))
