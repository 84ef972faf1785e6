"""Every way to run a step, in every precision, gives the same training."""

import itertools

import keras
import numpy as np
import pytest
from helpers import JIT
from helpers import make_data
from helpers import needs_executions_of
from helpers import values

import keras_crossreg as kcr

MODES = {
    "graph": dict(run_eagerly=False, jit_compile=False),
    "jit": JIT,
    "eager": dict(run_eagerly=True, jit_compile=False),
}

# Relative differences to float32, a few times the spacing of the numbers, which
# for the two of sixteen bits is 2**-10 and 2**-7.
TOLERANCES = {
    "float32": 1e-5,
    "float64": 1e-5,
    "mixed_float16": 0.002,
    "mixed_bfloat16": 0.04,
}

# Executions of 3 and 2 steps: neither is a multiple of r = 2. Every mode and
# every precision is in one quick case at least, and float16 with its loss
# scaling in two. That of eager steps in float32 is the reference itself.
QUICK = {("graph", "float32", 3), ("eager", "mixed_float16", 3)}
GRID = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in itertools.product(MODES, TOLERANCES, (1, 3))
    if case[:2] != ("eager", "float32")
]


def scaled(optimizer):
    """A loss scale at which nothing overflows, so that no step is left out."""
    return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=256)


def make_model(policy, sigma=0.0):
    """One rho that draws noise, and one that does not."""
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense(4, use_bias=False, dtype=policy)
    inputs = keras.Input((3,))
    x = kcr.layers.NormMagnitude(dense, dtype=policy)(inputs)
    x = keras.layers.BatchNormalization(dtype=policy)(x)
    x = kcr.layers.GaussianNoiseScale(
        sigma, seed=1, dtype=policy, name="noise"
    )(x)
    x = keras.layers.ReLU(dtype=policy)(x)
    outputs = keras.layers.Dense(2, activation="softmax", dtype="float32")(x)
    model = kcr.CrossRegModel(inputs, outputs)
    if policy == "float64":
        # Whose initial numbers are others.
        model.set_weights(make_model("float32", sigma).get_weights())
    return model


def train(policy="float32", steps_per_execution=1, sigma=0.0, **mode):
    """Two epochs of five steps, a rho step every second."""
    model = make_model(policy, sigma)
    optimizers = [
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.optimizers.SGD(0.2, momentum=0.9),
    ]
    if policy == "mixed_float16":
        optimizers = [scaled(optimizer) for optimizer in optimizers]
    model.compile(
        optimizers[0],
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        rho_optimizer=optimizers[1],
        num_samples=2,
        reg_freq=2,
        reg_warmup=0,
        steps_per_execution=steps_per_execution,
        **mode,
    )
    history = model.fit(
        *make_data(),
        # The last batch is a partial one.
        batch_size=5,
        epochs=2,
        shuffle=False,
        reg_data=make_data(20, seed=1),
        reg_batch_size=4,
        validation_data=make_data(5, seed=2),
        verbose=0,
    ).history
    return model, history


REFERENCES = {}


def reference(steps_per_execution):
    """The rho steps that are due follow an execution: one for each number."""
    if steps_per_execution not in REFERENCES:
        # Eagerly executions are loops in Python: nothing is compiled.
        REFERENCES[steps_per_execution] = train(
            steps_per_execution=steps_per_execution, **MODES["eager"]
        )
    return REFERENCES[steps_per_execution]


@pytest.mark.parametrize(("mode", "policy", "steps_per_execution"), GRID)
def test_the_grid(mode, policy, steps_per_execution):
    needs_executions_of(steps_per_execution)
    expected_model, expected = reference(steps_per_execution)
    model, history = train(policy, steps_per_execution, **MODES[mode])
    assert int(model.optimizer.iterations) == 10
    assert int(model.rho_optimizer.iterations) == 5
    assert {v.dtype for v in model.rho_variables} == {"float32"}
    tolerance = TOLERANCES[policy]
    assert list(history) == list(expected)
    for name in ("loss", "reg_loss", "val_loss"):
        np.testing.assert_allclose(
            history[name], expected[name], rtol=tolerance, err_msg=name
        )
    for kind in ("theta_variables", "rho_variables"):
        # By how far training moved them, in units of the largest move.
        ours, theirs, first = (
            np.concatenate([np.ravel(v) for v in arrays])
            for arrays in (
                values(getattr(model, kind)),
                values(getattr(expected_model, kind)),
                values(getattr(make_model("float32"), kind)),
            )
        )
        scale = np.abs(theirs - first).max()
        assert scale > 0.01
        np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=2 * tolerance * scale, err_msg=kind
        )


@pytest.mark.parametrize("policy", [p for p in TOLERANCES if p != "float32"])
def test_noise_in_every_precision(policy):
    model, history = train(policy, sigma=0.5, **MODES["eager"])
    assert all(np.isfinite(v).all() for v in history.values())
    assert model.get_rho()["noise/scale"] != pytest.approx(0.5, abs=1e-3)
    x, _ = make_data(7, seed=2)
    samples = model.predict_samples(x, 3, verbose=0)
    assert samples.shape == (3, 7, 2)
    assert np.isfinite(samples).all()


# Loss scaling.


@pytest.fixture
def mixed_float16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(before)


def make_scaled(**arguments):
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4)(inputs)
    x = kcr.layers.GaussianNoiseScale(0.5, seed=1, name="noise")(x)
    outputs = keras.layers.Dense(2, activation="softmax", dtype="float32")(x)
    model = kcr.CrossRegModel(inputs, outputs)
    model.compile(
        "sgd",
        "sparse_categorical_crossentropy",
        num_samples=2,
        reg_freq=1,
        reg_warmup=0,
        run_eagerly=True,
        **arguments,
    )
    return model


def test_both_optimizers_scale_the_loss_of_float16(mixed_float16):
    scaled = keras.optimizers.LossScaleOptimizer
    model = make_scaled()
    assert isinstance(model.optimizer, scaled)
    assert isinstance(model.rho_optimizer, scaled)
    model = make_scaled(auto_scale_loss=False)
    assert not isinstance(model.optimizer, scaled)
    assert not isinstance(model.rho_optimizer, scaled)
    # Wrapped already, as it is with Keras.
    rho_optimizer = scaled(keras.optimizers.SGD(), initial_scale=8)
    model = make_scaled(rho_optimizer=rho_optimizer)
    assert model.rho_optimizer is rho_optimizer


@pytest.mark.parametrize("overflow", ["training", "regularization"])
def test_an_overflow_leaves_out_one_step_of_one_optimizer(
    mixed_float16, overflow
):
    model = make_scaled()
    start = 2.0**15
    x, y = make_data(12)
    data, reg_data = (x, y), make_data(12, seed=1)
    # Beyond what sixteen bits hold, once scaled.
    weights = np.full(12, 1e6, "float32")
    if overflow == "training":
        data = (*data, weights)
    else:
        reg_data = (*reg_data, weights)
    model.train_on_batch(x, y, reg_data=make_data(12, seed=1))
    theta, rho = values(model.theta_variables), values(model.rho_variables)
    model.train_on_batch(*data, reg_data=reg_data)
    theta_moved = not np.array_equal(theta[0], model.theta_variables[0])
    rho_moved = not np.array_equal(rho[0], model.rho_variables[0])
    scales = [
        float(optimizer.dynamic_scale)
        for optimizer in (model.optimizer, model.rho_optimizer)
    ]
    if overflow == "training":
        assert (theta_moved, rho_moved) == (False, True)
        assert scales == [start / 2, start]
    else:
        assert (theta_moved, rho_moved) == (True, False)
        assert scales == [start, start / 2]
