"""Targets that do not go with inputs; rows that data in batches share."""

import keras
import numpy as np
import pytest
from helpers import compile_model
from helpers import make_data
from helpers import make_model

import keras_crossreg as kcr
from keras_crossreg.trainers.prior_loss import prior_loss

X, Y = make_data(64)
REG_X, REG_Y = make_data(48, seed=1)
RNG = np.random.default_rng(0)


def warnings_of_fit(recwarn, model, x, y=None, **arguments):
    recwarn.clear()
    model.fit(x, y, verbose=0, **arguments)
    return [str(w.message) for w in recwarn if w.category is UserWarning]


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y, size=8):
        super().__init__()
        self.x, self.y, self.size = x, y, size

    def __len__(self):
        return len(self.x) // self.size

    def __getitem__(self, i):
        rows = slice(i * self.size, (i + 1) * self.size)
        return self.x[rows], self.y[rows]


def endless(x, y):
    while True:
        yield x[:8], y[:8]


# ---- Rows that are in both ---------------------------------------------------


# float64 is what Keras casts to float32.
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_training_batches_with_regularization_examples(dtype, recwarn):
    model = compile_model(make_model())
    both = np.concatenate([X, REG_X[:10]]), np.concatenate([Y, REG_Y[:10]])
    order = RNG.permutation(72)
    data = Batches(both[0][order], both[1][order])
    reg_data = REG_X.astype(dtype), REG_Y
    found = warnings_of_fit(recwarn, model, data, reg_data=reg_data)
    shared = int((order >= 64).sum())
    assert len(found) == 1
    assert found[0].startswith(f"{shared} of 48 regularization examples")
    assert "72 training examples that were looked at" in found[0]


def test_regularization_batches_with_training_examples(recwarn):
    model = compile_model(make_model())
    reg_data = Batches(X[:32], Y[:32])
    found = warnings_of_fit(recwarn, model, X, Y, reg_data=reg_data)
    assert [m[:12] for m in found] == ["32 of 32 reg"]


def test_batches_apart_and_what_cannot_be_read_again(recwarn):
    model = compile_model(make_model())
    reg_data = REG_X, REG_Y
    assert not warnings_of_fit(recwarn, model, Batches(X, Y), reg_data=reg_data)
    assert not warnings_of_fit(
        recwarn,
        model,
        endless(REG_X, REG_Y),
        reg_data=reg_data,
        steps_per_epoch=3,
        shuffle=False,
    )
    # The same inputs with other targets are other examples.
    assert not warnings_of_fit(
        recwarn, model, Batches(REG_X, 1 - REG_Y), reg_data=reg_data
    )


def test_no_more_than_32_batches_are_looked_at(recwarn):
    x, y = make_data(40, seed=2)
    data = Batches(np.concatenate([x, X[:20]]), np.concatenate([y, Y[:20]]), 1)
    # 60 steps, and one of rho.
    model = compile_model(make_model(), reg_freq=60, run_eagerly=False)
    found = warnings_of_fit(recwarn, model, data, reg_data=(X, Y))
    assert not [m for m in found if "looked at" in m]


# ---- Targets that do not go with inputs --------------------------------------


def learned(recwarn, reg_y, **arguments):
    """A network without normalization, whose noise is free to grow."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = keras.layers.Dense(16, activation="relu")(inputs)
    x = kcr.layers.GaussianNoiseScale(0.3, seed=1)(x)
    model = kcr.CrossRegModel(
        inputs, keras.layers.Dense(2, activation="softmax")(x)
    )
    compile_model(
        model,
        optimizer=keras.optimizers.Adam(0.02),
        rho_optimizer=keras.optimizers.Adam(0.2),
        num_samples=8,
        run_eagerly=False,
        **arguments,
    )
    found = warnings_of_fit(
        recwarn,
        model,
        X,
        Y,
        batch_size=32,
        epochs=25,
        reg_data=(REG_X, reg_y),
        reg_batch_size=48,
    )
    (sigma,) = model.get_rho().values()
    return sigma, [m for m in found if "do not go with its inputs" in m]


@pytest.mark.slow
def test_targets_that_were_shuffled(recwarn):
    sigma, found = learned(recwarn, RNG.permutation(REG_Y))
    assert sigma > 3.0
    assert len(found) == 1
    assert "gaussian_noise_scale" in found[0]


def test_targets_that_go_with_inputs(recwarn):
    sigma, found = learned(recwarn, REG_Y)
    assert sigma < 3.0 and not found


@pytest.mark.parametrize(
    "loss, y, expected",
    [
        ("sparse_categorical_crossentropy", [0, 1, 1, 1], 0.562335),
        (
            keras.losses.CategoricalCrossentropy(from_logits=True),
            [[1, 0], [0, 1], [0, 1], [0, 1]],
            0.562335,
        ),
        ("binary_crossentropy", [[0], [1], [1], [1]], 0.562335),
        ("mse", [[0.0], [2.0]], 1.0),
        (keras.losses.MeanAbsoluteError(), [0.0, 1.0, 5.0], 5 / 3),
        ("poisson", [0.0, 1.0], None),
        (keras.losses.BinaryCrossentropy(label_smoothing=0.1), [0, 1], None),
        ({"a": "mse"}, [0.0, 1.0], None),
        (None, [0.0, 1.0], None),
    ],
)
def test_the_loss_of_one_prediction_for_all(loss, y, expected):
    y = np.asarray(y)
    found = prior_loss(loss, (np.zeros((len(y), 2)), y))
    assert found == (None if expected is None else pytest.approx(expected))
    weighted = (np.zeros((len(y), 2)), y, np.ones(len(y)))
    assert prior_loss(loss, weighted) is None
    # No other prediction does better.
    if isinstance(loss, str) and expected is not None and y.ndim == 2:
        for p in (0.2, 0.7, 0.9):
            constant = np.full(y.shape, p, "float32")
            losses = keras.losses.get(loss)(y, constant)
            other = float(keras.ops.convert_to_numpy(losses).mean())
            assert other > found - 1e-6
