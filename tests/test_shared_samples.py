"""What comes before the first noise is computed once for all samples."""

import keras
import numpy as np
import pytest
from helpers import JIT
from helpers import Rows
from helpers import compile_model
from helpers import make_data
from keras import ops

import keras_crossreg as kcr

pytestmark = pytest.mark.backend

X, Y = make_data()
REG = make_data(12, seed=1)
K = 4

EAGER = dict(run_eagerly=True)
GRAPH = dict(run_eagerly=False, jit_compile=False)


class Tiled(kcr.CrossRegModel):
    """With a `call` of its own, which gets the repeated batch."""

    def call(self, inputs, training=None, mask=None, **kwargs):
        return super().call(inputs, training=training, mask=mask, **kwargs)


def noise(**kwargs):
    return kcr.layers.GaussianNoiseScale(0.5, seed=1, **kwargs)


def dense(units=4):
    return keras.layers.Dense(units)


def chain(x, rows):
    return dense(2)(noise()(rows(keras.layers.Dropout(0.5)(dense()(x)))))


def skip(x, rows):
    early = rows(dense()(x))
    late = keras.layers.ReLU()(noise()(early))
    return dense(2)(keras.layers.Concatenate()([early, late, 2.0 * early]))


def two_outputs(x, rows):
    early = rows(dense()(x))
    return {"plain": dense(1)(early), "noisy": dense(2)(noise()(early))}


def nested(x, rows):
    inner = keras.Input((4,))
    model = keras.Model(inner, noise()(dense()(inner)))
    return dense(2)(model(rows(dense()(x))))


def constants(x, rows):
    early = ops.add(rows(dense()(x)), np.arange(4.0, dtype="float32"))
    late = ops.multiply(noise()(early), np.ones((1, 4), "float32"))
    return dense(2)(late)


def masked(x, rows):
    tokens = ops.cast(x > 0, "int32")
    embedded = rows(keras.layers.Embedding(2, 4, mask_zero=True)(tokens))
    return dense(2)(keras.layers.LSTM(3)(noise()(embedded)))


def sequence_mask_in_the_output(x, rows):
    tokens = ops.cast(x > 0, "int32")
    return noise()(rows(keras.layers.Embedding(2, 4, mask_zero=True)(tokens)))


GRAPHS = [
    chain,
    skip,
    two_outputs,
    nested,
    constants,
    masked,
    sequence_mask_in_the_output,
]


def build(graph, cls=kcr.CrossRegModel):
    keras.utils.set_random_seed(0)
    inputs, rows = keras.Input((3,)), Rows()
    model = cls(inputs, graph(inputs, rows))
    model.compile(loss="mse", eval_num_samples=K, run_eagerly=True)
    rows.rows.clear()
    return model, rows.rows


@pytest.mark.parametrize("graph", GRAPHS)
def test_predictions_are_those_of_a_repeated_batch(graph):
    model, rows = build(graph)
    reference, all_rows = build(graph, Tiled)
    for one, seen in ((model, rows), (reference, all_rows)):
        # A model with a layer of one's own is looked at first, once.
        one.make_predict_function()
        seen.clear()
    found = model.predict_samples(X, verbose=0)
    expected = reference.predict_samples(X, verbose=0)
    assert set(rows) == {len(X)}
    assert set(all_rows) == {K * len(X)}
    for a, b in zip(*map(keras.tree.flatten, (found, expected)), strict=True):
        assert a.shape[:2] == (K, len(X))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    noisy = found["noisy"] if isinstance(found, dict) else found
    assert np.abs(noisy[0] - noisy[1]).max() > 0.01


@pytest.mark.parametrize(
    ("hypergradient", "mode"),
    [
        ("direct", EAGER),
        ("one_step", EAGER),
        pytest.param("one_step", GRAPH, marks=pytest.mark.slow),
        pytest.param("direct", JIT, marks=pytest.mark.slow),
        pytest.param("one_step", JIT, marks=pytest.mark.slow),
    ],
)
def test_rho_steps_are_those_of_a_repeated_batch(hypergradient, mode):
    learned = []
    # Noise depends on whether XLA compiles it, and on no other mode.
    modes = [mode, JIT if mode is JIT else EAGER]
    for cls, how in zip((kcr.CrossRegModel, Tiled), modes, strict=True):
        model, _ = build(skip, cls)
        compile_model(
            model,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            hypergradient=hypergradient,
            **how,
        )
        model.fit(X, Y, reg_data=REG, batch_size=8, shuffle=False, verbose=0)
        learned.append([*model.get_rho().values(), *model.get_weights()])
    for a, b in zip(*learned, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert learned[0][0] != 0.5


class AlwaysDropout(keras.layers.Dropout):
    """As Monte Carlo dropout is often written."""

    def call(self, inputs, training=None):
        return super().call(inputs, training=True)


@pytest.mark.filterwarnings("ignore:The samples of a prediction")
def test_layers_that_always_draw_are_called_for_every_sample():
    keras.utils.set_random_seed(0)
    inputs, rows = keras.Input((3,)), Rows()
    x = rows(AlwaysDropout(0.5)(dense(64)(inputs)))
    model = kcr.CrossRegModel(inputs, noise()(x))
    model.set_rho({model.rho_variables[0].path: 0.0})
    model.compile(loss="mse", eval_num_samples=K, run_eagerly=True)
    samples = model.predict_samples(X, verbose=0)
    # What draws in inference mode is called for one sample at a time.
    assert rows.rows[-K:] == [len(X)] * K
    # Half of the units differ between any two.
    is_zero = np.abs(samples) < 1e-6
    assert 0.4 < np.mean(is_zero[0] != is_zero[1]) < 0.6


@pytest.mark.filterwarnings("ignore:The samples of a prediction")
def test_a_graph_with_other_tensors_than_batches():
    keras.utils.set_random_seed(0)
    inputs, rows = keras.Input((3,)), Rows()
    centred = rows(inputs) - ops.mean(inputs, axis=0)
    model = kcr.CrossRegModel(inputs, noise()(centred))
    model.compile(loss="mse", eval_num_samples=K, run_eagerly=True)
    model.make_predict_function()
    rows.rows.clear()
    samples = model.predict_samples(X, verbose=0)
    assert rows.rows == [len(X)] * K
    assert samples.shape == (K, len(X), 3)
    np.testing.assert_allclose(
        samples.mean((0, 1)), np.zeros(3), atol=5 * 0.5 / np.sqrt(K * len(X))
    )


def test_inputs_of_all_kinds_are_repeated_where_noise_takes_them():
    """Noise that comes first, an input of its own for what comes late."""
    keras.utils.set_random_seed(0)
    first, second = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    x = keras.layers.Concatenate()([dense()(noise()(first)), second])
    model = kcr.CrossRegModel({"a": first, "b": second}, dense(1)(x))
    model.compile(loss="mse", eval_num_samples=K, run_eagerly=True)
    data = {"a": X, "b": X[:, :2]}
    samples = model.predict_samples(data, verbose=0)
    assert samples.shape == (K, len(X), 1)
    np.testing.assert_allclose(
        samples.mean(0), model.predict(data, verbose=0), rtol=1e-4, atol=1e-6
    )
