import time

import keras
import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf
from keras import ops
from keras.src.testing import TestCase

import keras_crossreg as kcr
from keras_crossreg.layers import learned_augmentation
from keras_crossreg.layers.learned_augmentation import affine_matrix
from keras_crossreg.layers.learned_augmentation import affine_warp
from keras_crossreg.rho import assign_human_value

# These learn from the training data itself, to have a known answer.
pytestmark = pytest.mark.filterwarnings("ignore:.* regularization examples")

NAMES = [
    "translation",
    "rotation",
    "shear",
    "zoom",
    "brightness",
    "contrast",
]
ONLY = dict.fromkeys(NAMES)
STARTS = {
    "translation": 1.3,
    "rotation": 8.0,
    "shear": 6.0,
    "zoom": 0.1,
    "brightness": 0.4,
    "contrast": 0.3,
}
SCIPY_MODES = {
    "reflect": "reflect",
    "wrap": "grid-wrap",
    "constant": "grid-constant",
    "nearest": "nearest",
}


def make_layer(**kwargs):
    """A layer with the given widths alone, or all where none is given."""
    widths = {k: v for k, v in kwargs.items() if k in NAMES}
    others = {k: v for k, v in kwargs.items() if k not in NAMES}
    others.setdefault("data_format", "channels_last")
    return kcr.layers.LearnedAugmentation(
        **({**ONLY, **widths} if widths else STARTS), **others
    )


def make_images(shape=(4, 9, 7, 3), dtype="float32", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def make_matrix(batch, dtype="float64", seed=1, spread=0.3):
    noise = np.random.default_rng(seed).uniform(-1, 1, size=(batch, 2, 3))
    matrix = noise * [spread, spread, 3.0]
    matrix[:, 0, 0] += 1
    matrix[:, 1, 1] += 1
    return matrix.astype(dtype)


def replay(layer, images, state, **kwargs):
    """Calls the layer with the draw that follows from a saved seed state."""
    layer.seed_generator.state.assign(state)
    return layer(images, **kwargs)


# The warp.


@pytest.mark.parametrize("fill_mode", SCIPY_MODES)
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_warp_equals_scipy(fill_mode, spread):
    images = make_images(dtype="float64")
    matrix = make_matrix(len(images), spread=spread)
    matrix[:, :, 2] *= 5 * spread  # Far outside, several periods away.
    outputs = ops.convert_to_numpy(affine_warp(images, matrix, fill_mode))
    center = (np.array(images.shape[1:3]) - 1) / 2
    for image, (linear, shift), output in zip(
        images, [(m[:, :2], m[:, 2]) for m in matrix], outputs, strict=True
    ):
        for channel in range(image.shape[-1]):
            expected = scipy.ndimage.affine_transform(
                image[..., channel],
                linear,
                offset=center + shift - linear @ center,
                order=1,
                mode=SCIPY_MODES[fill_mode],
            )
            np.testing.assert_allclose(
                output[..., channel], expected, atol=1e-10
            )


@pytest.mark.parametrize("fill_mode", ["reflect", "constant", "nearest"])
def test_warp_equals_keras(fill_mode):
    # In "wrap" Keras does not interpolate between the last and first pixel.
    images = make_images()
    matrix = make_matrix(len(images), "float32")
    (a, b, c), (d, e, f) = np.moveaxis(matrix, 0, -1)
    y, x = (np.array(images.shape[1:3]) - 1) / 2
    # Keras maps (x, y) from the first pixel.
    transform = [e, d, x + f - d * y - e * x, b, a, y + c - a * y - b * x]
    transform = np.stack([*transform, 0 * a, 0 * a], axis=1).astype("float32")
    expected = ops.image.affine_transform(
        images, transform, fill_mode=fill_mode, data_format="channels_last"
    )
    outputs = affine_warp(images, matrix, fill_mode)
    np.testing.assert_allclose(outputs, expected, atol=1e-4)


@pytest.mark.parametrize("fill_mode", SCIPY_MODES)
def test_warp_by_identity_is_exact(fill_mode):
    images = make_images()
    matrix = np.tile(np.eye(2, 3, dtype="float32"), (len(images), 1, 1))
    outputs = affine_warp(images, matrix, fill_mode)
    np.testing.assert_array_equal(outputs, images)


@pytest.mark.parametrize("fill_mode", SCIPY_MODES)
def test_warp_gradient_equals_finite_differences(fill_mode):
    images = make_images((2, 6, 5, 2), "float64")
    matrix = make_matrix(2)
    weights = make_images(images.shape, "float64", seed=2)

    def loss(matrix):
        return ops.sum(affine_warp(images, matrix, fill_mode) * weights)

    with tf.GradientTape() as tape:
        variable = tf.convert_to_tensor(matrix)
        tape.watch(variable)
        value = loss(variable)
    gradient = tape.gradient(value, variable).numpy()
    for index in np.ndindex(*matrix.shape):
        step = np.zeros_like(matrix)
        step[index] = 1e-6
        difference = (loss(matrix + step) - loss(matrix - step)) / 2e-6
        np.testing.assert_allclose(
            gradient[index], float(difference), rtol=1e-5, atol=1e-6
        )


def test_image_gradient_goes_to_the_four_neighbors():
    images = tf.convert_to_tensor(make_images((1, 4, 4, 1)))
    matrix = np.array([[[1, 0, 0.25], [0, 1, 0.25]]], "float32")
    with tf.GradientTape() as tape:
        tape.watch(images)
        pixel = affine_warp(images, matrix)[0, 1, 1, 0]
    expected = np.zeros((4, 4))
    expected[1:3, 1:3] = [[0.75**2, 0.75 / 4], [0.75 / 4, 1 / 16]]
    gradient = tape.gradient(pixel, images)[0, ..., 0]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def amounts_of(**given):
    zero = np.zeros(1, "float32")
    amounts = {name: zero for name in NAMES}
    amounts["translation"] = np.zeros((2, 1), "float32")
    amounts.update({k: np.asarray(v, "float32") for k, v in given.items()})
    return amounts


def test_matrix_units():
    cases = [
        ({"translation": [[2.0], [-1.0]]}, [[1, 0, 2], [0, 1, -1]]),
        ({"rotation": [90.0]}, [[0, -1, 0], [1, 0, 0]]),
        ({"shear": [45.0]}, [[1, 0, 0], [1, 1, 0]]),
        ({"zoom": [np.log(2)]}, [[2, 0, 0], [0, 2, 0]]),
        ({"rotation": [90.0], "shear": [45.0]}, [[-1, -1, 0], [1, 0, 0]]),
    ]
    for given, expected in cases:
        matrix = affine_matrix(amounts_of(**given))
        np.testing.assert_allclose(matrix[0], expected, atol=1e-6)


def test_translation_by_whole_pixels_shifts_the_image():
    images = make_images((1, 8, 8, 3))
    amounts = amounts_of(translation=[[2.0], [-1.0]])
    outputs = affine_warp(images, affine_matrix(amounts), "constant")
    expected = np.zeros_like(images)
    expected[:, :-2, 1:] = images[:, 2:, :-1]
    np.testing.assert_array_equal(outputs, expected)


def test_rotation_by_a_quarter_turn():
    images = make_images((1, 8, 8, 3))
    matrix = affine_matrix(amounts_of(rotation=[90.0]))
    outputs = affine_warp(images, matrix)
    np.testing.assert_allclose(
        outputs, np.rot90(images, -1, axes=(1, 2)), atol=1e-4
    )


# The layer.


def test_identity_in_inference():
    images = make_images()
    np.testing.assert_array_equal(make_layer()(images), images)


@pytest.mark.parametrize("mode", ["training", "sampling"])
def test_tiny_widths_leave_images_alone(mode):
    images = make_images()
    layer = make_layer(**dict.fromkeys(NAMES, 0.0))
    outputs = layer(images, **{mode: True})
    np.testing.assert_allclose(outputs, images, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_each_transform_acts_within_its_width(name):
    size = 32
    images = make_images((64, size, size, 3))
    layer = make_layer(**{name: STARTS[name]}, seed=3)
    outputs = ops.convert_to_numpy(layer(images, sampling=True))
    assert np.abs(outputs - images).max(axis=(1, 2, 3)).min() > 0
    assert list(layer.widths) == [name]
    assert len(layer.weights) == 1
    amounts = layer._draw(512, True)
    for other, amount in amounts.items():
        amount = ops.convert_to_numpy(amount)
        assert amount.shape == ((2, 512) if other == "translation" else (512,))
        largest = STARTS[name] if other == name else 0.0
        assert 0.9 * largest <= np.abs(amount).max() <= largest * 1.00001


def test_brightness_is_in_image_standard_deviations():
    images = make_images((512, 4, 4, 3)) * 100 + 50
    layer = make_layer(brightness=0.5, seed=0)
    shift = ops.convert_to_numpy(layer(images, training=True)) - images
    std = images.std(axis=(1, 2, 3), keepdims=True)
    relative = shift / std
    assert np.ptp(relative, axis=(1, 2, 3)).max() < 1e-4
    assert 0.48 < np.abs(relative).max() < 0.5001


def test_contrast_keeps_the_mean():
    images = make_images((512, 4, 4, 3)) * 100 + 50
    layer = make_layer(contrast=0.5, seed=0)
    outputs = ops.convert_to_numpy(layer(images, training=True))
    axes = (1, 2, 3)
    np.testing.assert_allclose(
        outputs.mean(axis=axes), images.mean(axis=axes), rtol=1e-3, atol=1e-2
    )
    log_gain = np.log(outputs.std(axis=axes) / images.std(axis=axes))
    assert -0.5001 < log_gain.min() < -0.48
    assert 0.48 < log_gain.max() < 0.5001


def test_constant_images_are_safe():
    images = np.ones((2, 4, 4, 1), "float32")
    layer = make_layer(brightness=0.5, contrast=0.5)
    layer.build(images.shape)
    with tf.GradientTape() as tape:
        inputs = tf.convert_to_tensor(images)
        tape.watch(inputs)
        outputs = layer(inputs, sampling=True)
    np.testing.assert_allclose(outputs, images, atol=1e-6)
    gradient = tape.gradient(outputs, inputs)
    assert np.isfinite(gradient).all()


def gradients(layer, images, state, weights, **kwargs):
    rho = {name: v.value for name, v in layer.rho.items()}
    with tf.GradientTape() as tape:
        tape.watch(list(rho.values()))
        outputs = replay(layer, images, state, **kwargs)
        loss = ops.sum(outputs * weights)
    return tape.gradient(loss, rho)


@pytest.mark.parametrize("fill_mode", SCIPY_MODES)
def test_gradients_equal_finite_differences(fill_mode):
    images = make_images((8, 12, 12, 2), "float64")
    images = scipy.ndimage.gaussian_filter(images, [0, 2, 2, 0])
    weights = scipy.ndimage.gaussian_filter(
        make_images(images.shape, "float64", seed=5), [0, 2, 2, 0]
    )
    layer = make_layer(fill_mode=fill_mode, dtype="float64", seed=11)
    layer.build(images.shape)
    state = layer.seed_generator.state.numpy()
    found = gradients(layer, images, state, weights, sampling=True)
    assert list(found) == NAMES
    for name, variable in layer.rho.items():
        start = variable.numpy()
        step = 2.0**-12
        losses = []
        for sign in (1, -1):
            variable.assign(start + sign * step)
            outputs = replay(layer, images, state, sampling=True)
            losses.append(float(ops.sum(outputs * weights)))
        variable.assign(start)
        difference = (losses[0] - losses[1]) / (2 * step)
        assert abs(difference) > 1e-4
        np.testing.assert_allclose(
            float(found[name]), difference, rtol=2e-3, err_msg=name
        )


def test_training_gives_no_gradient_to_widths():
    images = make_images()
    layer = make_layer()
    layer.build(images.shape)
    state = layer.seed_generator.state.numpy()
    assert set(
        gradients(layer, images, state, 1.0, training=True).values()
    ) == {None}
    both = gradients(layer, images, state, 1.0, training=True, sampling=True)
    assert None not in both.values()


def test_draws_are_independent_per_example_and_call():
    images = np.repeat(make_images((1, 9, 7, 3)), 6, axis=0)
    layer = make_layer(seed=1)
    first = ops.convert_to_numpy(layer(images, training=True))
    second = ops.convert_to_numpy(layer(images, training=True))
    flat = np.concatenate([first, second]).reshape(12, -1)
    distance = np.abs(flat[:, None] - flat[None]).max(axis=-1)
    assert distance[~np.eye(12, dtype=bool)].min() > 1e-3


def test_reproducible_from_seed():
    images = make_images()
    a, b, c = (
        make_layer(seed=seed)(images, training=True) for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-3


def test_training_and_sampling_draw_alike():
    images = make_images()
    outputs = [
        make_layer(seed=7)(images, **kwargs)
        for kwargs in ({"training": True}, {"sampling": True})
    ]
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("fill_mode", SCIPY_MODES)
def test_channels_first_equals_channels_last(fill_mode):
    images = make_images()
    last = make_layer(seed=7, fill_mode=fill_mode)
    first = make_layer(
        seed=7, fill_mode=fill_mode, data_format="channels_first"
    )
    expected = ops.transpose(last(images, sampling=True), (0, 3, 1, 2))
    outputs = first(np.transpose(images, (0, 3, 1, 2)), sampling=True)
    np.testing.assert_allclose(outputs, expected, atol=1e-6)
    assert first.compute_output_shape((None, 3, 9, 7)) == (None, 3, 9, 7)


def test_widths_are_in_human_units():
    layer = make_layer()
    layer.build((None, 9, 7, 3))
    assert layer.widths == pytest.approx(STARTS, rel=1e-5)
    assign_human_value(layer.rho["rotation"], 20.0)
    assert layer.widths["rotation"] == pytest.approx(20.0)
    assert all(kcr.is_rho(v) for v in layer.weights)
    assert layer.trainable_variables == []


@pytest.mark.parametrize(
    "policy", ["float32", "float64", "mixed_float16", "mixed_bfloat16"]
)
@pytest.mark.parametrize("input_dtype", ["float32", "uint8"])
@pytest.mark.parametrize("training", [False, True])
def test_dtype_policies(policy, input_dtype, training):
    images = (np.abs(make_images()) * 60).clip(0, 255).astype(input_dtype)
    layer = make_layer(dtype=policy, seed=5)
    outputs = layer(images, training=training)
    assert keras.backend.standardize_dtype(outputs.dtype) == layer.compute_dtype
    assert {v.dtype for v in layer.weights} == {"float32"}
    reference = make_layer(dtype="float32", seed=5)
    expected = reference(images.astype("float32"), training=training)
    # float64 draws other numbers.
    if policy != "float64":
        np.testing.assert_allclose(
            ops.cast(outputs, "float32"), expected, rtol=2e-2, atol=1.5
        )
    assert np.isfinite(ops.cast(outputs, "float32")).all()


def test_half_precision_gradients_are_accurate():
    images = scipy.ndimage.gaussian_filter(
        make_images((16, 32, 32, 3)), [0, 2, 2, 0]
    )
    found = []
    for policy in ("float32", "mixed_float16"):
        layer = make_layer(dtype=policy, seed=5)
        layer.build(images.shape)
        state = layer.seed_generator.state.numpy()
        weights = ops.cast(images[::-1], layer.compute_dtype)
        found.append(gradients(layer, images, state, weights, sampling=True))
    for name in NAMES:
        exact, half = (float(f[name]) for f in found)
        assert half == pytest.approx(exact, rel=2e-2, abs=0.2), name


def test_config_round_trip():
    layer = kcr.layers.LearnedAugmentation(
        translation=2.0,
        zoom=None,
        fill_mode="wrap",
        data_format="channels_first",
        seed=3,
        name="augment",
    )
    config = layer.get_config()
    again = kcr.layers.LearnedAugmentation.from_config(config)
    assert again.get_config() == config
    assert config["zoom"] is None
    assert config["rotation"] == 3.0
    assert config["data_format"] == "channels_first"


def test_saving(tmp_path):
    inputs = keras.Input((8, 8, 3))
    outputs = make_layer(name="augment")(inputs)
    model = keras.Model(inputs, keras.layers.Flatten()(outputs))
    assign_human_value(model.get_layer("augment").rho["shear"], 12.0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    layer = loaded.get_layer("augment")
    assert layer.widths == pytest.approx({**STARTS, "shear": 12.0}, rel=1e-5)
    assert all(kcr.is_rho(v) for v in layer.weights)


@pytest.mark.parametrize("shape", [(None, None, 3), (9, 7, 3), (9, None, 1)])
@pytest.mark.parametrize("fill_mode", SCIPY_MODES)
def test_functional_model_with_dynamic_shapes(shape, fill_mode):
    inputs = keras.Input(shape)
    outputs = make_layer(seed=2, fill_mode=fill_mode)(inputs)
    assert outputs.shape == (None, *shape)
    model = keras.Model(inputs, outputs)
    images = make_images((5, 9, 7, shape[-1]))
    expected = make_layer(seed=2, fill_mode=fill_mode)(images, training=True)

    @tf.function(input_signature=[tf.TensorSpec((None, *shape), "float32")])
    def run(x):
        return model(x, training=True)

    np.testing.assert_allclose(run(images), expected, atol=1e-5)


def test_jit_gives_the_same_numbers_and_gradients(monkeypatch):
    images = make_images()
    layer = make_layer(seed=2)
    layer.build(images.shape)
    state = layer.seed_generator.state.numpy()
    # XLA has a random generator of its own.
    u = np.random.default_rng(0).uniform(size=(7, 4)).astype("float32")
    monkeypatch.setattr(kcr.random, "uniform", lambda *_, **__: u)

    def run(x):
        return gradients(layer, x, state, images, sampling=True)

    expected = run(images)
    for jit_compile in (False, True):
        found = tf.function(run, jit_compile=jit_compile)(images)
        for name in NAMES:
            np.testing.assert_allclose(
                found[name], expected[name], rtol=1e-3, atol=1e-3
            )


@pytest.mark.parametrize(
    "how",
    [
        {},
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
        {"run_eagerly": True},
    ],
)
def test_fit_in_plain_keras(how):
    model = keras.Sequential(
        [make_layer(), keras.layers.Flatten(), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse", **{"jit_compile": False, **how})
    images = make_images((8, 6, 6, 2))
    model.fit(images, np.zeros((8, 1)), batch_size=3, verbose=0)
    assert model.layers[0].widths == pytest.approx(STARTS, rel=1e-5)
    predicted = model.predict(images, verbose=0)
    assert np.isfinite(predicted).all()


@pytest.mark.parametrize(
    "jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_every_width_learns_in_a_cross_reg_model(jit_compile):
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Flatten()(make_layer(name="augment")(inputs))
    model = kcr.CrossRegModel(inputs, keras.layers.Dense(1)(x))
    model.compile("adam", "mse", reg_freq=1, jit_compile=jit_compile)
    data = make_images((8, 6, 6, 2)), np.zeros((8, 1))
    model.fit(*data, reg_data=data, batch_size=4, verbose=0)
    for name, width in model.get_layer("augment").widths.items():
        assert abs(width / STARTS[name] - 1) > 1e-5, name


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"data_format": "channels_last"}, (2, 8, 6, 3)),
        (
            {
                "rotation": None,
                "brightness": None,
                "fill_mode": "constant",
                "data_format": "channels_first",
                "seed": 4,
            },
            (2, 1, 6, 5),
        ),
    ],
)
def test_keeps_the_contract(arguments, shape):
    kcr.testing.check_rho_layer(
        kcr.layers.LearnedAugmentation, arguments, shape
    )


class KerasContractTest(TestCase):
    # Keras's own test shuffles a generator and fits a model without theta.
    @pytest.mark.filterwarnings("ignore:`shuffle=True`:UserWarning")
    @pytest.mark.filterwarnings("ignore:The model does not:UserWarning")
    def test_layer(self):
        for kwargs in ({}, {"translation": None, "zoom": None}):
            self.run_layer_test(
                kcr.layers.LearnedAugmentation,
                init_kwargs={"data_format": "channels_last", **kwargs},
                input_shape=(2, 8, 6, 3),
                expected_output_shape=(2, 8, 6, 3),
                expected_num_trainable_weights=0,
                expected_num_non_trainable_weights=6 - len(kwargs),
                expected_num_seed_generators=1,
                supports_masking=True,
            )


# Errors.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "wide"])
def test_refuses_a_wrong_width(name, value):
    message = f"`{name}` must be a finite .*Received: {name}={value}$"
    with pytest.raises(ValueError, match=message):
        make_layer(**{name: value})


def test_refuses_no_width_at_all():
    with pytest.raises(ValueError, match=r"At least one.*contrast=None$"):
        kcr.layers.LearnedAugmentation(**ONLY)


def test_refuses_an_unknown_fill_mode():
    with pytest.raises(ValueError, match="Received: fill_mode=mirror$"):
        make_layer(fill_mode="mirror")


def test_refuses_an_unknown_data_format():
    with pytest.raises(ValueError, match="Received: data_format=nchw$"):
        make_layer(data_format="nchw")


@pytest.mark.parametrize("shape", [(8, 8, 3), (2, 2, 8, 8, 3), (8, 3)])
def test_refuses_other_ranks(shape):
    with pytest.raises(ValueError, match=r"of rank 4.*input_shape=\("):
        make_layer()(np.zeros(shape, "float32"))


def test_follows_the_global_data_format():
    expected = keras.config.image_data_format()
    assert kcr.layers.LearnedAugmentation().data_format == expected


# Speed.


def warp_with_map_coordinates(images, matrix):
    """The same warp as one would write it with Keras's own operation."""
    batch, height, width, channels = images.shape
    y = np.arange(height, dtype="float32") - (height - 1) / 2
    x = np.arange(width, dtype="float32") - (width - 1) / 2
    grid = np.stack(
        [np.repeat(y, width), np.tile(x, height), np.ones(height * width)]
    ).astype("float32")
    source = ops.reshape(ops.matmul(matrix, grid), (batch, 2, height, width))
    shape = (batch, height, width, channels)
    coordinates = ops.stack(
        [
            ops.broadcast_to(axis, shape)
            for axis in (
                np.arange(batch, dtype="float32").reshape(-1, 1, 1, 1),
                source[:, 0, :, :, None] + (height - 1) / 2,
                source[:, 1, :, :, None] + (width - 1) / 2,
                np.arange(channels, dtype="float32"),
            )
        ]
    )
    return ops.image.map_coordinates(images, coordinates, order=1)


def median_seconds(functions, argument, repeats=9):
    """Median time of each, in turns, so that a busy machine hits all."""
    for function in functions:
        function(argument)
    seconds = []
    for _ in range(repeats):
        for function in functions:
            start = time.perf_counter()
            np.asarray(function(argument))
            seconds.append(time.perf_counter() - start)
    return np.median(np.reshape(seconds, (repeats, -1)), axis=0)


def test_five_times_faster_than_map_coordinates():
    images = tf.convert_to_tensor(make_images((128, 32, 32, 3)))
    matrix = tf.convert_to_tensor(make_matrix(128, "float32", spread=0.1))

    def ours(matrix):
        return affine_warp(images, matrix, "constant")

    def theirs(matrix):
        return warp_with_map_coordinates(images, matrix)

    np.testing.assert_allclose(ours(matrix), theirs(matrix), atol=1e-3)

    def with_gradient(warp):
        def run(matrix):
            with tf.GradientTape() as tape:
                tape.watch(matrix)
                loss = ops.sum(ops.square(warp(matrix)))
            return tape.gradient(loss, matrix)

        return run

    functions = [ours, theirs, with_gradient(ours), with_gradient(theirs)]
    seconds = median_seconds([tf.function(f) for f in functions], matrix)
    assert seconds[1] > 5 * seconds[0]
    assert seconds[3] > 5 * seconds[2]


def test_training_reads_no_more_than_four_pixels_each():
    # What the speed rests on: four gathers, and no scatter unless asked.
    images = make_images((2, 8, 8, 3))
    layer = make_layer()
    layer.build(images.shape)
    state = layer.seed_generator.state.numpy()

    @tf.function
    def run(x):
        return gradients(layer, x, state, 1.0, sampling=True)

    graph = run.get_concrete_function(tf.TensorSpec(images.shape)).graph
    kinds = [operation.type for operation in graph.get_operations()]
    assert kinds.count("GatherV2") == 4
    assert not [k for k in kinds if "Scatter" in k or "SegmentSum" in k]


def test_module_lists_every_transform():
    assert list(learned_augmentation.UNITS) == NAMES
