"""Gradients of rho with theta's answer, against closed forms."""

import functools

import keras
import numpy as np
import pytest
import scipy.optimize
from forms import Batches
from helpers import JIT
from helpers import Factor
from helpers import compile_model
from helpers import make_data
from helpers import make_model
from helpers import needs_executions_of
from helpers import values

import keras_crossreg as kcr
from keras_crossreg.hypergradients import Implicit
from keras_crossreg.hypergradients import OneStep

pytestmark = pytest.mark.backend

RADIUS = 0.5

EAGER = dict(run_eagerly=True)
GRAPH = dict(run_eagerly=False, jit_compile=False)


def problem(condition, seed=0, rows=60, reg_rows=200, features=5):
    """Training and regularization rows of a linear problem with noise."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(features, features)))
    spectrum = np.geomspace(1, 1 / condition, features)
    scale = np.sqrt(spectrum * features / spectrum.sum())
    w = rng.normal(size=features) / np.sqrt(features)
    x = rng.normal(size=(rows + reg_rows, features)) * scale @ basis.T
    y = x @ w + rng.normal(size=len(x))
    # The model sees float32.
    x, y = x.astype("float32"), y.astype("float32")
    return x[:rows], y[:rows], x[rows:], y[rows:]


def ridge(x, y, strength):
    x, y = x.astype("float64"), y.astype("float64")
    gram = x.T @ x / len(x) + strength * np.eye(x.shape[1])
    return np.linalg.solve(gram, x.T @ y / len(x))


def ridge_of_norm(x, y, norm):
    """The least squares solution on a sphere; beyond OLS, strength < 0."""
    least = -np.linalg.eigvalsh(x.T @ x / len(x))[0]
    strength = scipy.optimize.brentq(
        lambda s: np.linalg.norm(ridge(x, y, s)) - norm, 0.999 * least, 1e6
    )
    return ridge(x, y, strength)


def reg_gradient(data, w):
    _, _, x, y = data
    return 2 * x.T @ (x @ w - y) / len(x)


def linear_model(w, hypergradient, **arguments):
    """`w = rho u` at these weights; its rho step has a rate of 1."""
    inputs = keras.Input((len(w),))
    layer = kcr.layers.NormMagnitude(keras.layers.Dense(1, use_bias=False))
    model = kcr.CrossRegModel(inputs, layer(inputs))
    layer.layer.kernel.assign(w[:, None] / np.linalg.norm(w))
    model.set_rho({model.rho_variables[0].path: np.linalg.norm(w)})
    defaults = dict(
        optimizer=keras.optimizers.SGD(0.0),
        loss="mse",
        rho_optimizer=keras.optimizers.SGD(1.0),
        reg_freq=1,
        run_eagerly=True,
    )
    model.compile(**{**defaults, **arguments}, hypergradient=hypergradient)
    return model


def measured(data, w, hypergradient, **arguments):
    """The derivative by the norm that a rho step uses."""
    model = linear_model(w, hypergradient, **arguments)
    x, y, reg_x, reg_y = data
    before = model.rho_variables[0].numpy()
    model.train_on_batch(x, y[:, None], reg_data=(reg_x, reg_y[:, None]))
    step = before - model.rho_variables[0].numpy()
    # norm = softplus(rho)
    return step * (1 + np.exp(-before))


@pytest.mark.parametrize(
    ("condition", "hypergradient", "mode"),
    [
        (1, "implicit", EAGER),
        (100, "implicit", EAGER),
        pytest.param(100, "implicit", GRAPH, marks=pytest.mark.slow),
        (100, "implicit", JIT),
        (100, Implicit(num_terms=400, solver="neumann"), GRAPH),
    ],
)
def test_implicit_is_the_derivative_along_the_ridge_path(
    condition, hypergradient, mode
):
    data = problem(condition)
    x, y, reg_x, reg_y = data

    def reg_loss(norm):
        return np.mean((reg_x @ ridge_of_norm(x, y, norm) - reg_y) ** 2)

    small = 1e-4
    exact = reg_loss(RADIUS + small) - reg_loss(RADIUS - small)
    exact /= 2 * small
    w = ridge_of_norm(x, y, RADIUS)
    direct = reg_gradient(data, w) @ w / RADIUS
    # The design tells them apart.
    assert condition == 1 or abs(exact - direct) > 0.1 * abs(exact)
    result = measured(data, w, hypergradient, **mode)
    assert result == pytest.approx(exact, rel=1e-3)
    assert measured(data, w, "direct") == pytest.approx(direct, rel=1e-4)


def test_implicit_where_theta_have_not_arrived():
    # (P A P) q = P g and -q' B, with what design.md gives for the sphere:
    # A = rho^2 P H P - rho (grad . u) P, B = P (grad + rho H u).
    data = problem(10)
    x, y, _, _ = data
    w = ridge_of_norm(x, y, RADIUS) + 0.05
    rho = np.linalg.norm(w)
    u = w / rho
    hessian = 2 * x.T @ x / len(x)
    gradient = 2 * x.T @ (x @ w - y) / len(x)
    tangent = np.eye(len(w)) - np.outer(u, u)
    curvature = rho**2 * tangent @ hessian @ tangent
    curvature -= rho * (gradient @ u) * tangent
    g = reg_gradient(data, w)
    mixed = tangent @ (gradient + rho * hessian @ u)
    damping = 0.01
    for d in (0.0, damping):
        inverse = np.linalg.pinv(curvature + d * tangent, rcond=1e-8)
        expected = g @ u - rho * tangent @ g @ inverse @ mixed
        result = measured(data, w, Implicit(damping=d))
        assert result == pytest.approx(expected, rel=1e-3)


def test_implicit_with_a_penalty_of_keras():
    """`y_hat = rho w . x`, and `c |w|^2` in training alone."""
    x, y, reg_x, reg_y = problem(condition=10)
    c = 0.1

    def weights(factor):
        return ridge(factor * x, y, c)

    def reg_loss(factor):
        return np.mean((factor * reg_x @ weights(factor) - reg_y) ** 2)

    small = 1e-4
    exact = reg_loss(0.7 + small) - reg_loss(0.7 - small)
    exact /= 2 * small
    inputs = keras.Input((5,))
    dense = keras.layers.Dense(
        1, use_bias=False, kernel_regularizer=keras.regularizers.L2(c)
    )
    model = kcr.CrossRegModel(inputs, dense(Factor(0.7)(inputs)))
    dense.kernel.assign(weights(0.7)[:, None])
    compile_model(
        model,
        optimizer=keras.optimizers.SGD(0.0),
        rho_optimizer=keras.optimizers.SGD(1.0),
        loss="mse",
        hypergradient="implicit",
    )
    before = model.rho_variables[0].numpy()
    logs = model.train_on_batch(
        x, y[:, None], reg_data=(reg_x, reg_y[:, None]), return_dict=True
    )
    step = before - model.rho_variables[0].numpy()
    assert step * (1 + np.exp(-before)) == pytest.approx(exact, rel=1e-3)
    # Reported as Keras reports any loss.
    penalty = c * np.sum(weights(0.7) ** 2)
    assert logs["reg_loss"] == pytest.approx(reg_loss(0.7) + penalty, rel=1e-4)


@pytest.mark.parametrize(
    ("cls", "mode"),
    [
        (Implicit, EAGER),
        pytest.param(Implicit, JIT, marks=pytest.mark.slow),
        (OneStep, EAGER),
        (OneStep, JIT),
    ],
)
def test_batch_size_takes_the_first_examples(cls, mode):
    data = problem(condition=10)
    x, y, *reg = data
    w = ridge_of_norm(x[:24], y[:24], RADIUS)
    if cls is OneStep:
        cls = functools.partial(OneStep, 0.3)
    expected = measured((x[:24], y[:24], *reg), w, cls())
    found = measured(data, w, cls(batch_size=24), **mode)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    whole = measured(data, w, cls())
    assert abs(whole - expected) > 1e-3
    # More than there are.
    np.testing.assert_allclose(
        measured(data, w, cls(batch_size=99), **mode), whole, rtol=1e-4
    )


@pytest.mark.parametrize("step_size", [None, 0.3])
def test_one_step_is_the_derivative_through_a_step(step_size):
    data = problem(10)
    x, y, _, _ = data
    w = ridge_of_norm(x, y, RADIUS)
    u = w / RADIUS
    g = reg_gradient(data, w)
    tangent = np.eye(len(w)) - np.outer(u, u)
    gradient = 2 * x.T @ (x @ w - y) / len(x)
    mixed = tangent @ (gradient + RADIUS * 2 * x.T @ x @ u / len(x))
    rate = 1e-4
    answer = (step_size or rate) * RADIUS * tangent @ g @ mixed
    result = measured(
        data, w, OneStep(step_size), optimizer=keras.optimizers.SGD(rate)
    )
    direct = g @ u
    if step_size is None:
        # Too small a step to see in float32: by its name, alike.
        named = measured(
            data, w, "one_step", optimizer=keras.optimizers.SGD(rate)
        )
        assert named == result
        assert result == pytest.approx(direct - answer, rel=1e-3)
    else:
        assert abs(answer) > 0.02 * abs(direct)
        assert result - direct == pytest.approx(-answer, rel=1e-2)


def every_rho_layer():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 1))
    x = kcr.layers.LearnedAugmentation(seed=1)(inputs)
    conv = keras.layers.Conv2D(2, 3, use_bias=False)
    x = kcr.layers.NormMagnitude(conv, axis=-1)(x)
    x = keras.layers.BatchNormalization(center=False, scale=False)(x)
    x = kcr.layers.GaussianNoiseScale(axis=-1, seed=2)(x)
    x = keras.layers.Dropout(0.2, seed=3)(keras.layers.ReLU()(x))
    x = keras.layers.Flatten()(x)
    return kcr.CrossRegModel(inputs, keras.layers.Dense(2)(x))


@pytest.mark.parametrize(
    "mode",
    [
        EAGER,
        pytest.param(GRAPH, marks=pytest.mark.slow),
        pytest.param(JIT, marks=pytest.mark.slow),
    ],
)
def test_with_every_rho_layer(mode):
    # The passes of the correction leave no trace but in rho.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 6, 6, 1)).astype("float32")
    y = rng.integers(0, 2, 8)
    results = {}
    for hypergradient in ("direct", Implicit(3, damping=1.0)):
        model = every_rho_layer()
        model.compile(
            keras.optimizers.SGD(0.1),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            rho_optimizer=keras.optimizers.SGD(10.0),
            num_samples=2,
            **mode,
            hypergradient=hypergradient,
        )
        start = values(model.rho_variables)
        model.train_on_batch(x, y, reg_data=(x, y))
        others = [v for v in model.variables if not kcr.is_rho(v)]
        rho = values(model.rho_variables)
        results[str(hypergradient)] = rho, values(others)
        assert np.isfinite(np.concatenate([v.ravel() for v in rho])).all()
        for a, b in zip(start, rho, strict=True):
            assert not np.array_equal(a, b)
    (direct, trace), (implicit, other_trace) = results.values()
    # `jit_compile` may add up in another order.
    for a, b in zip(trace, other_trace, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # Theta's answer is seen in each of them.
    for a, b in zip(direct, implicit, strict=True):
        assert not np.allclose(a, b, rtol=1e-5)


def test_the_last_batch_of_an_execution_is_the_one():
    needs_executions_of(2)
    # Two batches in one execution: the curvature is that of the second.
    data = problem(10)
    x, y, reg_x, reg_y = data
    w = ridge_of_norm(x, y, RADIUS)
    x = np.concatenate([2 * x, x])
    y = np.concatenate([3 * y, y])
    models = [
        linear_model(
            w,
            "implicit",
            **mode,
            steps_per_execution=steps,
            reg_freq=steps,
        )
        for steps, mode in ((1, EAGER), (2, GRAPH))
    ]
    for model, rows in zip(models, (60, 120), strict=True):
        model.fit(
            x[-rows:],
            y[-rows:, None],
            batch_size=60,
            shuffle=False,
            reg_data=(reg_x, reg_y[:, None]),
            reg_batch_size=200,
            verbose=0,
        )
        assert int(model.rho_optimizer.iterations) == 1
    first, second = (model.rho_variables[0].numpy() for model in models)
    assert second == pytest.approx(first, rel=1e-5)


def negative(y_true, y_pred):
    return -keras.ops.mean((y_true - y_pred) ** 2, axis=-1)


def test_curvature_that_is_not_positive_warns_and_leaves_direct():
    # The negative of a loss bends downwards everywhere.
    data = problem(10)
    x, y, reg_x, reg_y = data
    w = ridge_of_norm(x, y, RADIUS)
    results = []

    for hypergradient in ("implicit", "direct"):
        model = linear_model(w, hypergradient, loss=negative)
        arguments = dict(reg_data=(reg_x, reg_y[:, None]))
        if hypergradient == "implicit":
            with pytest.warns(UserWarning, match="after training step 1:"):
                model.train_on_batch(x, y[:, None], **arguments)
        else:
            model.train_on_batch(x, y[:, None], **arguments)
        results.append(model.rho_variables[0].numpy())
    assert results[0] == results[1]


def test_fit_warns_of_curvature_once():
    data = problem(10)
    x, y, reg_x, reg_y = data
    w = ridge_of_norm(x, y, RADIUS)
    model = linear_model(w, "implicit", loss=negative)
    match = "at 3 of 3 rho steps, the last after training step 3:"
    with pytest.warns(UserWarning, match=match) as record:
        model.fit(
            x,
            y[:, None],
            batch_size=20,
            reg_data=(reg_x, reg_y[:, None]),
            verbose=0,
        )
    # JAX and NumPy have deprecations of their own.
    ours = [r for r in record if not issubclass(r.category, DeprecationWarning)]
    assert [r.category for r in ours] == [UserWarning]


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (Implicit, dict(num_terms=0)),
        (Implicit, dict(num_terms=2.0)),
        (Implicit, dict(num_terms=True)),
        (Implicit, dict(batch_size=0)),
        (OneStep, dict(batch_size=1.5)),
        (Implicit, dict(damping=-1.0)),
        (Implicit, dict(damping=float("nan"))),
        (Implicit, dict(solver="lu")),
        (OneStep, dict(step_size=-0.1)),
        (OneStep, dict(step_size="a")),
    ],
)
def test_arguments_out_of_range(cls, arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"`{name}`.*: {name}={value}$"):
        cls(**arguments)


@pytest.mark.filterwarnings("ignore:The curvature")
@pytest.mark.parametrize(
    "hypergradient", ["implicit", Implicit(7, 0.5, "neumann"), OneStep(0.2)]
)
def test_saving_keeps_it(tmp_path, hypergradient):
    model = compile_model(make_model(), hypergradient=hypergradient)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    kept = loaded.compile_options.hypergradient
    if isinstance(hypergradient, str):
        assert kept == hypergradient
    else:
        assert type(kept) is type(hypergradient)
        assert kept.get_config() == hypergradient.get_config()
    loaded.train_on_batch(*make_data(), reg_data=make_data(12, seed=1))


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.slow
# With seed 0 and condition 1000, direct has no fixed point up to 1.5 times
# the norm of least squares.
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("condition", [1, 30, 1000])
def test_where_direct_and_implicit_end(condition, seed):
    """Full batches, from the norm that the layer drew.

    Of all norms, beyond that of least squares too, the one of least
    regularization loss; and the norm where the loss does not change with the
    norm alone. No step meets negative curvature: it would warn.
    """
    data = problem(condition, seed=seed, features=8)
    x, y, reg_x, reg_y = data
    least_squares = np.linalg.norm(ridge(x, y, 0.0))
    norms = np.linspace(0.05, 1.5, 400) * least_squares

    def reg_loss(norm):
        return np.mean((reg_x @ ridge_of_norm(x, y, norm) - reg_y) ** 2)

    nearest = min(norms, key=reg_loss)
    step = norms[1] - norms[0]
    best = scipy.optimize.minimize_scalar(
        reg_loss, bounds=(nearest - step, nearest + step), method="bounded"
    )
    best = ridge_of_norm(x, y, best.x)

    def slope(norm):
        w = ridge_of_norm(x, y, norm)
        return reg_gradient(data, w) @ w

    slopes = [slope(n) for n in norms]
    roots = [
        ridge_of_norm(x, y, scipy.optimize.brentq(slope, a, b))
        for a, b, low, high in zip(
            norms[:-1], norms[1:], slopes[:-1], slopes[1:], strict=True
        )
        if low * high < 0
    ]
    steps = 6000
    for hypergradient, ends in (("implicit", [best]), ("direct", roots)):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((8,))
        layer = kcr.layers.NormMagnitude(keras.layers.Dense(1, use_bias=False))
        model = kcr.CrossRegModel(inputs, layer(inputs))
        decay = keras.optimizers.schedules.CosineDecay
        model.compile(
            keras.optimizers.Adam(decay(0.02, steps)),
            "mse",
            rho_optimizer=keras.optimizers.Adam(decay(0.02, steps)),
            reg_freq=1,
            reg_warmup=500,
            hypergradient=hypergradient,
        )
        model.fit(
            Batches([(x, y[:, None])] * steps),
            shuffle=False,
            reg_data=(reg_x, reg_y[:, None]),
            reg_batch_size=len(reg_x),
            verbose=0,
        )
        magnitude = keras.ops.convert_to_numpy(layer.magnitude)
        w = magnitude * layer.layer.kernel.numpy()[:, 0]
        assert min(distance(w, end) for end in ends) < 0.02
