"""Writes `0.1.0.keras` and what it must give when it is loaded.

    python tests/data/make_0_1_0.py

Run once, with version 0.1.0: the point of the file is that it is old.
"""

import pathlib
import tempfile
import zipfile

import keras
import numpy as np

import keras_crossreg as kcr

FOLDER = pathlib.Path(__file__).parent


def main():
    assert kcr.__version__ == "0.1.0"
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 1), name="images")
    x = kcr.layers.LearnedAugmentation(zoom=None, seed=1)(inputs)
    x = keras.layers.Flatten()(x)
    dense = keras.layers.Dense(3, use_bias=False)
    x = kcr.layers.NormMagnitude(dense, axis=-1, name="magnitude")(x)
    x = keras.layers.BatchNormalization(center=False, scale=False)(x)
    x = kcr.layers.GaussianNoiseScale(axis=-1, seed=2, name="noise")(x)
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    model = kcr.CrossRegModel(inputs, outputs)
    model.compile(
        keras.optimizers.Adam(0.01, clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(),
        metrics=["accuracy"],
        rho_optimizer=keras.optimizers.Adam(0.1),
        num_samples=3,
        reg_freq=2,
        reg_warmup=1,
        eval_num_samples=5,
        averaging="probabilities",
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 4, 4, 1)).astype("float32")
    y = (x.mean(axis=(1, 2, 3)) > 0).astype("int32")
    model.fit(
        x[:24],
        y[:24],
        batch_size=8,
        epochs=3,
        reg_data=(x[24:], y[24:]),
        reg_batch_size=32,
        verbose=0,
    )
    rho = {path.replace("/", " "): v for path, v in model.get_rho().items()}
    np.savez_compressed(
        FOLDER / "0.1.0.npz",
        x=x[:5],
        # Without noise: TensorFlow's generators may change.
        predictions=model(x[:5]),
        steps=[
            int(optimizer.iterations)
            for optimizer in (model.optimizer, model.rho_optimizer)
        ],
        seed=model.get_layer("noise").seed_generator.state,
        **rho,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        # Keras does not compress.
        with (
            zipfile.ZipFile(path) as source,
            zipfile.ZipFile(
                FOLDER / "0.1.0.keras",
                "w",
                zipfile.ZIP_DEFLATED,
                compresslevel=9,
            ) as target,
        ):
            for name in source.namelist():
                target.writestr(name, source.read(name))


if __name__ == "__main__":
    main()
