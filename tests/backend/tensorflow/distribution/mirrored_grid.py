"""MirroredStrategy with everything else; see `test_distribution.py`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_same
from helpers import compile_model
from helpers import make_data
from helpers import make_model
from helpers import moved
from helpers import values
from still import assert_close
from still import still_model
from still import train
from still import twin_data
from two_devices import ONE
from two_devices import TWO

import keras_crossreg as kcr

# Each a function, as metrics and optimizers belong to one model.
MODES = {
    "eager": lambda: dict(run_eagerly=True),
    "eager, steps_per_execution=2": lambda: dict(
        run_eagerly=True, steps_per_execution=2
    ),
    "Adam": lambda: dict(
        optimizer=keras.optimizers.Adam, rho_optimizer=keras.optimizers.Adam
    ),
    "use_ema": lambda: on_both(keras.optimizers.SGD, use_ema=True),
    "loss scaling": lambda: on_both(scaled),
    "metrics": lambda: dict(
        loss="categorical_crossentropy",
        metrics=[keras.metrics.F1Score()],
        weighted_metrics=["accuracy"],
    ),
}

# What TensorFlow refuses of a step with several replicas.
REFUSED = {
    "steps_per_execution=2": (
        dict(steps_per_execution=2),
        tf.errors.InvalidArgumentError,
        "You must feed a value for placeholder",
    ),
    "gradient_accumulation_steps": (
        dict(
            optimizer=lambda: keras.optimizers.SGD(
                gradient_accumulation_steps=2
            )
        ),
        RuntimeError,
        "`merge_call` called while defining a new graph",
    ),
    "jit_compile": (
        dict(jit_compile=True),
        tf.errors.InvalidArgumentError,
        "Trying to access resource .* from device",
    ),
}


def on_both(optimizer, **kwargs):
    return dict.fromkeys(
        ("optimizer", "rho_optimizer"),
        lambda rate: optimizer(rate, **kwargs),
    )


def scaled(rate):
    return keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(rate), initial_scale=256
    )


def reg_data_of(cls):
    """What only our class takes."""
    return {} if cls is keras.Model else dict(reg_data=make_data(14, seed=1))


def one_hot(data):
    return data[0], np.eye(2, dtype="float32")[data[1]]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_equals_one_device(mode):
    arguments = {}
    if mode == "metrics":
        x, y = one_hot(twin_data())
        arguments = dict(
            x=x,
            y=y,
            reg_data=one_hot(make_data(14, seed=1)),
            validation_data=one_hot(make_data(10, seed=2)),
        )
    assert_close(
        *(
            train(strategy, MODES[mode](), **arguments)
            for strategy in (TWO, ONE)
        )
    )


@pytest.mark.parametrize("mode", REFUSED)
@pytest.mark.parametrize("cls", [kcr.CrossRegModel, keras.Model])
def test_what_tensorflow_refuses(cls, mode):
    arguments, error, message = REFUSED[mode]
    arguments = dict(arguments)
    with TWO.scope():
        model = still_model(cls)
        model.compile(
            arguments.pop("optimizer", keras.optimizers.SGD)(),
            "sparse_categorical_crossentropy",
            **arguments,
        )
    with pytest.raises(error, match=message):
        model.fit(*twin_data(), batch_size=8, verbose=0, **reg_data_of(cls))


@pytest.mark.parametrize("hypergradient", ["implicit", "gap"])
def test_other_hypergradients_are_refused(hypergradient):
    with TWO.scope():
        model = make_model()
        with pytest.raises(ValueError, match="under a strategy of 2 replicas"):
            model.compile("sgd", "mse", hypergradient=hypergradient)


def test_the_default_is_direct():
    with TWO.scope():
        model = make_model()
        model.compile("sgd", "mse")
    assert model.compile_options.hypergradient == "direct"


def test_a_model_without_rho_is_a_keras_model():
    results = []
    for cls in (kcr.CrossRegModel, keras.Model):
        with TWO.scope():
            model = make_model(rho=False, cls=cls, dropout=0.2)
            model.compile(
                "adam", "sparse_categorical_crossentropy", metrics=["accuracy"]
            )
        history = model.fit(
            *make_data(),
            # Keras cannot build a model on parts of different sizes.
            batch_size=10,
            epochs=2,
            validation_data=make_data(8, seed=1),
            verbose=0,
        ).history
        results.append((model, history))
    (ours, history), (theirs, expected) = results
    assert history == expected
    assert_same(values(ours.weights), values(theirs.weights))


def test_compiled_outside_of_the_scope():
    for cls in (kcr.CrossRegModel, keras.Model):
        with TWO.scope():
            model = still_model(cls)
        model.compile("adam", "sparse_categorical_crossentropy")
        with pytest.raises(RuntimeError, match="Mixing different"):
            model.fit(*twin_data(), verbose=0, **reg_data_of(cls))


# Data.


def as_dataset(data, batch_size):
    return tf.data.Dataset.from_tensor_slices(data).batch(batch_size)


class Batches(keras.utils.PyDataset):
    def __init__(self, data, batch_size, **kwargs):
        super().__init__(**kwargs)
        self.data, self.batch_size = data, batch_size

    def __len__(self):
        return -(-len(self.data[0]) // self.batch_size)

    def __getitem__(self, i):
        rows = slice(i * self.batch_size, (i + 1) * self.batch_size)
        return tuple(a[rows] for a in self.data)


def generate(data, batch_size):
    batches = Batches(data, batch_size)
    while True:
        for i in range(len(batches)):
            yield batches[i]


@pytest.mark.parametrize("form", [as_dataset, Batches, generate])
def test_forms_of_data(form):
    results = []
    for strategy in (TWO, ONE):
        results.append(
            train(
                strategy,
                x=form(twin_data(), 8),
                y=None,
                batch_size=None,
                steps_per_epoch=3,
                # One batch a pass: a `PyDataset` is shuffled.
                reg_data=form(make_data(6, seed=1), 6),
                reg_batch_size=None,
                validation_data=as_dataset(make_data(10, seed=2), 5),
            )
        )
    assert_close(*results)


def test_partial_batches_that_leave_a_replica_without_examples():
    # 9 training rows in batches of 4 and 5 regularization rows in batches of 2:
    # the last ones have one row.
    model, history = train(
        TWO,
        dict(reg_freq=1),
        lambda: still_model(batch_norm=False),
        x=as_dataset(make_data(9), 4),
        y=None,
        batch_size=None,
        reg_data=as_dataset(make_data(5, seed=1), 2),
        reg_batch_size=None,
    )
    assert int(model.rho_optimizer.iterations.numpy()) == 9
    assert all(np.isfinite(v).all() for v in values(model.weights))
    assert all(np.isfinite(v).all() for v in history.values())


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("cls", [kcr.CrossRegModel, keras.Model])
def test_first_batches_that_are_not_split_evenly(cls, rows):
    with TWO.scope():
        model = still_model(cls, batch_norm=False)
        model.compile(keras.optimizers.SGD(), "sparse_categorical_crossentropy")
    arguments = dict(batch_size=8, verbose=0, **reg_data_of(cls))
    if cls is keras.Model:
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="must have the same size"
        ):
            model.fit(*make_data(rows), **arguments)
        return
    before = values(model.trainable_variables)
    history = model.fit(*make_data(rows), **arguments).history
    assert np.isfinite(history["loss"]).all()
    assert all(np.isfinite(v).all() for v in values(model.weights))
    assert all(moved(before, model.trainable_variables))


@pytest.mark.parametrize("reason", ["eager", "BatchNormalization"])
@pytest.mark.parametrize("cls", [kcr.CrossRegModel, keras.Model])
def test_where_keras_has_nan_without_examples(cls, reason):
    with TWO.scope():
        inputs = keras.Input((3,))
        x = keras.layers.Dense(4)(inputs)
        if reason == "BatchNormalization":
            x = keras.layers.BatchNormalization()(x)
        outputs = keras.layers.Dense(2, activation="softmax")(x)
        model = cls(inputs, outputs)
        model.compile(
            keras.optimizers.SGD(),
            "sparse_categorical_crossentropy",
            run_eagerly=reason == "eager",
        )
    history = model.fit(*make_data(9), batch_size=4, epochs=2, verbose=0)
    assert np.isnan(history.history["loss"][-1])
    assert np.isnan(values(model.weights)[0]).any() == (reason != "eager")


def test_nan_in_regularization_data():
    with TWO.scope():
        model = compile_model(make_model(), run_eagerly=False)
    before = values(model.weights)
    x, y = make_data(12, seed=1)
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match="There are NaN"):
        model.fit(*make_data(), reg_data=(x, y), verbose=0)
    assert_same(before, values(model.weights))


# What a model goes through.


def test_train_on_batch_equals_one_device():
    # Keras gives a batch of one's own to every replica, whole: one row will do.
    results = []
    for strategy in (ONE, TWO):
        with strategy.scope():
            model = compile_model(
                still_model(), metrics=["accuracy"], run_eagerly=False
            )
        logs = [
            model.train_on_batch(
                *make_data(4, seed=seed),
                reg_data=make_data(1, seed=seed + 2),
                return_dict=True,
            )
            for seed in range(2)
        ]
        results.append(
            (model, {str(i): [*d.values()] for i, d in enumerate(logs)})
        )
    assert_close(*results)


def test_merge_epochs():
    assert_close(
        *(
            train(
                strategy,
                make=lambda: still_model(batch_norm=False),
                merge_epochs=1,
                # 24 + 14 + 2: the last batch is a whole one.
                reg_data=make_data(16, seed=1),
            )
            for strategy in (TWO, ONE)
        )
    )


def test_rho_are_set_and_frozen():
    model, _ = train(TWO, epochs=1)
    model.set_rho({"norm/magnitude": 2.5})
    model.freeze_rho()
    model.fit(*twin_data(), batch_size=8, verbose=0)
    assert model.get_rho()["norm/magnitude"] == pytest.approx(2.5)
    model.unfreeze_rho()
    model.fit(*twin_data(), reg_data=make_data(14, seed=1), epochs=3, verbose=0)
    assert model.get_rho()["norm/magnitude"] != pytest.approx(2.5)


def test_refit_and_wrap_in_the_scope():
    model, _ = train(TWO, epochs=1)
    with TWO.scope():
        final = kcr.refit(model, *twin_data(), batch_size=8, verbose=0)
        plain = still_model(keras.Model)
        wrapped = kcr.wrap(plain)
        wrapped.compile("sgd", "sparse_categorical_crossentropy", reg_freq=1)
    assert final.distribute_strategy is TWO
    assert final.get_rho() == model.get_rho()
    wrapped.fit(*twin_data(), reg_data=make_data(14, seed=1), verbose=0)
    assert wrapped.distribute_strategy is TWO


def test_saved_on_one_device_and_loaded_on_two(tmp_path):
    results = []
    model, _ = train(ONE)
    model.save(tmp_path / "model.keras")
    more = dict(
        reg_data=make_data(14, seed=1),
        reg_batch_size=6,
        shuffle=False,
        batch_size=8,
        verbose=0,
    )
    for strategy in (ONE, TWO):
        with strategy.scope():
            model = keras.saving.load_model(tmp_path / "model.keras")
        results.append((model, model.fit(*twin_data(), **more).history))
    assert_close(*results)


def test_callbacks_save_and_restore(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def callbacks():
        return [keras.callbacks.BackupAndRestore(tmp_path / "backup")]

    checkpoint = keras.callbacks.ModelCheckpoint(
        tmp_path / "{epoch}.keras", monitor="reg_loss", mode="min"
    )
    with pytest.raises(KeyboardInterrupt):
        train(TWO, callbacks=[*callbacks(), checkpoint, Stop()])
    loaded = keras.saving.load_model(tmp_path / "2.keras")
    resumed, history = train(TWO, callbacks=callbacks())
    assert len(history["loss"]) == 1
    undisturbed, _ = train(TWO)
    for a, b in zip(resumed.weights, undisturbed.weights, strict=True):
        np.testing.assert_allclose(*values([a, b]), rtol=1e-6)
    assert int(loaded.optimizer.iterations) == 6
