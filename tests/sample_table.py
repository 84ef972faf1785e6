"""A rho layer whose samples are known, and what K passes of one would give."""

import contextlib

import keras
import numpy as np
from keras import ops

import keras_crossreg as kcr
from keras_crossreg._keras import all_layers
from keras_crossreg.random import samples_in_pass

# Sample k is multiplied by `1 + rho c_k`.
TABLE = np.random.default_rng(7).normal(size=64).astype("float32")


@keras.saving.register_keras_serializable("tests")
class SampleTable(kcr.layers.RhoLayer):
    """Multiplies sample k by `1 + rho c_k`, in any number of passes.

    The state of a generator counts the passes, and is put back as that of
    noise is.
    """

    def __init__(self, start=0.5, **kwargs):
        super().__init__(**kwargs)
        self.start = start
        self.seed_generator = keras.random.SeedGenerator(0)
        #: The number of the sample, for a reference that makes one at a time.
        self.number = None
        #: Of a layer that is used more than once in a model.
        self.calls_in_pass = 1

    def build(self, input_shape):
        self.rho = self.add_rho("rho", start=self.start)

    def call(self, inputs, training=False, sampling=None):
        if not (training or sampling):
            return inputs
        rho = self.rho_value(self.rho, sampling)
        rows = ops.shape(inputs)[0]
        if self.number is not None or not sampling:
            # Training has one sample, and is not counted.
            numbers = ops.full((rows,), self.number or 0, "int32")
        else:
            calls = ops.cast(self.seed_generator.next()[1], "int32")
            passes = calls // self.calls_in_pass
            in_pass = samples_in_pass() or 1
            numbers = ops.arange(rows, dtype="int32") // (rows // in_pass)
            numbers = (numbers + passes * in_pass) % len(TABLE)
        factors = 1 + rho * ops.take(ops.convert_to_tensor(TABLE), numbers)
        shape = (rows, *[1] * (len(inputs.shape) - 1))
        return inputs * ops.cast(ops.reshape(factors, shape), inputs.dtype)

    def get_config(self):
        return {**super().get_config(), "start": self.start}


def tables(model):
    """Every such layer of a model, each once."""
    return [
        layer for layer in all_layers(model) if isinstance(layer, SampleTable)
    ]


def rewind(model):
    """Begins with the first sample again."""
    for layer in tables(model):
        state = layer.seed_generator.state
        state.assign(ops.zeros_like(ops.convert_to_tensor(state)))


@contextlib.contextmanager
def sample(model, number):
    """Within, passes of the model are of this sample."""
    for layer in tables(model):
        layer.number = number
    try:
        yield
    finally:
        for layer in tables(model):
            layer.number = None


def one_sample(model, x, number):
    """A pass of one sample, by the model itself and nothing around it."""
    with sample(model, number):
        return keras.Model.__call__(model, x, training=False, sampling=True)
