"""Learned regularizers, against scikit-learn and closed forms."""

import keras
import numpy as np
import pytest
import scipy.optimize
from forms import Batches
from helpers import JIT
from helpers import executions_of
from helpers import needs_executions_of
from helpers import slow_but
from sklearn.linear_model import Lasso

import keras_crossreg as kcr
from keras_crossreg import regularizers

ROWS, REG_ROWS, FEATURES = 60, 100, 6

EAGER = dict(run_eagerly=True)
GRAPH = dict(run_eagerly=False, jit_compile=False)


@keras.saving.register_keras_serializable(package="tests")
class LearnedL4(regularizers.LearnedRegularizer):
    """Of a user: the complexity alone."""

    name = "l4_norm"

    def complexity(self, weight):
        return keras.ops.sum(weight**4) ** 0.25


KINDS = {
    "l1": regularizers.LearnedL1,
    "l2": regularizers.LearnedL2,
    "smoothness": lambda: regularizers.LearnedSmoothness(order=1),
    "group": lambda: regularizers.LearnedGroupL1(axis=0),
    "own": LearnedL4,
}


def complexity(kind, w):
    """The same with NumPy, float64; `w`: (features, outputs)."""
    if kind == "l1":
        return np.abs(w).sum()
    if kind == "group":
        return np.sqrt((w**2).sum(1)).sum()
    if kind == "own":
        return (w**4).sum() ** 0.25
    return np.linalg.norm(np.diff(w, axis=0) if kind == "smoothness" else w)


def problem(outputs=1, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(FEATURES, FEATURES)) + 2 * np.eye(FEATURES)
    w = rng.normal(size=(FEATURES, outputs))
    w[::2] *= 0.1
    x = rng.normal(size=(ROWS + REG_ROWS, FEATURES)) @ mix / 2
    y = x @ w + rng.normal(size=(len(x), outputs))
    x, y = x.astype("float32"), y.astype("float32")
    return x[:ROWS], y[:ROWS], x[ROWS:], y[ROWS:]


def linear_model(kind, outputs=1, steps=600, rate=0.05, **arguments):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((FEATURES,))
    layer = keras.layers.Dense(
        outputs, use_bias=False, kernel_regularizer=KINDS[kind]()
    )
    model = kcr.CrossRegModel(inputs, layer(inputs))
    decay = keras.optimizers.schedules.CosineDecay(rate, steps)
    defaults = dict(optimizer=keras.optimizers.Adam(decay), loss="mse")
    model.compile(**{**defaults, **arguments})
    return model, layer


def whole_batches(x, y, steps):
    return Batches([(x, y)] * steps)


def train_at(kind, level, steps=600, outputs=1, **arguments):
    """The kernel of least training loss at this complexity."""
    x, y, _, _ = problem(outputs)
    model, layer = linear_model(kind, outputs, steps, **arguments)
    (path,) = model.get_rho()
    model.set_rho({path: level})
    model.freeze_rho()
    model.fit(whole_batches(x, y, steps), shuffle=False, verbose=0)
    kernel = layer.kernel.numpy()
    assert complexity(kind, kernel) == pytest.approx(level, rel=1e-4)
    return kernel


def optimum(kind, level, x, y):
    """The same by SLSQP, on smooth problems."""
    shape = (x.shape[1], y.shape[1])
    x, y = x.astype("float64"), y.astype("float64")
    result = scipy.optimize.minimize(
        lambda w: np.mean((x @ w.reshape(shape) - y) ** 2),
        np.linalg.lstsq(x, y)[0].ravel(),
        jac=lambda w: (2 * x.T @ (x @ w.reshape(shape) - y) / y.size).ravel(),
        constraints=scipy.optimize.NonlinearConstraint(
            lambda w: complexity(kind, w.reshape(shape)), level, level
        ),
        method="SLSQP",
        options=dict(ftol=1e-14, maxiter=1000),
    )
    assert result.success
    return result.x.reshape(shape)


def lasso_of_norm(x, y, norm):
    x, y = x.astype("float64"), y.astype("float64")

    def fit(strength):
        model = Lasso(strength, fit_intercept=False, tol=1e-12)
        return model.fit(x, y).coef_[:, None]

    strength = scipy.optimize.brentq(
        lambda s: np.abs(fit(s)).sum() - norm, 1e-4, 20
    )
    return fit(strength)


@pytest.mark.parametrize(
    ("level", "arguments"),
    [
        (1.5, {}),
        (0.7, JIT),
        (
            0.7,
            dict(
                optimizer={
                    "class_name": "SGD",
                    "config": {"learning_rate": 0.05},
                }
            ),
        ),
        pytest.param(
            0.7,
            dict(
                optimizer={
                    "class_name": "AdamW",
                    "config": {"learning_rate": 0.01},
                }
            ),
            marks=pytest.mark.slow,
        ),
        (0.7, dict(steps_per_execution=7)),
    ],
    ids=["adam", "jit", "sgd", "adamw", "steps_per_execution"],
)
def test_l1_is_the_lasso_at_that_norm_zeros_included(level, arguments):
    needs_executions_of(arguments.get("steps_per_execution", 1))
    x, y, _, _ = problem()
    expected = lasso_of_norm(x, y, level)
    kernel = train_at("l1", level, **arguments)
    np.testing.assert_allclose(kernel, expected, atol=2e-3)
    # Exactly zero, and none else.
    np.testing.assert_array_equal(kernel == 0, np.abs(expected) < 1e-6)
    assert (kernel == 0).any()


@pytest.mark.parametrize("kind", slow_but(["l2"], ["l2", "smoothness", "own"]))
def test_smooth_complexities_reach_the_constrained_optimum(kind):
    x, y, _, _ = problem()
    expected = optimum(kind, 0.5, x, y)
    kernel = train_at(kind, 0.5, steps=1500, **executions_of(50))
    np.testing.assert_allclose(kernel, expected, atol=2e-3)


def test_group_l1_leaves_out_whole_inputs():
    x, y, _, _ = problem(outputs=3)
    level = 2.0
    w = train_at("group", level, 1500, outputs=3, **executions_of(50))
    w = w.astype("float64")
    norms = np.sqrt((w**2).sum(1))
    zero = norms == 0
    assert zero.any() and not zero.all()
    # The conditions of the group lasso: one strength for all that are not
    # zero, and no steeper slope where they are.
    gradient = 2 * x.T @ (x @ w - y) / y.size
    strength = np.sqrt((gradient**2).sum(1))
    common = strength[~zero].mean()
    np.testing.assert_allclose(strength[~zero], common, rtol=2e-3)
    np.testing.assert_allclose(
        gradient[~zero],
        -common * w[~zero] / norms[~zero, None],
        atol=2e-3 * common,
    )
    assert (strength[zero] < common).all()


def reg_loss_along(kind, w, level):
    x, y, reg_x, reg_y = problem()
    if kind == "l1":
        w = lasso_of_norm(x, y, level)
    else:
        w = optimum(kind, level, x, y)
    return np.mean((reg_x @ w - reg_y) ** 2)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("l1", EAGER),
        ("l2", EAGER),
        ("smoothness", EAGER),
        ("own", EAGER),
        pytest.param("l1", GRAPH, marks=pytest.mark.slow),
        pytest.param("l1", JIT, marks=pytest.mark.slow),
        pytest.param("l2", GRAPH, marks=pytest.mark.slow),
        pytest.param("l2", JIT, marks=pytest.mark.slow),
        pytest.param("smoothness", JIT, marks=pytest.mark.slow),
        pytest.param("own", JIT, marks=pytest.mark.slow),
    ],
)
def test_implicit_is_the_derivative_along_the_path(kind, mode):
    x, y, reg_x, reg_y = problem()
    level, small = 1.2, 1e-3
    exact = reg_loss_along(kind, None, level + small)
    exact = (exact - reg_loss_along(kind, None, level - small)) / (2 * small)
    w = lasso_of_norm(x, y, level) if kind == "l1" else None
    w = optimum(kind, level, x, y) if w is None else w

    def measured(hypergradient, mode):
        model, layer = linear_model(
            kind,
            optimizer=keras.optimizers.SGD(0.0),
            rho_optimizer=keras.optimizers.SGD(1.0),
            hypergradient=hypergradient,
            **mode,
        )
        layer.kernel.assign(np.where(np.abs(w) < 1e-6, 0, w))
        before = np.log(list(model.get_rho().values())[0])
        model.train_on_batch(x, y, reg_data=(reg_x, reg_y))
        after = np.log(list(model.get_rho().values())[0])
        return (before - after) / level

    assert measured("implicit", mode) == pytest.approx(exact, rel=1e-2)
    # `g . grad R / |grad R|^2`, in closed form where R is the norm.
    if kind == "l2":
        gradient = 2 * reg_x.T @ (reg_x @ w - reg_y) / len(reg_x)
        direct = (gradient * w).sum() / level
        assert measured("direct", EAGER) == pytest.approx(direct, rel=1e-3)


def test_in_a_corner_nothing_can_answer_and_implicit_is_direct():
    """A single weight is left: no direction keeps the norm."""
    x, y, reg_x, reg_y = problem()

    def norms(hypergradient):
        model, layer = linear_model(
            "l1",
            optimizer=keras.optimizers.SGD(0.0),
            rho_optimizer=keras.optimizers.SGD(1.0),
            hypergradient=hypergradient,
            **EAGER,
        )
        ends = []
        for level in np.geomspace(0.01, 0.03, 10):
            layer.kernel.assign(np.eye(FEATURES, 1, -2) * level)
            model.train_on_batch(x, y, reg_data=(reg_x, reg_y))
            ends.append(list(model.get_rho().values())[0] / level)
        return ends

    direct = norms("direct")
    assert np.abs(np.log(direct)).min() > 1e-3
    assert norms("implicit") == pytest.approx(direct, rel=1e-6)


@pytest.mark.slow
def test_the_whole_run_finds_the_best_norm():
    x, y, reg_x, reg_y = problem()
    steps = 500
    decay = keras.optimizers.schedules.CosineDecay(0.05, steps)
    model, layer = linear_model(
        "l1",
        steps=steps,
        rate=0.05,
        rho_optimizer=keras.optimizers.Adam(decay),
        reg_freq=1,
        reg_warmup=100,
        hypergradient="implicit",
    )
    model.fit(
        whole_batches(x, y, steps),
        shuffle=False,
        reg_data=(reg_x, reg_y),
        reg_batch_size=REG_ROWS,
        verbose=0,
    )
    learned = np.mean((reg_x @ layer.kernel.numpy() - reg_y) ** 2)
    norms = np.linspace(0.5, 4.5, 21)
    losses = [reg_loss_along("l1", None, n) for n in norms]
    best = np.argmin(losses)
    # The best of the grid is not at its end.
    assert 0 < best < 20
    assert learned < 1.01 * losses[best]
    (norm,) = model.get_rho().values()
    assert norm == pytest.approx(norms[best], abs=0.1)


def network(**mode):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((FEATURES,))
    x = keras.layers.Dense(8, "relu", kernel_regularizer=KINDS["l1"]())(inputs)
    x = kcr.layers.GaussianNoiseScale(seed=1)(x)
    outputs = keras.layers.Dense(1, kernel_regularizer=KINDS["l2"]())(x)
    model = kcr.CrossRegModel(inputs, outputs)
    model.compile("adam", "mse", reg_freq=2, **(mode or EAGER))
    return model


def fit(model, **kwargs):
    x, y, reg_x, reg_y = problem()
    arguments = dict(reg_data=(reg_x, reg_y), batch_size=20, verbose=0)
    return model.fit(x, y, **{**arguments, **kwargs})


def test_rho_are_listed_in_the_order_of_the_network_and_learn():
    model = network(**GRAPH)
    before = model.get_rho()
    names = [path.split("/", 1)[1] for path in before]
    assert names == ["kernel/l1_norm", "scale", "kernel/l2_norm"]
    history = kcr.callbacks.RhoHistory()
    fit(model, epochs=3, callbacks=[history])
    after = model.get_rho()
    assert all(after[path] != before[path] for path in before)
    for path, value in after.items():
        assert history.history[path][-1] == pytest.approx(value, rel=1e-5)
    text = []
    model.rho_summary(print_fn=text.append)
    assert "l1 norm" in text[0] and "l2 norm" in text[0]
    # Nothing of them joins theta.
    assert len(model.theta_variables) == 4


@pytest.mark.parametrize("dtype", ["mixed_float16", "float64"])
def test_other_precisions(dtype):
    keras.config.set_dtype_policy(dtype)
    try:
        model = network()
        before = model.get_rho()
        # Loss scaling leaves out the first steps.
        history = fit(model, epochs=3).history
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(history["reg_loss"][-1])
    after = model.get_rho()
    assert all(np.isfinite(v) and v != before[p] for p, v in after.items())


def test_saved_in_the_middle_it_goes_on_as_it_would_have(tmp_path):
    model = network()
    fit(model, epochs=1)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert list(loaded.get_rho().values()) == list(model.get_rho().values())
    for m in (model, loaded):
        fit(m, epochs=3, initial_epoch=1, shuffle=False)
    for a, b in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_refit_and_frozen_rho_keep_the_level():
    model = network()
    fit(model)
    learned = list(model.get_rho().values())
    x, y, _, _ = problem()
    final = kcr.refit(model, x, y, verbose=0)
    np.testing.assert_allclose(
        list(final.get_rho().values()), learned, rtol=1e-4
    )


def test_weights_from_elsewhere_set_the_level():
    model = network()
    kernel = model.layers[1].kernel
    kernel.assign(kernel * 2)
    assert list(model.get_rho().values())[0] == pytest.approx(
        np.abs(kernel.numpy()).sum(), rel=1e-5
    )


def test_it_adds_nothing_to_the_loss_of_a_plain_model():
    layer = keras.layers.Dense(2, kernel_regularizer=KINDS["l1"]())
    layer.build((None, 3))
    assert [float(loss) for loss in layer.losses] == [0.0]


def test_configs_come_back():
    for make in KINDS.values():
        regularizer = make()
        config = keras.saving.serialize_keras_object(regularizer)
        again = keras.saving.deserialize_keras_object(config)
        assert type(again) is type(regularizer)
        assert again.get_config() == regularizer.get_config()


class OwnRho(keras.layers.Layer):
    def build(self, input_shape):
        self.rho = kcr.mark_rho(
            self.add_weight(
                shape=(3,),
                regularizer=KINDS["l2"](),
                dtype="float32",
                autocast=False,
                trainable=False,
            )
        )

    def call(self, inputs):
        return inputs


def one_layer(layer, features=FEATURES):
    inputs = keras.Input((features,))
    model = kcr.CrossRegModel(inputs, layer(inputs))
    model.compile("adam", "mse", reg_freq=1, **EAGER)
    return model


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            lambda: keras.layers.Dense(
                1,
                kernel_initializer="zeros",
                kernel_regularizer=KINDS["l1"](),
            ),
            r"complexity above 0.*Received: weight=.*kernel with "
            r"complexity=0\.0$",
        ),
        (
            lambda: keras.layers.Dense(
                1,
                kernel_constraint="non_neg",
                kernel_regularizer=KINDS["l2"](),
            ),
            "no other constraint.*Received: weight=.*kernel with constraint=",
        ),
        (OwnRho, "A weight that is rho.*Received: weight="),
        (
            lambda: keras.layers.Dense(
                1, kernel_regularizer=regularizers.LearnedSmoothness(order=6)
            ),
            r"longer along its first axis.*Received: order=6, weight of shape "
            r"\(6, 1\)",
        ),
        (
            lambda: keras.layers.Dense(
                1, kernel_regularizer=regularizers.LearnedGroupL1(axis=2)
            ),
            "axes of a weight of rank 2.*Received: axis=2$",
        ),
        (
            lambda: keras.layers.Dense(
                1, kernel_regularizer=regularizers.LearnedRegularizer()
            ),
            "`LearnedRegularizer` must implement `complexity",
        ),
    ],
)
def test_errors_before_a_weight_moves(layer, message):
    with pytest.raises((ValueError, NotImplementedError), match=message):
        fit(one_layer(layer()))


@pytest.mark.parametrize("order", [0, 1.5, True])
def test_order_is_checked(order):
    with pytest.raises(ValueError, match=f"Received: order={order}"):
        regularizers.LearnedSmoothness(order)
