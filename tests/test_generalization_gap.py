"""The first-order gradient of noise in which theta's answer has a part."""

import keras
import numpy as np
import pytest
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from helpers import needs_executions_of
from helpers import values

import keras_crossreg as kcr
from keras_crossreg.hypergradients import GeneralizationGap

pytestmark = pytest.mark.backend

ROWS = 12
# Half a million draws of the noise in a rho step: the deviation of a gradient
# is half a per cent (over twelve seeds, it was 1.5 for 48,000).
MANY_ROWS = 1200
MANY = dict(num_samples=400, samples_per_pass=400)

SHARED = pytest.mark.filterwarnings(
    "ignore:1200 of 1200 regularization examples"
)


def one_step(hypergradient, data=None, reg=None, **arguments):
    """What a rho step adds to each rho, at a rate of 1 and theta that rest.

    Both sets are a batch each.
    """
    model = compile_model(
        make_model(),
        optimizer=keras.optimizers.SGD(0.0),
        rho_optimizer=keras.optimizers.SGD(1.0),
        hypergradient=hypergradient,
        **arguments,
    )
    # Backends draw other weights, and small ones have a small gradient.
    rng = np.random.default_rng(3)
    for kernel in (v for v in model.theta_variables if "kernel" in v.path):
        kernel.assign(2 * rng.normal(size=kernel.shape))
    norm = next(la for la in model.layers if "norm" in la.name)
    norm.momentum = 1.0
    norm.moving_mean.assign([0.1, -0.2, 0.3, 0.0])
    norm.moving_variance.assign([0.5, 1.5, 0.7, 2.0])
    before = values(model.rho_variables)
    x, y, *weight = data or make_data(ROWS)
    reg = reg or make_data(ROWS, seed=1)
    model.fit(
        x,
        y,
        sample_weight=weight[0] if weight else None,
        reg_data=reg,
        reg_batch_size=len(reg[1]),
        batch_size=len(y),
        shuffle=False,
        verbose=0,
    )
    after = values(model.rho_variables)
    return np.concatenate(
        [np.ravel(a - b) for a, b in zip(after, before, strict=True)]
    )


def test_a_factor_of_one_is_the_direct_gradient():
    np.testing.assert_allclose(
        one_step(GeneralizationGap(1.0)), one_step("direct"), rtol=1e-4
    )


def test_the_factor_multiplies_the_difference():
    steps = [one_step(GeneralizationGap(c)) for c in (1.0, 2.0, 4.0)]
    assert abs(steps[1] - steps[0]) > 1e-4
    np.testing.assert_allclose(
        steps[2] - steps[0], 3 * (steps[1] - steps[0]), rtol=1e-3
    )


@pytest.mark.parametrize("name", ["gap", "auto"])
def test_by_name_the_factor_is_two(name):
    np.testing.assert_array_equal(
        one_step(name), one_step(GeneralizationGap(2.0))
    )


@SHARED
@pytest.mark.parametrize(
    "run_eagerly", [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_against_direct_gradients_of_both_sets(run_eagerly):
    options = dict(**MANY, run_eagerly=run_eagerly)
    reg, (x, y) = make_data(MANY_ROWS, seed=1), make_data(MANY_ROWS)
    train = (3 * x, y)
    of_reg = one_step("direct", train, reg, **options)
    of_train = one_step("direct", train, train, **options)
    assert abs(of_reg - of_train) > 0.5 * abs(of_reg)
    found = one_step(GeneralizationGap(3.0), train, reg, **options)
    # Draws of both sides are others: `3 g_reg - 2 g_train` has a deviation of
    # `sqrt(13) * .5 = 1.8` per cent of g.
    np.testing.assert_allclose(
        found,
        of_train + 3 * (of_reg - of_train),
        rtol=0.05,
    )


@SHARED
def test_no_gap_where_both_sets_are_one():
    """The draws are others: they differ by `sqrt(5) * .5` per cent, or less."""
    data = make_data(MANY_ROWS)
    np.testing.assert_allclose(
        one_step(GeneralizationGap(2.0), data, data, **MANY),
        one_step("direct", data, data, **MANY),
        rtol=0.05,
    )


@pytest.mark.filterwarnings("ignore:1 rho learn from 4")
def test_as_many_training_examples_as_there_are_in_the_regularization_batch():
    x, y = make_data(ROWS)
    # What comes behind the first four rows does not count.
    other = np.concatenate([x[:4], -5 * x[4:]])
    found = [one_step("gap", (x, y), make_data(4, seed=1)) for x in (x, other)]
    np.testing.assert_array_equal(*found)
    found = [
        one_step(GeneralizationGap(batch_size=size), (x, y)) for size in (4, 12)
    ]
    assert abs(found[0] - found[1]) > 1e-4


def test_weights_count_where_the_regularization_batch_has_them():
    x, y = make_data(ROWS)
    weighted = (x, y, np.linspace(0.1, 5.0, ROWS))
    reg = make_data(ROWS, seed=1)
    np.testing.assert_array_equal(
        one_step("gap", weighted), one_step("gap", (x, y))
    )
    ones = np.ones(ROWS)
    np.testing.assert_allclose(
        one_step("gap", (x, y, ones), (*reg, ones)),
        one_step("gap", (x, y), reg),
        rtol=1e-4,
    )
    found = one_step("gap", weighted, (*reg, ones))
    assert abs(found - one_step("gap", (x, y), reg)) > 1e-4


@pytest.mark.filterwarnings("ignore:3 rho learn from 12")
def test_norms_and_temperatures_have_the_direct_gradient():
    steps = []
    for hypergradient in ("direct", GeneralizationGap(3.0)):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((3,))
        dense = keras.layers.Dense(
            4, kernel_regularizer=kcr.regularizers.LearnedL2()
        )
        x = kcr.layers.NormMagnitude(dense_of(4))(dense(inputs))
        x = kcr.layers.Temperature()(keras.layers.Dense(2)(x))
        model = kcr.CrossRegModel(inputs, keras.layers.Softmax()(x))
        compile_model(model, hypergradient=hypergradient)
        fit(model, epochs=2)
        steps.append(values(model.rho_variables))
    assert len(steps[0]) == 3
    for direct, gap in zip(*steps, strict=True):
        np.testing.assert_array_equal(direct, gap)


def dense_of(units):
    return keras.layers.Dense(units, use_bias=False)


def test_train_on_batch():
    model = compile_model(
        make_model(), hypergradient="gap", optimizer=keras.optimizers.SGD(0.0)
    )
    direct = compile_model(
        make_model(),
        hypergradient="direct",
        optimizer=keras.optimizers.SGD(0.0),
    )
    for each in (model, direct):
        each.train_on_batch(*make_data(8), reg_data=make_data(12, seed=1))
    assert model.get_rho() != direct.get_rho()


def test_several_steps_in_one_execution():
    needs_executions_of(3)
    runs = []
    for steps in (1, 3):
        model = compile_model(
            make_model(),
            hypergradient="gap",
            reg_freq=3,
            steps_per_execution=steps,
            run_eagerly=False,
        )
        fit(model, epochs=2)
        runs.append(values(model.rho_variables + model.theta_variables))
    for one, three in zip(*runs, strict=True):
        np.testing.assert_allclose(one, three, rtol=1e-5)


def test_saved_with_the_model(tmp_path):
    model = compile_model(make_model(), hypergradient=GeneralizationGap(1.5, 4))
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    config = loaded.compile_options.hypergradient.get_config()
    assert config == {"factor": 1.5, "batch_size": 4}


@pytest.mark.parametrize("factor", [0.5, -1, float("nan"), float("inf"), "2"])
def test_a_factor_out_of_range(factor):
    message = f"`factor` must be a finite.*Received: factor={factor}$"
    with pytest.raises(ValueError, match=message):
        GeneralizationGap(factor)


def test_a_batch_size_out_of_range():
    with pytest.raises(ValueError, match="Received: batch_size=0$"):
        GeneralizationGap(batch_size=0)


def test_a_rho_step_of_ones_own_that_knows_of_one_batch_alone():
    class Own(kcr.CrossRegModel):
        def rho_step(self, data):
            return super().rho_step(data)

    found = []
    for cls in (Own, kcr.CrossRegModel):
        model = compile_model(make_model(cls=cls), hypergradient="gap")
        fit(model, epochs=2)
        found.append(values(model.rho_variables))
    np.testing.assert_array_equal(*found)
