"""What is saved is what is loaded, and training goes on from there."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import Configured
from helpers import assert_same
from helpers import compile_model
from helpers import make_data
from helpers import make_model
from helpers import values

import keras_crossreg as kcr


def train(model, epochs=2):
    """In one order always, and a regularization set of one batch."""
    data = tf.data.Dataset.from_tensor_slices(make_data()).batch(8)
    reg = tf.data.Dataset.from_tensor_slices(make_data(12, seed=1)).batch(12)
    model.fit(data, reg_data=reg, epochs=epochs, shuffle=False, verbose=0)
    return model


def compiled(model, eagerly=True):
    # Adam, whose state matters, and a rho step at every second step.
    return compile_model(
        model,
        optimizer=keras.optimizers.Adam(0.01),
        rho_optimizer=keras.optimizers.Adam(0.05),
        reg_freq=2,
        num_samples=3,
        eval_num_samples=5,
        reg_warmup=1,
        averaging="probabilities",
        metrics=["accuracy"],
        run_eagerly=eagerly,
    )


def built(kind):
    if kind == "functional":
        return make_model()
    if kind == "subclassed":
        keras.utils.set_random_seed(0)
        return Configured(units=5)
    keras.utils.set_random_seed(0)
    layers = make_model().layers[1:]
    return kcr.wrap(keras.Sequential(layers))


@pytest.mark.parametrize("kind", ["functional", "subclassed", "wrapped"])
def test_round_trip(kind, tmp_path):
    model = train(compiled(built(kind)))
    model.freeze_rho()
    path = tmp_path / "model.keras"
    model.save(path)
    # Warnings are errors here: no optimizer state may be dropped.
    loaded = keras.models.load_model(path)
    assert isinstance(loaded, kcr.CrossRegModel)
    assert_same(values(model.weights), values(loaded.weights))
    for name in ("optimizer", "rho_optimizer"):
        old, new = getattr(model, name), getattr(loaded, name)
        assert_same(values(old.variables), values(new.variables))
        assert old.get_config() == new.get_config()
    x, _ = make_data(9, seed=2)
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), loaded.predict(x, verbose=0)
    )
    assert loaded.predict_samples(x, verbose=0).shape == (5, 9, 2)
    for name, value in model.get_compile_config().items():
        assert loaded.get_compile_config()[name] == value, name
    assert loaded.get_compile_config()["rho_frozen"] is True


def test_training_goes_on_as_if_nothing_had_been(tmp_path):
    undisturbed = train(train(compiled(make_model(), False)))
    model = train(compiled(make_model(), False))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    train(loaded)
    assert_same(values(undisturbed.weights), values(loaded.weights))
    assert_same(
        values(undisturbed.rho_optimizer.variables),
        values(loaded.rho_optimizer.variables),
    )


def test_weights(tmp_path):
    model = train(compiled(make_model()))
    model.save_weights(tmp_path / "model.weights.h5")
    # Keras loads no optimizer that has not trained yet.
    other = make_model(seed=5)
    other.load_weights(tmp_path / "model.weights.h5")
    compiled(other)
    assert model.get_rho() == other.get_rho()
    x, _ = make_data()
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), other.predict(x, verbose=0)
    )


def test_a_model_that_is_not_compiled(tmp_path):
    model = make_model()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert not loaded.compiled
    assert_same(values(model.weights), values(loaded.weights))


def test_mixed_precision(tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = train(compiled(make_model()))
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy(before)
    for name in ("optimizer", "rho_optimizer"):
        old, new = getattr(model, name), getattr(loaded, name)
        assert type(old) is type(new) is keras.optimizers.LossScaleOptimizer
        assert_same(values(old.variables), values(new.variables))


def test_clone_model():
    model = make_model()
    clone = keras.models.clone_model(model)
    assert isinstance(clone, kcr.CrossRegModel)
    assert len(clone.rho_variables) == 1
    assert {id(v) for v in clone.weights}.isdisjoint(map(id, model.weights))


def test_best_checkpoint(tmp_path):
    model = compiled(make_model())
    path = str(tmp_path / "best.keras")
    checkpoint = keras.callbacks.ModelCheckpoint(
        path, monitor="reg_loss", mode="min", save_best_only=True
    )
    x, y = make_data()
    model.fit(
        x,
        y,
        reg_data=make_data(12, seed=1),
        epochs=2,
        batch_size=8,
        callbacks=[checkpoint],
        verbose=0,
    )
    assert isinstance(keras.models.load_model(path), kcr.CrossRegModel)


def test_backup_and_restore(tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise InterruptedError

    def run(*callbacks):
        model = compiled(make_model())
        backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
        x, y = make_data()
        model.fit(
            x,
            y,
            reg_data=make_data(12, seed=1),
            epochs=3,
            batch_size=8,
            callbacks=[backup, *callbacks],
            verbose=0,
        )
        return model

    with pytest.raises(InterruptedError):
        run(Interrupt())
    model = run()
    assert int(model.optimizer.iterations) == 9
    assert int(model.rho_optimizer.iterations) == 4
