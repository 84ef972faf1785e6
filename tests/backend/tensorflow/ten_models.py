"""Ten trainings whose numbers must not change; see `test_same_numbers.py`.

`python ten_models.py FILE` writes what they give to a `.npz` file. It reads
public names alone, so that it runs on the commit whose numbers it wrote.
"""

import os
import pathlib
import re
import sys
import tempfile

os.environ["TF_NUM_INTRAOP_THREADS"] = "1"

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_crossreg as kcr


def data(rows, seed, shape=(6,)):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, *shape)).astype("float32")
    flat = x.reshape(rows, -1)
    return x, (flat[:, 0] + flat[:, 1] ** 2 > 0.5).astype("int32")


def body(inputs):
    x = layers.Dense(8, use_bias=False)(inputs)
    x = layers.BatchNormalization(center=False, scale=False)(x)
    x = kcr.layers.GaussianNoiseScale(0.4, axis=-1, seed=1)(x)
    x = kcr.layers.LearnedDropout(0.2, seed=2)(layers.ReLU()(x))
    x = kcr.layers.NormMagnitude(layers.Dense(2))(x)
    return kcr.layers.Temperature()(x)


def functional():
    inputs = keras.Input((6,))
    return kcr.CrossRegModel(inputs, body(inputs))


class Subclassed(kcr.CrossRegModel):
    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(8, use_bias=False)
        self.norm = layers.BatchNormalization()
        self.noise = kcr.layers.GaussianNoiseScale(relative=True, seed=1)
        self.classes = layers.Dense(2)

    def call(self, inputs, training=None):
        x = self.norm(self.hidden(inputs), training=training)
        self.add_loss(1e-3 * keras.ops.mean(x**2))
        return self.classes(self.noise(x))


def wrapped():
    return kcr.wrap(
        keras.Sequential(
            [
                layers.Dense(8),
                layers.BatchNormalization(),
                kcr.layers.GaussianNoiseScale(0.3, seed=3),
                layers.Dense(2),
            ]
        )
    )


def level_sets():
    learned = kcr.regularizers
    inputs = keras.Input((6,))
    x = layers.Dense(8, kernel_regularizer=learned.LearnedL2())(inputs)
    x = layers.Dense(8, kernel_regularizer=learned.LearnedL1())(x)
    x = layers.Dense(8, kernel_regularizer=learned.LearnedSmoothness(1))(x)
    x = layers.Activation("tanh")(x)
    group = learned.LearnedGroupL1(axis=0)
    outputs = layers.Dense(2, kernel_regularizer=group)(x)
    return kcr.CrossRegModel(inputs, outputs)


def augmentation():
    inputs = keras.Input((8, 8, 1))
    x = kcr.layers.LearnedAugmentation(seed=1)(inputs)
    x = layers.Conv2D(4, 3, activation="relu")(x)
    return kcr.CrossRegModel(inputs, layers.Dense(2)(layers.Flatten()(x)))


def plain_noise():
    """What adds to a plain model, noise behind each normalization."""
    inputs = keras.Input((6,))
    x = layers.Dense(8)(inputs)
    x = layers.LayerNormalization()(x)
    x = layers.Dense(8, activation="relu")(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    return kcr.add_noise(model, seed=5)


def compiled(model, **arguments):
    defaults = dict(
        optimizer=keras.optimizers.Adam(0.01),
        rho_optimizer=keras.optimizers.Adam(0.1),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        num_samples=4,
        reg_freq=2,
        reg_warmup=3,
        hypergradient="direct",
    )
    model.compile(**{**defaults, **arguments})
    return model


def fit(model, shape=(6,), **arguments):
    x, y = data(100, 0, shape)
    defaults = dict(
        x=x,
        y=y,
        batch_size=16,
        epochs=4,
        reg_data=data(40, 1, shape),
        validation_data=data(30, 2, shape),
        verbose=0,
    )
    return model.fit(**{**defaults, **arguments}).history


def implicit(model, solver):
    solver = kcr.hypergradients.Implicit(5, damping=2.0, solver=solver)
    return compiled(model, hypergradient=solver, reg_warmup=0, reg_freq=3)


def mirrored():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    with strategy.scope():
        return compiled(functional())


def resumed(model):
    """Saved in mid-run, loaded and trained on."""
    fit(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        return keras.models.load_model(f"{folder}/model.keras")


def numbers(model, history, shape=(6,)):
    weights = {id(v) for v in model.weights + model.metrics_variables}
    arrays = {
        "rho": model.rho_variables,
        "weights": model.weights,
        "seeds": [v for v in model.variables if id(v) not in weights],
        "optimizer": model.optimizer.variables,
        "rho_optimizer": model.rho_optimizer.variables,
    }
    found = {
        f"{name}_{i}": keras.ops.convert_to_numpy(variable.value)
        for name, variables in arrays.items()
        for i, variable in enumerate(variables)
    }
    found |= {f"history_{k}": np.array(v) for k, v in history.items()}
    x, y = data(30, 2, shape)
    found["predict"] = model.predict(x, verbose=0)
    found["samples"] = model.predict_samples(x, 3, verbose=0)
    found["evaluate"] = np.array(model.evaluate(x, y, verbose=0))
    for name, value in model.get_rho().items():
        found[f"get_rho_{name.replace('/', '.')}"] = np.asarray(value)
    return found


def run(kind):
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    image = (8, 8, 1)
    if kind == "functional":
        model = compiled(resumed(compiled(functional(), reg_freq=3)))
        return numbers(model, fit(model))
    if kind == "subclassed":
        model = compiled(
            Subclassed(), steps_per_execution=2, reg_warmup=None, reg_freq=3
        )
        return numbers(model, fit(model))
    if kind == "wrapped":
        model = compiled(wrapped(), rho="gamma$", run_eagerly=True)
        dataset = tf.data.Dataset.from_tensor_slices
        x, y = dataset(data(100, 0)).batch(16), None
        reg_data = dataset(data(40, 1)).batch(10)
        history = fit(model, x=x, y=y, batch_size=None, reg_data=reg_data)
        return numbers(model, history)
    if kind == "level_sets":
        model = compiled(level_sets())
        return numbers(model, fit(model))
    if kind == "augmentation":
        model = compiled(augmentation())
        return numbers(model, fit(model, image), image)
    if kind == "passes":
        model = compiled(functional(), num_samples=7, samples_per_pass=3)
        return numbers(model, fit(model))
    if kind == "implicit":
        found = {}
        for make, solver in ((level_sets, "cg"), (functional, "neumann")):
            model = implicit(make(), solver)
            both = numbers(model, fit(model))
            found |= {f"{solver}_{name}": v for name, v in both.items()}
        return found
    if kind == "mirrored":
        model = mirrored()
        return numbers(model, fit(model))
    if kind == "merge":
        averages = keras.optimizers.SGD(0.05, use_ema=True)
        model = compiled(plain_noise(), optimizer=averages)
        x, y = data(100, 0)
        history = fit(
            model, x=x, y=y, reg_data=None, reg_split=0.2, merge_epochs=2
        )
        return numbers(model, history)
    model = compiled(level_sets())
    model.fit(
        *data(100, 0), reg_data=data(40, 1), batch_size=16, epochs=3, verbose=0
    )
    arguments = dict(epochs=3, batch_size=16, verbose=0)
    final = kcr.refit(model, *data(100, 0), **arguments)
    return numbers(final, final.history.history)


KINDS = (
    "functional",
    "subclassed",
    "wrapped",
    "level_sets",
    "augmentation",
    "passes",
    "implicit",
    "mirrored",
    "merge",
    "refit",
)


def machine():
    """What the last bits depend on: versions, and what the processor can."""
    info = pathlib.Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    flags = re.search("^flags.*", text, re.MULTILINE)
    return f"{tf.__version__} {keras.__version__} {flags and flags[0]}"


if __name__ == "__main__":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    np.savez_compressed(
        sys.argv[1],
        machine=machine(),
        **{
            f"{kind}/{name}": value
            for kind in KINDS
            for name, value in run(kind).items()
        },
    )
