"""`check_rho_layer` fails layers that break the contract, and says why.

Our own layers are checked in `layers/test_contract.py`.
"""

import keras
import numpy as np
import pytest
from keras import ops

import keras_crossreg as kcr
from keras_crossreg.testing import check_rho_layer

SHAPE = (4, 3)


class Jitter(kcr.layers.RhoLayer):
    """Keeps the contract; every other class here breaks one part of it."""

    def __init__(self, start=0.5, **kwargs):
        super().__init__(**kwargs)
        self.start = start
        self.seed_generator = keras.random.SeedGenerator(1)

    def build(self, input_shape):
        self.rho = self.add_rho("width", start=self.start, meaning="width")

    def noise(self, inputs, sampling):
        eps = keras.random.normal(
            ops.shape(inputs), seed=self.seed_generator, dtype=inputs.dtype
        )
        return ops.cast(self.rho_value(self.rho, sampling), inputs.dtype) * eps

    def call(self, inputs, training=False, sampling=None):
        if training or sampling:
            return inputs + self.noise(inputs, sampling)
        return inputs

    def get_config(self):
        return {**super().get_config(), "start": self.start}


class Broken(Jitter):
    """Jitter, for messages that name this class."""


def check(layer_cls, message, init_kwargs=None, **kwargs):
    """Most need no other dtype policy."""
    kwargs = {"dtype_policies": ["float32"], **kwargs}
    with pytest.raises(AssertionError, match=message):
        check_rho_layer(layer_cls, init_kwargs, SHAPE, **kwargs)


def test_a_right_layer():
    check_rho_layer(Jitter, {"start": 0.2}, SHAPE)


class TwoInputs(Jitter):
    """The sum and the noisy sum of two inputs, scaled."""

    stochastic = False

    def call(self, inputs, scale=1.0, sampling=None):
        total = inputs["a"] + inputs["b"]
        rho = ops.cast(self.rho_value(self.rho, sampling), total.dtype)
        return scale * total, rho * total

    def compute_output_shape(self, input_shape):
        return input_shape["a"], input_shape["a"]

    def compute_mask(self, inputs, previous_mask=None):
        return previous_mask["a"], previous_mask["b"]


def test_structures_of_inputs_and_outputs():
    check_rho_layer(
        TwoInputs,
        input_shape={"a": SHAPE, "b": SHAPE},
        call_kwargs={"scale": 2.0},
        jit_compile=False,
    )


def test_input_data():
    seen = []

    class Ids(Jitter):
        def call(self, inputs, training=False, sampling=None):
            seen.append(keras.backend.standardize_dtype(inputs.dtype))
            inputs = ops.cast(inputs, self.compute_dtype)
            return super().call(inputs, training=training, sampling=sampling)

    ids = np.array([[1, 2], [3, 4]], "int32")
    check_rho_layer(Ids, input_data=ids, jit_compile=False)
    assert set(seen) == {"int32"}


@pytest.mark.parametrize(
    "arguments", [{}, {"input_shape": SHAPE, "input_data": np.ones(SHAPE)}]
)
def test_refuses_no_inputs_and_both(arguments):
    with pytest.raises(ValueError, match="Received: input_shape="):
        check_rho_layer(Jitter, **arguments)


def test_is_public_without_an_import():
    assert kcr.testing.check_rho_layer is check_rho_layer


# The config.


def test_messages_name_the_class():
    check(Broken, "^Broken: the constructor failed with", {"begin": 1})


def test_a_missing_argument():
    class Broken(Jitter):
        def get_config(self):
            return kcr.layers.RhoLayer.get_config(self)

    check(Broken, r"every argument of the constructor.*lacks: \['start'\]")


def test_get_config_fails():
    class Broken(Jitter):
        def get_config(self):
            return {**super().get_config(), "start": self.begin}

    check(Broken, r"`get_config\(\)` failed with AttributeError")


def test_a_constructor_without_kwargs():
    class Broken(Jitter):
        def __init__(self, start=0.5):
            super().__init__(start)

    check(Broken, r"takes `\*\*kwargs`.*failed with TypeError")


def test_an_argument_that_changes():
    class Broken(Jitter):
        def __init__(self, start=0.5, **kwargs):
            super().__init__(2 * start, **kwargs)

    check(Broken, r"same config. These arguments changed: \['start'\]")


def test_a_config_that_cannot_be_serialized():
    check(Jitter, "serializing its config failed", {"start": object()})


# `call`.


def test_no_sampling():
    class Broken(Jitter):
        def call(self, inputs, training=False):
            return super().call(inputs, training, training)

    check(Broken, "must take an argument `sampling=None`")


def test_another_default():
    class Broken(Jitter):
        def call(self, inputs, training=False, sampling=False):
            return super().call(inputs, training, sampling)

    check(Broken, "must be `None`.*Received: sampling=False")


# Rho.


def test_no_rho():
    class Broken(Jitter):
        def build(self, input_shape):
            self.rho = self.add_weight(dtype="float32", autocast=False)

    check(Broken, "it has no rho")


def test_a_trainable_rho():
    class Broken(Jitter):
        def build(self, input_shape):
            super().build(input_shape)
            self.rho.trainable = True

    check(Broken, "must not be among its `trainable_variables`")


def add_rho_with(**arguments):
    class Broken(Jitter):
        def build(self, input_shape):
            self.rho = kcr.mark_rho(
                self.add_weight(initializer="ones", **arguments)
            )

        def rho_value(self, rho, sampling):
            value = ops.convert_to_tensor(rho)
            return value if sampling else ops.stop_gradient(value)

    return Broken


@pytest.mark.float64
def test_a_rho_that_is_not_float32():
    check(
        add_rho_with(),
        "a call under the dtype policy 'float64' failed.*are float32",
        dtype_policies=["float32", "float64"],
    )


def test_a_rho_that_is_read_in_sixteen_bits():
    check(
        add_rho_with(dtype="float32"),
        r"in float32 under the dtype policy 'mixed_float16'.*\['float16'\]",
        dtype_policies=["float32", "mixed_float16"],
    )


def test_outputs_of_another_dtype():
    class Broken(Jitter):
        def call(self, inputs, training=False, sampling=None):
            outputs = super().call(inputs, training, sampling)
            return ops.cast(outputs, "float32") if sampling else outputs

    check(
        Broken,
        r"compute dtype: under the dtype policy 'mixed_float16' that is "
        r"float16. Received: \['float32'\] with {'sampling': True}",
        dtype_policies=["float32", "mixed_float16"],
    )


def test_a_call_that_fails_in_sixteen_bits():
    class Broken(Jitter):
        def noise(self, inputs, sampling):
            if keras.backend.standardize_dtype(inputs.dtype) == "float16":
                raise TypeError("sixteen bits")
            return super().noise(inputs, sampling)

    check(
        Broken,
        "{'training': True} under the dtype policy 'mixed_float16'",
        dtype_policies=["float32", "mixed_float16"],
    )


# Gradients.


def test_a_gradient_that_is_not_finite():
    class Broken(Jitter):
        def noise(self, inputs, sampling):
            return ops.sqrt(0 * super().noise(inputs, sampling))

    check(Broken, "must be finite in a sampling pass under .* 'float32'")


def test_no_gradient():
    class Broken(Jitter):
        def rho_value(self, rho, sampling):
            return super().rho_value(rho, False)

    check(Broken, "no gradient reaches the rho 'broken.*/width'")


def test_a_gradient_of_zero():
    class Broken(Jitter):
        def rho_value(self, rho, sampling):
            return 0.5 + 0 * super().rho_value(rho, sampling)

    check(Broken, "no gradient reaches the rho 'broken.*/width'")


def test_a_gradient_in_training():
    class Broken(Jitter):
        def rho_value(self, rho, sampling):
            return super().rho_value(rho, True)

    check(Broken, "a gradient reaches the rho 'broken.*/width' in a training")


class Lonely(keras.layers.Layer):
    """No RhoLayer: a model does not pass `sampling` on to it."""

    def build(self, input_shape):
        self.rho = kcr.mark_rho(
            self.add_weight(dtype="float32", autocast=False, trainable=False)
        )

    def call(self, inputs, sampling=None):
        rho = ops.convert_to_tensor(self.rho)
        rho = rho if sampling else ops.stop_gradient(rho)
        return inputs * ops.cast(1 + rho, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape


def test_sampling_that_does_not_reach_the_layer():
    check(Lonely, "`sampling` does not reach it inside a model")


# Noise.


def test_a_plain_pass_with_noise():
    class Broken(Jitter):
        def call(self, inputs, training=False, sampling=None):
            return inputs + self.noise(inputs, sampling)

    check(Broken, "a plain pass, .* must be deterministic")


def test_stochastic_without_noise():
    class Broken(Jitter):
        def noise(self, inputs, sampling):
            return inputs * self.rho_value(self.rho, sampling)

    check(Broken, "two sampling passes must differ")


def test_noise_without_stochastic():
    class Broken(Jitter):
        stochastic = False

    check(Broken, "differ though `stochastic` is `False`")


# Shapes and masks.


def test_another_output_shape():
    class Broken(Jitter):
        def compute_output_shape(self, input_shape):
            return (*input_shape, 1)

    check(Broken, r"the outputs, \[\(4, 3\)\]. Received: \[\(4, 3, 1\)\]")


def test_compute_output_shape_fails():
    class Broken(Jitter):
        def compute_output_shape(self, input_shape):
            raise NotImplementedError

    check(Broken, r"`compute_output_shape\(\)` failed with NotImplemented")


def test_a_fixed_batch_size():
    class Broken(Jitter):
        def call(self, inputs, training=False, sampling=None):
            outputs = super().call(inputs, training, sampling)
            return ops.reshape(outputs, (4, 3))

    check(Broken, "a sampling pass with another batch size failed")


def test_an_output_shape_of_a_fixed_batch_size():
    class Broken(Jitter):
        def compute_output_shape(self, input_shape):
            return (4, *input_shape[1:])

    check(Broken, r"of shapes \[\(None, 3\)\]. Received: \[\(4, 3\)\]")


def test_a_lost_mask():
    class Broken(Jitter):
        def __init__(self, start=0.5, **kwargs):
            super().__init__(start, **kwargs)
            self.supports_masking = False

    check(Broken, "a mask must go through")
    check_rho_layer(
        Broken, input_shape=SHAPE, supports_masking=False, jit_compile=False
    )


# Files.


def test_a_seed_that_is_not_saved():
    class Broken(Jitter):
        def save_own_variables(self, store):
            keras.layers.Layer.save_own_variables(self, store)

    check(Broken, "must go on with the same noise")


def test_weights_that_are_not_loaded():
    class Broken(Jitter):
        def __init__(self, start=0.5, **kwargs):
            super().__init__(start, **kwargs)
            self.counter = keras.Variable(0.0, trainable=False)

        def call(self, inputs, training=False, sampling=None):
            if sampling:
                self.counter.assign_add(1)
            return super().call(inputs, training, sampling)

        def save_own_variables(self, store):
            super().save_own_variables(store)
            del store["1"]

        def load_own_variables(self, store):
            self.rho.assign(store["0"])
            self.seed_generator.state.assign(store["seed"])

    check(Broken, "must have the same weights")


class Keyed(Jitter):
    """Its config has keys that a `.keras` file turns into strings."""

    def __init__(self, starts, **kwargs):
        super().__init__(0.5, **kwargs)
        self.starts = starts

    def get_config(self):
        config = super().get_config()
        del config["start"]
        return {**config, "starts": self.starts}


def test_a_keras_file_that_cannot_be_loaded():
    class Broken(Keyed):
        def build(self, input_shape):
            self.rho = self.add_rho("width", start=self.starts[0])

    check(Broken, "a `.keras` file.*failed with .*Error", {"starts": {0: 0.1}})


def test_a_keras_file_that_predicts_otherwise():
    class Broken(Keyed):
        def call(self, inputs, training=False, sampling=None):
            inputs = inputs + self.starts.get(0, 0.0)
            return super().call(inputs, training, sampling)

    check(Broken, "the same rho and the same predictions", {"starts": {0: 0.1}})


# Training.


def test_a_rho_that_does_not_learn():
    class Broken(Jitter):
        def __init__(self, start=0.5, **kwargs):
            super().__init__(start, **kwargs)
            self.trainable = False

    check(Broken, r"does not move \['broken.*/width'\].*not `trainable`")


def test_a_rho_that_moves_by_itself():
    class Broken(Jitter):
        def call(self, inputs, training=False, sampling=None):
            if training:
                self.rho.assign_add(0.1)
            return super().call(inputs, training, sampling)

    check(Broken, r"moved in `CrossRegModel.fit` after `freeze_rho\(\)`")


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="Keras compiles nothing there"
)
def test_a_call_that_cannot_be_compiled():
    class Broken(Jitter):
        def call(self, inputs, training=False, sampling=None):
            if sampling:
                inputs = inputs * float(ops.convert_to_numpy(ops.ones(())))
                float(inputs[0, 0])
            return super().call(inputs, training, sampling)

    # JAX compiles nothing with `jit_compile=False`.
    is_jax = keras.backend.backend() == "jax"
    for jit_compile in (True,) if is_jax else (False, True):
        check(
            Broken,
            f"pass with `jit_compile={jit_compile}` failed with",
            jit_compile=jit_compile,
        )
