"""What MirroredStrategy must do; `test_distribution.py` runs it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_same
from helpers import compile_model
from helpers import make_data
from helpers import make_model
from helpers import values
from keras import ops
from still import assert_close
from still import still_model
from still import train
from two_devices import ONE
from two_devices import TWO

import keras_crossreg as kcr


@pytest.fixture(scope="module")
def one_device():
    # Eagerly, which compiles nothing.
    return train(ONE, dict(run_eagerly=True))


@pytest.fixture(scope="module")
def two_devices():
    return train(TWO)


def test_training_equals_one_device(one_device, two_devices):
    assert TWO.num_replicas_in_sync == 2
    model, history = two_devices
    assert int(model.rho_optimizer.iterations.numpy()) == 4
    start = still_model().get_rho()["norm/magnitude"]
    assert abs(model.get_rho()["norm/magnitude"] - start) > 0.01
    assert set(history) == {
        f"{prefix}{name}"
        for prefix in ("", "reg_", "val_")
        for name in ("loss", "accuracy")
    }
    assert_close(two_devices, one_device)


def test_a_run_with_many_rho_steps_and_the_default_optimizer():
    """It ends with a look at all that rho did."""
    with TWO.scope():
        inputs = keras.Input((3,))
        noise = kcr.layers.LearnedDropout(0.5, name="dropout")
        x = noise(keras.layers.Dense(8, activation="relu")(inputs))
        outputs = keras.layers.Dense(2, activation="softmax")(x)
        model = kcr.CrossRegModel(inputs, outputs)
        model.compile(
            "adam", "sparse_categorical_crossentropy", reg_freq=1, num_samples=2
        )
    model.fit(
        *make_data(64),
        batch_size=8,
        epochs=4,
        verbose=0,
        reg_data=make_data(40, seed=1),
        reg_batch_size=4,
    )
    optimizer = model.rho_optimizer
    assert int(optimizer.iterations.numpy()) == 32
    assert abs(model.get_rho()["dropout/rate"] - 0.5) > 0.01
    assert values(optimizer.variables[-2:-1]) == [0.0]


@pytest.mark.filterwarnings("ignore:Rho have not learned")
def test_epochs_without_a_rho_step_are_measured_as_on_one_device():
    one, two = (
        train(strategy, dict(run_eagerly=True, reg_freq=100), epochs=2)
        for strategy in (ONE, TWO)
    )
    assert np.isfinite(two[1]["reg_loss"]).all()
    assert_close(two, one)


def test_evaluate_and_predict_equal_one_device(one_device, two_devices):
    # Batches of 4 and of 3 rows.
    x, y = make_data(7, seed=3)
    results = []
    for model, _ in (one_device, two_devices):
        logs = model.evaluate(x, y, batch_size=4, verbose=0)
        results.append(
            [
                np.array(logs),
                model.predict(x, batch_size=4, verbose=0),
            ]
        )
    for one, two in zip(*results, strict=True):
        assert one.shape == two.shape
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_saved_on_two_devices_and_loaded_on_one(two_devices, tmp_path):
    model, _ = two_devices
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for ours, theirs in (
        (model.weights, loaded.weights),
        (model.optimizer.variables, loaded.optimizer.variables),
        (model.rho_optimizer.variables, loaded.rho_optimizer.variables),
    ):
        assert ours
        assert_same(values(ours), values(theirs))
    x, _ = make_data(8, seed=3)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), loaded.predict(x, verbose=0), rtol=1e-5
    )


class Jitter(kcr.layers.RhoLayer):
    """The example of `RhoLayer`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = kcr.random.SeedGenerator(1)

    def build(self, input_shape):
        self.rho = self.add_rho("width", start=0.1, meaning="width")

    def call(self, inputs, training=False, sampling=None):
        if not (training or sampling):
            return inputs
        width = self.rho_value(self.rho, sampling)
        noise = keras.random.uniform(
            ops.shape(inputs), -1.0, 1.0, seed=self.seed_generator
        )
        return inputs + ops.cast(width * noise, inputs.dtype)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: kcr.layers.GaussianNoiseScale(seed=1), (3, 4)),
        (lambda: kcr.layers.LearnedAugmentation(seed=1), (2, 4, 4, 1)),
        (lambda: kcr.layers.LearnedDropout(0.5, seed=1), (3, 4)),
        (lambda: kcr.layers.LearnedGaussianDropout(0.5, seed=1), (3, 4)),
        (Jitter, (3, 4)),
    ],
    ids=[
        "GaussianNoiseScale",
        "LearnedAugmentation",
        "LearnedDropout",
        "LearnedGaussianDropout",
        "RhoLayer",
    ],
)
@pytest.mark.parametrize("flag", ["training", "sampling"])
def test_every_replica_draws_noise_of_its_own(make, shape, flag):
    with TWO.scope():
        layer = make()
        layer.build((None, *shape[1:]))
    x = np.random.default_rng(0).normal(size=shape).astype("float32")

    @tf.function
    def noise():
        outputs = TWO.run(lambda: layer(x, **{flag: True}) - x)
        return TWO.experimental_local_results(outputs)

    draws = [a.numpy() for _ in range(2) for a in noise()]
    for i, a in enumerate(draws):
        assert np.abs(a).max() > 1e-3
        # A dropout leaves many elements as they are.
        assert all((a != b).mean() > 0.25 for b in draws[:i])


def test_predictions_repeat_and_draw_noise_of_their_own():
    with TWO.scope():
        model = compile_model(make_model())
    # The same row on both devices.
    x = np.repeat(make_data(1)[0], 4, axis=0)
    samples = model.predict_samples(x, 3, verbose=0)
    assert samples.shape == (3, 4, 2)
    assert len(np.unique(samples[..., 0])) == 12
    assert_same([samples], [model.predict_samples(x, 3, verbose=0)])
    first, second = (model.predict(x, verbose=0) for _ in range(2))
    assert_same([first], [second])


@pytest.mark.parametrize(
    ("reg_data", "reg_batch_size"),
    [
        (make_data(12, seed=1), 1),
        (make_data(1, seed=1), None),
        (tf.data.Dataset.from_tensor_slices(make_data(12)).batch(1), None),
    ],
    ids=["batch size", "one example", "dataset"],
)
def test_fewer_regularization_examples_than_replicas(reg_data, reg_batch_size):
    with TWO.scope():
        model = compile_model(make_model(), run_eagerly=False)
    before = values(model.weights)
    with pytest.raises(
        ValueError,
        match="Each of the 2 replicas .* Received: a batch of 1 examples, "
        "which leaves 1 of the replicas without any",
    ):
        model.fit(
            *make_data(),
            reg_data=reg_data,
            reg_batch_size=reg_batch_size,
            verbose=0,
        )
    assert_same(before, values(model.weights))
