"""What the two steps do on PyTorch, and what they leave alone."""

import keras
import numpy as np
import pytest
import torch
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from helpers import values
from torch.utils._python_dispatch import TorchDispatchMode

import keras_crossreg as kcr
from keras_crossreg import primitives


class Watcher(keras.layers.Layer):
    """Notes what asks for a gradient in a pass, and in which mode it is."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.module = torch.nn.Linear(3, 3)
        self.seen = []

    def call(self, inputs, training=None):
        outputs = self.module(inputs, training=training)
        if not inputs.is_meta:
            module = self.module.module
            asks = [p.requires_grad for p in module.parameters()]
            self.seen.append((asks, module.training))
        return outputs


def watched_model(**arguments):
    inputs = keras.Input((3,))
    watcher = Watcher()
    x = kcr.layers.GaussianNoiseScale(0.5)(watcher(inputs))
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    return compile_model(kcr.CrossRegModel(inputs, outputs), **arguments), (
        watcher
    )


def test_rho_steps_ask_for_gradients_of_rho_alone():
    model, watcher = watched_model(hypergradient="direct")
    x, y = make_data(8)
    model.train_on_batch(x, y)
    model.train()
    watcher.seen.clear()
    model.train_on_batch(x, y, reg_data=make_data(8, seed=1))
    # Looks before the steps aside, theta's step is the only one in training.
    training = [asks for asks, in_training in watcher.seen if in_training]
    assert training[-1] == [True, True]
    others = [asks for asks, in_training in watcher.seen if not in_training]
    # Those of the look before the steps are followed by the check of rho.
    assert others[-2:] == [[False, False], [False, False]]
    assert model.training
    assert all(p.requires_grad for p in watcher.module.module.parameters())


def test_rho_steps_write_no_grad():
    found = []
    for reg_data in (None, make_data(8, seed=1)):
        model = compile_model(make_model())
        before = values(model.rho_variables)
        model.train_on_batch(*make_data(8), reg_data=reg_data)
        has_moved = values(model.rho_variables)[0] != before[0]
        assert has_moved == (reg_data is not None)
        found.append([v.value.grad.clone() for v in model.theta_variables])
        assert all(v.value.grad is None for v in model.rho_variables)
        assert not any(v.value.requires_grad for v in model.rho_variables)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


class Waits(TorchDispatchMode):
    """Notes where a number is read, for which one would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if (
            "_local_scalar_dense" in str(function)
            and args[0].is_floating_point()
        ):
            self.shapes.append(tuple(args[0].shape))
        return function(*args, **(kwargs or {}))


def test_rho_steps_wait_for_nothing():
    model = compile_model(make_model(), rho_optimizer="adam", num_samples=20)
    fit(model)
    batches = [
        tuple(map(keras.ops.convert_to_tensor, make_data(8, seed)))
        for seed in (0, 1)
    ]
    with Waits() as waits:
        model.rho_step(*batches)
    # Whole numbers are those of seeds, which are on the host.
    assert waits.shapes == []


def test_seeds_stay_on_the_host():
    generator = kcr.random.SeedGenerator(3)
    with keras.device("meta"):
        with primitives.seed_scope():
            pass
    with keras.device("cpu"):
        assert generator.next().device.type == "cpu"
    assert generator.state.value.device.type == "cpu"


def test_neighboring_seeds_share_no_number():
    draws = {}
    for seed in range(1, 9):
        generator = kcr.random.SeedGenerator(seed)
        for count in range(20):
            numbers = kcr.random.uniform((64,), generator).numpy()
            draws[seed, count] = numbers
    # A float32 below 1 is one of 2**24: n^2 / 2^25 of n are equal by chance,
    # four of these 10,240; of a repeated draw 64 would be.
    every = np.concatenate(list(draws.values()))
    assert len(np.unique(every)) > len(every) - 30


class Own(kcr.layers.RhoLayer):
    """Draws from PyTorch itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drawn = []

    def build(self, input_shape):
        self.rho = self.add_rho("width", start=0.5)

    def call(self, inputs, training=False, sampling=None):
        if not (training or sampling) or inputs.is_meta:
            return inputs
        noise = torch.randn(inputs.shape)
        self.drawn.append(noise.numpy())
        return inputs + self.rho_value(self.rho, sampling) * noise


def test_passes_repeat_numbers_of_pytorch_itself():
    inputs, own = keras.Input((3,)), Own()
    outputs = keras.layers.Dense(2, activation="softmax")(own(inputs))
    model = kcr.CrossRegModel(inputs, outputs)
    compile_model(
        model, num_samples=4, samples_per_pass=2, hypergradient="direct"
    )
    x, y = make_data(8)
    model.train_on_batch(x, y)
    own.drawn.clear()
    model.rho_step(tuple(map(keras.ops.convert_to_tensor, (x, y))))
    assert len(own.drawn) == 4
    for first, again in zip(own.drawn[:2], own.drawn[2:], strict=True):
        np.testing.assert_array_equal(first, again)


class OnlyOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class Once(keras.layers.Layer):
    def call(self, inputs):
        return OnlyOnce.apply(inputs)


@pytest.mark.parametrize("hypergradient", ["implicit", "one_step"])
def test_no_second_derivative_is_named(hypergradient):
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4)(inputs)
    x = kcr.layers.GaussianNoiseScale(0.5)(Once()(x))
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    model = kcr.CrossRegModel(inputs, outputs)
    compile_model(model, hypergradient=hypergradient)
    before = values(model.weights)
    with pytest.raises(ValueError, match="twice in theta, and PyTorch cannot"):
        fit(model)
    for one, other in zip(before, values(model.weights), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("call", ["fit", "evaluate", "predict"])
def test_several_steps_in_an_execution_are_refused_as_by_keras(call):
    x, y = make_data()
    messages = []
    for rho in (True, False):
        model = make_model(
            rho=rho, cls=kcr.CrossRegModel if rho else keras.Model
        )
        model.compile(
            "sgd", "sparse_categorical_crossentropy", steps_per_execution=3
        )
        reg = {"reg_data": make_data(12, 1)} if rho and call == "fit" else {}
        data = (x,) if call == "predict" else (x, y)
        with pytest.raises(ValueError, match="must be 1 with the PyT") as error:
            getattr(model, call)(*data, verbose=0, **reg)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_rho_steps_run_eagerly_where_those_of_theta_are_compiled():
    found = []
    for jit_compile in (False, True):
        model = compile_model(
            make_model(), run_eagerly=False, jit_compile=jit_compile
        )
        fit(model, epochs=2)
        found.append(values(model.rho_variables + model.theta_variables))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
