import keras
import numpy as np
import pytest
from helpers import gradients
from keras import ops

import keras_crossreg as kcr
from keras_crossreg import primitives
from keras_crossreg._keras import get_keras_mask
from keras_crossreg.layers import NormMagnitude

# Some tests learn from the training data itself, to have a known answer.
pytestmark = pytest.mark.filterwarnings("ignore:.* regularization examples")


def normal(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype("float32")


def images(*shape):
    return normal(2, *shape, 3)


def set_magnitude(layer, value):
    layer.rho.assign(kcr.rho.stored_value(layer.rho, value))


# Every kind of layer has its class, arguments, inputs, and axes to try.
KINDS = {
    "dense": (keras.layers.Dense, dict(units=4), images(5), [-1, (0,)]),
    "einsum": (
        keras.layers.EinsumDense,
        dict(equation="abc,cde->abde", output_shape=(None, 4, 2)),
        images(5),
        [-1, (1, 2)],
    ),
    "conv1d": (
        keras.layers.Conv1D,
        dict(filters=4, kernel_size=3),
        images(8),
        [-1, (0, -1)],
    ),
    "conv2d": (
        keras.layers.Conv2D,
        dict(filters=4, kernel_size=3),
        images(6, 7),
        [-1, (-2, -1)],
    ),
    "conv3d": (
        keras.layers.Conv3D,
        dict(filters=4, kernel_size=2),
        images(4, 4, 4),
        [-1],
    ),
    "transposed": (
        keras.layers.Conv2DTranspose,
        dict(filters=4, kernel_size=3, strides=2),
        images(5, 4),
        [-2],
    ),
    "depthwise": (
        keras.layers.DepthwiseConv2D,
        dict(kernel_size=3, depth_multiplier=2),
        images(5, 4),
        [(-2, -1)],
    ),
    "embedding": (
        keras.layers.Embedding,
        dict(input_dim=7, output_dim=4),
        np.array([[0, 6, 2, 2, 5], [1, 0, 4, 3, 6]]),
        [0, -1],
    ),
}
CASES = [
    (kind, axis) for kind, (*_, axes) in KINDS.items() for axis in [None, *axes]
]


def make(kind, **kwargs):
    """A layer of a kind that draws the same kernel every time."""
    cls, arguments, *_ = KINDS[kind]
    name = {"embedding": "embeddings", "depthwise": "depthwise"}
    initializer = f"{name.get(kind, 'kernel')}_initializer"
    arguments = {
        initializer: keras.initializers.RandomNormal(0.1, 0.5, seed=3),
        **arguments,
        **kwargs,
    }
    return cls(**arguments)


def make_dense(axis=None, built=True, **kwargs):
    layer = NormMagnitude(make("dense", **kwargs), axis=axis)
    if built:
        layer.build((None, 3))
    return layer


def kernel_of(layer):
    """The variable with the kernel, or v."""
    return layer.embeddings if hasattr(layer, "embeddings") else layer.kernel


def array(value):
    return ops.convert_to_numpy(value)


def norm_axes(axis, rank):
    own = axis if isinstance(axis, tuple) else (axis,)
    own = () if axis is None else {a % rank for a in own}
    return tuple(a for a in range(rank) if a not in own)


def norm(value, axis):
    value = array(value).astype("float64")
    axes = norm_axes(axis, value.ndim)
    return np.sqrt((value**2).sum(axis=axes, keepdims=True))


def close(actual, expected, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(
        array(actual), array(expected), rtol=rtol, atol=atol
    )


# The function.


@pytest.mark.parametrize("kind, axis", CASES)
def test_starts_as_the_unwrapped_layer(kind, axis):
    x = KINDS[kind][2]
    plain, layer = make(kind), NormMagnitude(make(kind), axis=axis)
    close(layer(x), plain(x))
    kernel, v = kernel_of(plain), kernel_of(layer.layer)
    close(np.squeeze(layer.magnitude), np.squeeze(norm(kernel, axis)))
    close(norm(v, axis), 1.0)
    close(layer.magnitude * array(v), kernel)


@pytest.mark.parametrize("kind, axis", CASES)
def test_the_norm_of_the_kernel_is_the_magnitude(kind, axis):
    x = KINDS[kind][2]
    plain, layer = make(kind), NormMagnitude(make(kind), axis=axis)
    plain(x), layer(x)
    v = kernel_of(layer.layer)
    # Any v does, whatever its norm.
    v.assign(normal(*v.shape, seed=4))
    rng = np.random.default_rng(1)
    magnitude = rng.uniform(0.5, 2.0, size=layer.rho.shape)
    set_magnitude(layer, magnitude)
    close(layer.magnitude, magnitude)
    kernel = magnitude * array(v) / norm(v, axis)
    close(np.squeeze(norm(kernel, axis)), np.squeeze(magnitude))
    kernel_of(plain).assign(kernel)
    for flags in ({}, {"training": True}, {"sampling": True}):
        close(layer(x, **flags), plain(x))


def test_what_is_learned():
    layer = make_dense(axis=-1)
    assert layer.rho.path == f"{layer.name}/magnitude"
    assert [kcr.is_rho(w) for w in layer.weights] == [True, False, False]
    assert [w.name for w in layer.trainable_weights] == ["kernel", "bias"]
    assert layer.magnitude.shape == (1, 4)
    assert isinstance(make_dense().magnitude, float)
    model = kcr.CrossRegModel(x := keras.Input((3,)), layer(x))
    lines = []
    model.rho_summary(print_fn=lines.append)
    assert "kernel norm" in lines[0]


def test_a_layer_that_was_built_keeps_its_kernel():
    dense = make("dense")
    dense.build((None, 3))
    dense.kernel.assign(kernel := normal(3, 4))
    layer = NormMagnitude(dense)
    close(layer(np.eye(3)), kernel)
    assert layer.magnitude == pytest.approx(norm(kernel, None).item())


# The gradients.


def gradients_by(layer, x, target, **flags):
    """By the kernel, or v, and by the magnitude where there is one."""
    v = kernel_of(getattr(layer, "layer", layer))
    variables = [v, layer.rho] if hasattr(layer, "rho") else [v]
    return gradients(
        lambda: ops.multiply(ops.tanh(layer(x, **flags)), target), variables
    )


@pytest.mark.parametrize("kind, axis", CASES)
def test_gradients_in_closed_form(kind, axis):
    x = KINDS[kind][2]
    plain, layer = make(kind), NormMagnitude(make(kind), axis=axis)
    target = normal(*plain(x).shape, seed=5)
    layer(x)
    (by_kernel,) = gradients_by(plain, x, target)
    by_v, by_rho = gradients_by(layer, x, target, sampling=True)
    v, axes = array(kernel_of(layer.layer)), norm_axes(axis, by_v.ndim)
    radial = (by_kernel * v).sum(axis=axes, keepdims=True)
    # This is the slope of softplus at rho.
    slope = 1 - np.exp(-np.asarray(layer.magnitude))
    close(by_rho, radial.reshape(by_rho.shape) * slope, atol=1e-4)
    close(by_v, layer.magnitude * (by_kernel - radial * v), atol=1e-4)
    close((by_v * v).sum(axis=axes), 0.0, atol=1e-4)


def test_in_inference_v_alone_has_a_gradient():
    layer = make_dense(axis=-1)
    by_v, by_rho = gradients_by(layer, np.eye(3), np.ones(4, "float32"))
    assert by_rho is None
    assert np.abs(by_v).max() > 0.01


def test_a_zero_unit_stays_finite():
    dense = make("dense")
    dense.build((None, 3))
    dense.kernel.assign(ops.multiply(dense.kernel, [1.0, 0.0, 1.0, 1.0]))
    layer = NormMagnitude(dense, axis=-1)
    layer.build((None, 3))
    close(layer(np.eye(3))[:, 1], 0.0)
    target = np.ones(4, "float32")
    for gradient in gradients_by(layer, np.eye(3), target, sampling=True):
        assert np.isfinite(gradient).all()


# The steps of v.

OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(0.05, amsgrad=True),
    "adamw": lambda: keras.optimizers.AdamW(0.05, weight_decay=0.5),
    "ema": lambda: keras.optimizers.Adam(
        0.05, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=None
    ),
    "clipped": lambda: keras.optimizers.SGD(0.5, global_clipnorm=0.1),
    "accumulated": lambda: keras.optimizers.SGD(
        0.5, gradient_accumulation_steps=2
    ),
    "muon": lambda: keras.optimizers.Muon(0.05),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.5), initial_scale=1.0
    ),
}


@pytest.mark.parametrize(
    ("name", "axis"),
    [*((name, -1) for name in OPTIMIZERS), ("sgd", None), ("adam", 0)],
)
def test_v_stays_of_unit_norm(name, axis):
    layer, optimizer = make_dense(axis=axis), OPTIMIZERS[name]()
    optimizer.build(layer.trainable_variables)
    magnitude, kernel = layer.magnitude, array(layer.layer.kernel)
    for step in range(30):
        primitives.apply_gradients(
            optimizer,
            [
                ops.convert_to_tensor(normal(*v.shape, seed=step))
                for v in layer.trainable_variables
            ],
            layer.trainable_variables,
        )
        close(norm(layer.layer.kernel, axis), 1.0, rtol=1e-6)
    assert np.abs(layer.layer.kernel - kernel).max() > 0.05
    close(layer.magnitude, magnitude, rtol=0, atol=0)
    # Averages of v are shorter; the kernel is not.
    optimizer.finalize_variable_values(layer.trainable_variables)
    outputs = layer(np.eye(3)) - layer.layer.bias
    close(np.squeeze(norm(outputs, axis)), np.squeeze(magnitude))


def test_weight_decay_does_not_act_on_v():
    plain, decayed = make_dense(), make_dense()
    for layer, decay in ((plain, None), (decayed, 0.1)):
        optimizer = keras.optimizers.SGD(0.1, weight_decay=decay)
        zeros = [ops.zeros(v.shape) for v in layer.trainable_variables]
        optimizer.build(layer.trainable_variables)
        optimizer.apply(zeros)
    close(decayed.layer.kernel, plain.layer.kernel, atol=1e-6)


def test_steps_of_v_do_not_shrink():
    def angles(constrained):
        layer = make_dense()
        v = layer.layer.kernel
        if not constrained:
            v.constraint = None
        optimizer = keras.optimizers.SGD(0.1)
        optimizer.build([v])
        steps = []
        for step in range(200):
            before = array(v) / norm(v, None)
            target = normal(3, 4, seed=step)
            by_v, _ = gradients_by(layer, np.eye(3), target)
            optimizer.apply([ops.convert_to_tensor(by_v)])
            cosine = (before * array(v) / norm(v, None)).sum()
            steps.append(np.arccos(np.clip(cosine, -1, 1)))
        return np.mean(steps[:10]), np.mean(steps[-50:])

    first, last = angles(constrained=True)
    assert 0.7 < last / first < 1.4
    first, last = angles(constrained=False)
    assert last / first < 0.5


# Dtypes.


@pytest.mark.parametrize(
    "policy, dtype",
    [
        ("mixed_float16", "float32"),
        ("mixed_bfloat16", "float32"),
        ("bfloat16", "bfloat16"),
        ("float64", "float64"),
    ],
)
@pytest.mark.parametrize("axis", [None, -1])
def test_dtype_policies(policy, dtype, axis):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        layer = make_dense(axis=axis)
        model = keras.Sequential([keras.Input((3,)), layer])
        outputs = model(np.eye(3))
    finally:
        keras.config.set_dtype_policy(before)
    v = layer.layer.kernel
    assert keras.backend.standardize_dtype(outputs.dtype) == (
        layer.compute_dtype
    )
    assert model.outputs[0].dtype == layer.compute_dtype
    assert keras.backend.standardize_dtype(layer.rho.dtype) == "float32"
    assert keras.backend.standardize_dtype(v.dtype) == dtype
    # The kernel is normalized in float32, then rounded, once.
    exact = layer.magnitude * array(v).astype("float32") / norm(v, axis)
    exact = ops.cast(exact, outputs.dtype)
    tolerance = 0 if policy.startswith("mixed") else 1e-2
    close(
        ops.cast(outputs, "float32"),
        ops.cast(exact, "float32"),
        rtol=max(tolerance, 1e-3),
        atol=tolerance,
    )
    close(norm(ops.cast(v, "float32"), axis), 1.0, rtol=tolerance or 1e-6)


def test_the_wrapped_layer_has_the_last_word_on_dtypes():
    layer = NormMagnitude(make("dense", dtype="mixed_float16"))
    inputs = keras.Input((3,))
    assert layer(inputs).dtype == "float16"
    outputs = layer(np.eye(3, dtype="float32"))
    assert keras.backend.standardize_dtype(outputs.dtype) == "float16"


def test_token_ids_are_not_rounded():
    embedding = keras.layers.Embedding(5001, 2, dtype="mixed_float16")
    layer = NormMagnitude(embedding, dtype="mixed_float16")
    ids = np.array([[4097.0, 4096.0]], "float32")
    outputs = ops.convert_to_numpy(layer(ids))
    assert (outputs[0, 0] != outputs[0, 1]).any()


# Builds and models.


class Net(kcr.CrossRegModel):
    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def call(self, x):
        return self.layer(x)


@pytest.mark.parametrize("kind, axis", CASES)
def test_deferred_build(kind, axis):
    x = KINDS[kind][2]
    plain, layer = make(kind), NormMagnitude(make(kind), axis=axis)
    # A symbolic call of a subclassed model builds without values.
    outputs = Net(layer)(keras.Input(x.shape[1:], dtype=x.dtype.name))
    assert outputs.shape[1:] == plain(x).shape[1:]
    close(np.squeeze(layer.magnitude), np.squeeze(norm(kernel_of(plain), axis)))
    close(norm(kernel_of(layer.layer), axis), 1.0)
    close(layer(x), plain(x))


@pytest.mark.parametrize(
    ("form", "options"),
    [
        pytest.param(
            "functional", {"jit_compile": True}, marks=pytest.mark.slow
        ),
        ("sequential", {"jit_compile": False}),
        ("subclassed", {"run_eagerly": True}),
    ],
)
def test_fit(form, options):
    layer = make_dense(axis=-1, built=False)
    start = norm(make_dense(axis=-1).magnitude, -1)
    inputs = keras.Input((3,))
    model = {
        "functional": lambda: kcr.CrossRegModel(inputs, layer(inputs)),
        "sequential": lambda: kcr.wrap(keras.Sequential([inputs, layer])),
        "subclassed": lambda: Net(layer),
    }[form]()
    x = normal(32, 3)
    y = x @ normal(3, 4, seed=1)
    model.compile("adam", "mse", reg_freq=1, **options)
    model.fit(x, y, reg_data=(x, y), batch_size=8, verbose=0)
    close(norm(layer.layer.kernel, -1), 1.0, rtol=1e-6)
    assert np.abs(layer.magnitude - start).max() > 0.01
    kernel = layer.magnitude * array(layer.layer.kernel)
    close(
        model.predict(x, verbose=0),
        x @ kernel + array(layer.layer.bias),
    )


def test_a_plain_model_leaves_the_magnitude():
    layer = make_dense()
    start = layer.magnitude
    model = keras.Sequential([layer])
    model.compile("sgd", "mse")
    model.fit(np.eye(3), np.ones((3, 4)), verbose=0)
    assert layer.magnitude == start


def test_recovers_the_norm_of_the_solution():
    truth = normal(3, 4)
    # One epoch of many rows takes less time than many of few.
    x = normal(120 * 32, 3, seed=1)
    y = x @ truth
    layer = make_dense(use_bias=False)
    model = kcr.CrossRegModel(inputs := keras.Input((3,)), layer(inputs))
    model.compile(keras.optimizers.SGD(0.1), "mse", reg_freq=1)
    model.fit(x, y, reg_data=(x[:64], y[:64]), verbose=0)
    assert layer.magnitude == pytest.approx(norm(truth, None).item(), rel=0.05)


# What the wrapped layer has besides its kernel.


@keras.saving.register_keras_serializable(package="test")
class Noisy(keras.layers.Layer):
    """A kernel, a state, a random generator and a loss."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1)

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], 2), name="k")
        self.calls = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="calls"
        )

    def call(self, inputs, training=False):
        outputs = inputs @ self.kernel
        if training:
            self.calls.assign_add(1.0)
            outputs += keras.random.normal(
                ops.shape(outputs), seed=self.seed_generator
            )
        self.add_loss(ops.sum(outputs))
        return outputs

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 2)


def test_training_and_state_reach_the_wrapped_layer():
    layer = NormMagnitude(Noisy())
    x = np.eye(3, dtype="float32")
    still = layer(x)
    close(layer(x), still)
    noisy, again = layer(x, training=True), layer(x, training=True)
    for one, other in ((noisy, still), (again, noisy)):
        assert np.abs(one - other).min() > 1e-3
    assert float(layer.layer.calls) == 2.0
    # State reaches it in compiled code, too.
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile("sgd", "mse")
    model.train_on_batch(x, x[:, :2])
    assert float(layer.layer.calls) == 3.0


def test_losses_survive():
    plain = make("dense", activity_regularizer="l2", bias_regularizer="l1")
    layer = NormMagnitude(
        make("dense", activity_regularizer="l2", bias_regularizer="l1")
    )
    x = images(5)
    plain(x), layer(x)
    close(np.stack(layer.losses), np.stack(plain.losses))
    model = keras.Sequential([layer])
    model.compile("sgd", "mse")
    y = ops.convert_to_numpy(plain(x))
    loss = model.evaluate(x, y, verbose=0)
    assert loss == pytest.approx(array(sum(plain.losses)), rel=1e-4)


@pytest.mark.parametrize("axis, expected", [(None, 1.0), (-1, 4.0)])
def test_a_kernel_regularizer_sees_v(axis, expected):
    regularizer = keras.regularizers.L2(1.0)
    layer = make_dense(axis=axis, kernel_regularizer=regularizer)
    (loss,) = map(ops.convert_to_numpy, layer.losses)
    assert float(loss) == pytest.approx(expected)


def test_inside_a_stateless_scope():
    layer = NormMagnitude(Noisy())
    x = np.eye(3, dtype="float32")
    layer(x)
    theta = [ops.convert_to_tensor(normal(3, 2))]
    rest = [ops.copy(v.value) for v in layer.non_trainable_variables]
    outputs, after, losses = layer.stateless_call(
        theta, rest, x, return_losses=True
    )
    expected = layer.magnitude * theta[0] / norm(theta[0], None)
    close(outputs, expected)
    close(np.stack(losses), array(expected).sum(keepdims=True).reshape(1))
    _, after = layer.stateless_call(theta, rest, x, training=True)
    changed = {
        v.name: bool((array(a) != array(v)).any())
        for v, a in zip(layer.non_trainable_variables, after, strict=True)
    }
    assert changed == {
        "magnitude": False,
        "calls": True,
        "seed_generator_state": True,
    }


def test_masks_survive():
    layer = NormMagnitude(make("embedding", mask_zero=True))
    assert layer.supports_masking
    ids = np.array([[1, 2, 0, 0]])
    expected = np.array([[True, True, False, False]])
    assert (array(get_keras_mask(layer(ids))) == expected).all()
    inputs = keras.Input((4,), dtype="int32")
    dense = NormMagnitude(make("dense"))
    x = dense(layer(inputs))
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(x))
    outputs = np.asarray(dense(layer(ids)))
    close(model(ids), outputs[:, :2].mean(axis=1))
    assert not NormMagnitude(keras.layers.Embedding(3, 2)).supports_masking


# Copies.


def test_a_loaded_layer_keeps_v_of_unit_norm(tmp_path):
    layer = make_dense(axis=-1, built=False)
    model = keras.Sequential([keras.Input((3,)), layer])
    model.save(tmp_path / "model.keras")
    (loaded,) = keras.saving.load_model(tmp_path / "model.keras").layers
    optimizer = keras.optimizers.SGD(0.5)
    kernel = loaded.layer.kernel
    optimizer.build([kernel])
    optimizer.apply([ops.convert_to_tensor(normal(3, 4))])
    assert np.abs(array(kernel) - array(layer.layer.kernel)).max() > 0.05
    close(norm(kernel, -1), 1.0, rtol=1e-6)


def test_clone_is_freshly_initialized():
    layer = NormMagnitude(keras.layers.Dense(4), axis=-1)
    model = keras.Sequential([keras.Input((3,)), layer])
    set_magnitude(layer, 9.0)
    (clone,) = keras.models.clone_model(model).layers
    assert np.abs(clone.layer.kernel - layer.layer.kernel).max() > 0.01
    assert (clone.magnitude < 5.0).all()
    close(norm(clone.layer.kernel, -1), 1.0)
    kernel = clone(np.eye(3)) - clone.layer.bias
    close(norm(kernel, -1), clone.magnitude)


# Errors.


@pytest.mark.parametrize(
    "layer, message",
    [
        (
            keras.layers.ReLU,
            "variable `kernel` or `embeddings`. Received: "
            "layer=re_lu.* of type ReLU",
        ),
        (lambda: keras.layers.SeparableConv2D(2, 3), "SeparableConv2D"),
        (lambda: keras.layers.Dense(2, lora_rank=1), "of type Dense"),
        (
            lambda: make("dense", kernel_constraint="non_neg"),
            "no other constraint. Received: layer=dense.* with constraint=.*",
        ),
        (
            lambda: make("embedding", embeddings_constraint="unit_norm"),
            "no other constraint",
        ),
        (
            lambda: make("dense", kernel_initializer="zeros"),
            "no direction. Received: layer=.* with kernel_initializer=",
        ),
    ],
)
def test_layers_that_cannot_be_wrapped(layer, message):
    with pytest.raises(ValueError, match=message):
        NormMagnitude(layer()).build((None, 4, 4, 3))


def test_a_direction_is_shared_over_the_same_axis_alone():
    dense = make_dense(axis=-1).layer
    layer = NormMagnitude(dense, axis=1)
    close(norm(layer(np.eye(3)), -1), 1.0)
    with pytest.raises(ValueError, match="no other constraint"):
        NormMagnitude(dense).build((None, 3))


def test_not_a_layer():
    with pytest.raises(ValueError, match="valid Keras layer"):
        NormMagnitude(3)


@pytest.mark.parametrize("axis", [2, -3, (0, 1), (0, 5), (-1, -2), "a", 0.5])
def test_wrong_axis(axis):
    with pytest.raises(ValueError, match=r"rank 2.* Received: axis="):
        make_dense(axis=axis)


def test_wrong_inputs_in_a_graph():
    layer = make_dense()
    with pytest.raises(ValueError, match="incompatible with the layer"):
        layer(keras.Input((7,)))
