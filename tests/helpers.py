"""Small models and data that many tests share."""

import importlib.util

import keras
import numpy as np
import pytest
from backend import gpu_stand_in

import keras_crossreg as kcr
from keras_crossreg import primitives

ROWS = 24

# PyTorch has no XLA, would take minutes to compile a step itself, and has one
# step in each execution.
IS_TORCH = keras.backend.backend() == "torch"
JIT = dict(run_eagerly=False, jit_compile=not IS_TORCH)
# Keras's `TensorBoard` and layers of strings take TensorFlow on any backend.
HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
NEEDS_TENSORFLOW = pytest.mark.skipif(
    not HAS_TENSORFLOW, reason="Keras needs TensorFlow for it"
)
# Steps of one's own are given the state there, and return the next one.
IS_JAX = keras.backend.backend() == "jax"
EAGER = not IS_JAX and not gpu_stand_in.IS_ASKED


def slow_but(quick, cases):
    """Names of cases, or the cases of a list, all slow but those named."""
    return [
        case if case in quick else pytest.param(case, marks=pytest.mark.slow)
        for case in cases
    ]


def executions_of(steps):
    """The argument of `compile` for so many steps in each execution."""
    return {} if IS_TORCH else dict(steps_per_execution=steps)


def needs_executions_of(steps):
    """Skips a test that is about several steps in an execution."""
    if steps > 1 and IS_TORCH:
        pytest.skip("Keras refuses `steps_per_execution` on PyTorch")


def make_data(rows=ROWS, seed=0):
    """Features `(rows, 3)` and labels of two classes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3)).astype("float32")
    return x, (x[:, 0] + x[:, 1] > 0).astype("int32")


def make_model(seed=0, rho=True, cls=kcr.CrossRegModel, dropout=0.0):
    """Dense, BatchNormalization, noise, Dense, with reproducible weights."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((3,), name="features")
    x = keras.layers.Dense(4, use_bias=False)(inputs)
    x = keras.layers.BatchNormalization(center=False, scale=False)(x)
    if rho:
        x = kcr.layers.GaussianNoiseScale(0.5, seed=1, name="noise")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, seed=2)(x)
    outputs = keras.layers.Dense(2, activation="softmax", name="classes")(x)
    return cls(inputs, outputs)


class Subclassed(kcr.CrossRegModel):
    """The same, as a subclass with `call`."""

    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = keras.layers.Dense(units, use_bias=False)
        self.norm = keras.layers.BatchNormalization(center=False, scale=False)
        self.noise = kcr.layers.GaussianNoiseScale(0.5, seed=1)
        self.classes = keras.layers.Dense(2, activation="softmax")

    def call(self, inputs, training=None):
        x = self.norm(self.hidden(inputs), training=training)
        return self.classes(self.noise(x))


@keras.saving.register_keras_serializable("tests")
class Configured(Subclassed):
    """The same, which Keras can copy."""

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def compile_model(model, **kwargs):
    """SGD for both, a rho step after every step, unless told otherwise.

    Eagerly, which for three steps is faster than to compile them, but on JAX.
    """
    defaults = dict(
        optimizer=keras.optimizers.SGD(0.1),
        loss="sparse_categorical_crossentropy",
        rho_optimizer=keras.optimizers.SGD(0.5),
        reg_freq=1,
        reg_warmup=0,
        num_samples=2,
        run_eagerly=EAGER,
    )
    model.compile(**{**defaults, **kwargs})
    return model


def fit(model, **kwargs):
    """Three steps, with a regularization set of other rows."""
    x, y = make_data()
    defaults = dict(
        x=x,
        y=y,
        batch_size=8,
        reg_data=make_data(12, seed=1),
        shuffle=False,
        verbose=0,
    )
    return model.fit(**{**defaults, **kwargs})


def values(variables):
    """Copies of the values of variables."""
    return [keras.ops.convert_to_numpy(v.value) for v in variables]


def assert_same(first, second):
    """The same arrays, bit for bit."""
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_same_state(first, second):
    """The same arrays by name, bit for bit."""
    assert set(first) == set(second)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def moved(before, variables):
    """Which of the variables differ from what they were."""
    return [
        not np.array_equal(a, b)
        for a, b in zip(before, values(variables), strict=True)
    ]


def numbers_of(tensor):
    """A tensor as a NumPy array; `None` where it is a symbolic one."""
    if isinstance(tensor, keras.KerasTensor):
        return None
    try:
        return keras.ops.convert_to_numpy(tensor)
    except (NotImplementedError, TypeError, ValueError):
        # Of a trace.
        return None


def gradients(function, variables):
    """`d sum(function()) / d variables` as arrays.

    `None` stands where no gradient reaches a variable.
    """
    found = primitives.gradient(
        lambda: keras.ops.sum(function()), list(variables)
    )
    return [None if g is None else keras.ops.convert_to_numpy(g) for g in found]


def random_states(model):
    """The variables in which a model keeps its random numbers."""
    known = {id(v) for v in model.weights + model.metrics_variables}
    return [v for v in model.variables if id(v) not in known]


class Rows(keras.layers.Layer):
    """Notes how many examples each call has."""

    def __init__(self):
        super().__init__()
        self.supports_masking = True
        self.rows = []

    def call(self, inputs):
        self.rows.append(inputs.shape[0])
        return inputs


class Factor(kcr.layers.RhoLayer):
    """Multiplies by its rho, in training too, and draws no noise."""

    def __init__(self, start, **kwargs):
        super().__init__(**kwargs)
        self.start = start

    def build(self, input_shape):
        self.rho = self.add_rho("factor", start=self.start)

    def call(self, inputs, training=False, sampling=None):
        return inputs * self.rho_value(self.rho, sampling)


class Recorder(kcr.layers.RhoLayer):
    """Notes the first feature of the examples that it is called with."""

    stochastic = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.trained, self.sampled = [], []

    def build(self, input_shape):
        self.rho = self.add_rho("rho", start=1.0)

    def call(self, inputs, training=False, sampling=None):
        rows = numbers_of(inputs)
        if rows is not None:
            seen = self.sampled if sampling else self.trained
            seen.append(rows[:, 0].astype(int).tolist())
        return inputs * self.rho_value(self.rho, sampling)


def recording_model(**kwargs):
    """A model, and the layer that notes what it sees. One sample, eagerly.

    In a regularization pass it first sees the batch of the check.
    """
    inputs = keras.Input((1,))
    recorder = Recorder()
    outputs = keras.layers.Dense(1)(recorder(inputs))
    model = kcr.CrossRegModel(inputs, outputs)
    compile_model(model, loss="mse", num_samples=1, run_eagerly=True, **kwargs)
    return model, recorder
