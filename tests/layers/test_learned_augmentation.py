import keras
import numpy as np
import pytest
import scipy.ndimage
from helpers import gradients
from helpers import values
from keras import Variable
from keras import ops

import keras_crossreg as kcr
from keras_crossreg.layers import learned_augmentation
from keras_crossreg.layers.learned_augmentation import affine_matrix
from keras_crossreg.layers.learned_augmentation import affine_warp

GEOMETRIC = ["translation", "rotation", "shear", "zoom"]
NAMES = [*GEOMETRIC, "brightness", "contrast"]
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


@pytest.mark.float64
@pytest.mark.parametrize("fill_mode", SCIPY_MODES)
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_warp_equals_scipy(fill_mode, spread):
    images = make_images(dtype="float64")
    matrix = make_matrix(len(images), spread=spread)
    # These positions are far outside, several periods away.
    matrix[:, :, 2] *= 5 * spread
    outputs = ops.convert_to_numpy(
        affine_warp(*map(ops.convert_to_tensor, (images, matrix)), fill_mode)
    )
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
    outputs = affine_warp(
        *map(ops.convert_to_tensor, (images, matrix)), fill_mode
    )
    np.testing.assert_allclose(outputs, expected, atol=1e-4)


@pytest.mark.parametrize("fill_mode", SCIPY_MODES)
def test_warp_by_identity_is_exact(fill_mode):
    images = make_images()
    matrix = np.tile(np.eye(2, 3, dtype="float32"), (len(images), 1, 1))
    outputs = affine_warp(
        *map(ops.convert_to_tensor, (images, matrix)), fill_mode
    )
    np.testing.assert_array_equal(outputs, images)


@pytest.mark.float64
@pytest.mark.parametrize("fill_mode", SCIPY_MODES)
def test_warp_gradient_equals_finite_differences(fill_mode):
    images = ops.convert_to_tensor(make_images((2, 6, 5, 2), "float64"))
    matrix = make_matrix(2)
    weights = ops.convert_to_tensor(
        make_images(tuple(images.shape), "float64", seed=2)
    )

    def loss(matrix):
        matrix = ops.convert_to_tensor(matrix)
        return ops.sum(affine_warp(images, matrix, fill_mode) * weights)

    variable = Variable(matrix, dtype="float64")
    (gradient,) = gradients(lambda: loss(variable), [variable])
    for index in np.ndindex(*matrix.shape):
        step = np.zeros_like(matrix)
        step[index] = 1e-6
        difference = (loss(matrix + step) - loss(matrix - step)) / 2e-6
        np.testing.assert_allclose(
            gradient[index], float(difference), rtol=1e-5, atol=1e-6
        )


def test_image_gradient_goes_to_the_four_neighbors():
    images = Variable(make_images((1, 4, 4, 1)))
    matrix = ops.convert_to_tensor([[[1, 0, 0.25], [0, 1, 0.25]]], "float32")

    def pixel():
        return affine_warp(ops.convert_to_tensor(images), matrix)[0, 1, 1, 0]

    (gradient,) = gradients(pixel, [images])
    expected = np.zeros((4, 4))
    expected[1:3, 1:3] = [[0.75**2, 0.75 / 4], [0.75 / 4, 1 / 16]]
    np.testing.assert_allclose(gradient[0, ..., 0], expected, atol=1e-6)


def amounts_of(batch=1, **given):
    """An amount of every transform: zeros but for those that are given."""
    amounts = dict.fromkeys(NAMES, np.zeros(batch, "float32"))
    amounts["translation"] = np.zeros((2, batch), "float32")
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
def test_each_transform_changes_every_image(name):
    images = make_images((64, 32, 32, 3))
    layer = make_layer(**{name: STARTS[name]}, seed=3)
    outputs = ops.convert_to_numpy(layer(images, sampling=True))
    assert np.abs(outputs - images).max(axis=(1, 2, 3)).min() > 0
    assert list(layer.widths) == [name]
    assert len(layer.weights) == 1


def drawn_matrices(layer, batch=512, size=9):
    """The affine maps that the layer draws.

    It warps images whose channels are the position of a pixel from the centre,
    `(y, x)`, so that its outputs are the positions that it reads. Images that
    are linear are interpolated exactly.
    """
    axis = np.arange(size, dtype="float32") - size // 2
    images = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    images = np.repeat(images[None], batch, axis=0)
    outputs = ops.convert_to_numpy(layer(images, sampling=True))
    center = size // 2
    shift = outputs[:, center, center]
    by_y = outputs[:, center + 1, center] - shift
    by_x = outputs[:, center, center + 1] - shift
    return np.stack([by_y, by_x, shift], axis=-1)


@pytest.mark.parametrize("name", GEOMETRIC)
def test_each_map_is_drawn_within_its_width(name):
    matrix = drawn_matrices(make_layer(**{name: STARTS[name]}, seed=3))
    amount = {
        "translation": matrix[:, :, 2].T,
        "rotation": np.degrees(np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0])),
        "shear": np.degrees(np.arctan(matrix[:, 1, 0])),
        "zoom": np.log(matrix[:, 0, 0]),
    }[name]
    # No other transform is in the map.
    amounts = amounts_of(**{name: amount}, batch=len(matrix))
    np.testing.assert_allclose(matrix, affine_matrix(amounts), atol=1e-5)
    for draws in np.atleast_2d(amount):
        for sign in (-1, 1):
            largest = (sign * draws).max() / STARTS[name]
            assert 0.9 <= largest <= 1 + 1e-5
    if name == "translation":
        # We allow 5 standard errors: independent shifts fail with probability
        # 6e-7, at this seed never.
        assert abs(np.corrcoef(amount)[0, 1]) < 5 / np.sqrt(len(matrix))


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
    inputs = Variable(images)
    outputs = layer(images, sampling=True)
    np.testing.assert_allclose(outputs, images, atol=1e-6)
    (gradient,) = gradients(
        lambda: layer(ops.convert_to_tensor(inputs), sampling=True), [inputs]
    )
    assert np.isfinite(gradient).all()


def seed_state(layer):
    (state,) = values([layer.seed_generator.state])
    return state


def gradients_of_widths(layer, images, state, weights, **kwargs):
    """By name, of a weighted sum of the outputs of a draw."""
    found = gradients(
        lambda: ops.multiply(replay(layer, images, state, **kwargs), weights),
        layer.rho.values(),
    )
    return dict(zip(layer.rho, found, strict=True))


@pytest.mark.float64
@pytest.mark.parametrize("fill_mode", SCIPY_MODES)
def test_gradients_equal_finite_differences(fill_mode):
    sine = ops.sin(ops.ones((), "float64"))
    if keras.backend.standardize_dtype(sine.dtype) != "float64":
        pytest.skip("Keras computes sines of float64 in float32 on JAX")
    images = make_images((8, 12, 12, 2), "float64")
    images = scipy.ndimage.gaussian_filter(images, [0, 2, 2, 0])
    weights = scipy.ndimage.gaussian_filter(
        make_images(images.shape, "float64", seed=5), [0, 2, 2, 0]
    )
    layer = make_layer(fill_mode=fill_mode, dtype="float64", seed=11)
    layer.build(images.shape)
    state = seed_state(layer)
    found = gradients_of_widths(layer, images, state, weights, sampling=True)
    assert list(found) == NAMES
    for name, variable in layer.rho.items():
        (start,) = values([variable])
        step = 2.0**-12
        losses, widths = [], []
        for sign in (1, -1):
            variable.assign(start + sign * step)
            outputs = replay(layer, images, state, sampling=True)
            losses.append(float(ops.sum(outputs * weights)))
            # Rounded to float32, each backend in its own way.
            widths.append(layer.widths[name])
        variable.assign(start)
        # The derivative of `log(1 + exp(rho))` is the logistic function.
        slope = 1 / (1 + np.exp(-np.float64(start)))
        difference = slope * (losses[0] - losses[1]) / (widths[0] - widths[1])
        assert abs(difference) > 1e-4
        np.testing.assert_allclose(
            float(found[name]), difference, rtol=2e-3, err_msg=name
        )


def test_sampling_in_training_gives_a_gradient_to_widths():
    images = make_images()
    layer = make_layer()
    layer.build(images.shape)
    both = {"training": True, "sampling": True}
    found = gradients_of_widths(layer, images, seed_state(layer), 1.0, **both)
    assert list(found) == NAMES
    assert None not in found.values()


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
    rotation = layer.rho["rotation"]
    rotation.assign(kcr.rho.stored_value(rotation, 20.0))
    assert layer.widths["rotation"] == pytest.approx(20.0)
    assert all(kcr.is_rho(v) for v in layer.weights)
    assert layer.trainable_variables == []


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("input_dtype", ["float32", "uint8"])
@pytest.mark.parametrize("training", [False, True])
def test_half_precision_is_close_to_float32(policy, input_dtype, training):
    images = (np.abs(make_images()) * 60).clip(0, 255).astype(input_dtype)
    layer = make_layer(dtype=policy, seed=5)
    outputs = layer(images, training=training)
    assert keras.backend.standardize_dtype(outputs.dtype) == layer.compute_dtype
    reference = make_layer(dtype="float32", seed=5)
    expected = reference(images.astype("float32"), training=training)
    np.testing.assert_allclose(
        ops.cast(outputs, "float32"), expected, rtol=2e-2, atol=1.5
    )


def test_half_precision_gradients_are_accurate():
    images = scipy.ndimage.gaussian_filter(
        make_images((16, 32, 32, 3)), [0, 2, 2, 0]
    )
    found = []
    for policy in ("float32", "mixed_float16"):
        layer = make_layer(dtype=policy, seed=5)
        layer.build(images.shape)
        state = seed_state(layer)
        weights = ops.cast(images[::-1], layer.compute_dtype)
        found.append(
            gradients_of_widths(layer, images, state, weights, sampling=True)
        )
    for name in NAMES:
        exact, half = (float(f[name]) for f in found)
        assert half == pytest.approx(exact, rel=2e-2, abs=0.2), name


@pytest.mark.parametrize(
    "jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_fit_in_plain_keras(jit_compile):
    model = keras.Sequential(
        [make_layer(), keras.layers.Flatten(), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse", jit_compile=jit_compile)
    images = make_images((8, 6, 6, 2))
    model.fit(images, np.zeros((8, 1)), batch_size=3, verbose=0)
    assert model.layers[0].widths == pytest.approx(STARTS, rel=1e-5)
    predicted = model.predict(images, verbose=0)
    assert np.isfinite(predicted).all()


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


def test_module_lists_every_transform():
    assert list(learned_augmentation.UNITS) == NAMES
