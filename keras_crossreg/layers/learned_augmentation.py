"""Random image transforms whose widths are learned."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_crossreg import random
from keras_crossreg.layers.rho_layer import RhoLayer
from keras_crossreg.rho import check_start
from keras_crossreg.rho import human_value

# The transforms, in the order of the constructor, and the units of their
# widths.
UNITS = {
    "translation": "pixels",
    "rotation": "degrees",
    "shear": "degrees",
    "zoom": "relative",
    "brightness": "image std",
    "contrast": "relative",
}
GEOMETRIC = {"translation", "rotation", "shear", "zoom"}
FILL_MODES = ("reflect", "wrap", "constant", "nearest")
DATA_FORMATS = ("channels_last", "channels_first")


@keras.saving.register_keras_serializable(package="keras_crossreg")
class LearnedAugmentation(RhoLayer):
    """Transforms images at random, by amounts learned on `reg_data`.

    Each example draws `amount = width * u`, `u ~ Uniform(-1, 1)`, for every
    transform: the gradient of the widths flows through the interpolation. The
    first four make one affine map about the centre of the image,
    `zoom * rotation @ shear @ position + translation`, interpolated linearly.
    With `mean` and `std` over all pixels and channels of the input image,

    `outputs = mean + exp(contrast) * (warped - mean) + brightness * std`.

    Nothing is clipped to the input's range. A width cannot become negative;
    one that starts at `0` learns very slowly at first.

    Args:
        translation: Float, first width of the shift in pixels, drawn for each
            axis. As all widths, not negative; `None` leaves it out. Defaults
            to `1.0`.
        rotation: Float or `None`, in degrees. Defaults to `3.0`.
        shear: Float or `None`, along the rows, in degrees. Defaults to `3.0`.
        zoom: Float or `None`, relative: the scale is `exp(zoom * u)`, so that
            `0.05` zooms in or out by up to 5 %. Defaults to `0.05`.
        brightness: Float or `None`, in standard deviations of each image (the
            gradient does not pass them), so that it means the same for inputs
            in `[0, 1]`, in `[0, 255]` and standardized. Defaults to `0.1`.
        contrast: Float or `None`, relative, as `zoom`. Defaults to `0.1`.
        fill_mode: What lies outside the image, as in
            `keras.layers.RandomTranslation`. `"reflect"`:
            `(d c b a | a b c d | d c b a)`; `"wrap"`:
            `(a b c d | a b c d | a b c d)`; `"constant"`: `0`, before
            brightness and contrast; `"nearest"`:
            `(a a a a | a b c d | d d d d)`. Defaults to `"reflect"`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.
        seed: Integer, optional random seed.
        **kwargs: Base layer keyword arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Images, of integer or floating point dtype.
        training: Boolean. If `True`, transforms every image once.
        sampling: Boolean, set by `CrossRegModel`. If `True`, transforms every
            image once, and lets the gradient of the widths through.

    Input shape:
        `(batch, height, width, channels)`, or
        `(batch, channels, height, width)` with `"channels_first"`.

    Output shape:
        Same as the input shape, in the layer's compute dtype.

    Raises:
        ValueError: If a width is negative or not finite, if all are `None`,
            if `fill_mode` or `data_format` is unknown, or if the inputs are
            not of rank 4.

    Example:

    >>> inputs = keras.Input((32, 32, 3))
    >>> x = kcr.layers.LearnedAugmentation(zoom=None)(inputs)
    >>> x = keras.layers.Conv2D(64, 3)(x)

    Reference:

    - [Brito, 2025](https://arxiv.org/abs/2506.19755): learned augmentation
      on SVHN. Units, colour transforms and start values are ours.
    - [Jaderberg et al., 2015](https://arxiv.org/abs/1506.02025), section 3.3:
      gradients of bilinear sampling with respect to the coordinates.
    """

    def __init__(
        self,
        translation: float | None = 1.0,
        rotation: float | None = 3.0,
        shear: float | None = 3.0,
        zoom: float | None = 0.05,
        brightness: float | None = 0.1,
        contrast: float | None = 0.1,
        fill_mode: str = "reflect",
        data_format: str | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        starts = (translation, rotation, shear, zoom, brightness, contrast)
        self.starts = {
            name: None if start is None else check_start(name, start)
            for name, start in zip(UNITS, starts, strict=True)
        }
        if all(start is None for start in starts):
            raise ValueError(
                "At least one width must not be `None`. Received: "
                + ", ".join(f"{name}=None" for name in UNITS)
            )
        if fill_mode not in FILL_MODES:
            raise ValueError(
                f"`fill_mode` must be one of {FILL_MODES}. "
                f"Received: fill_mode={fill_mode}"
            )
        self.fill_mode = fill_mode
        self.data_format = data_format or keras.config.image_data_format()
        if self.data_format not in DATA_FORMATS:
            raise ValueError(
                f"`data_format` must be one of {DATA_FORMATS}. "
                f"Received: data_format={data_format}"
            )
        self.seed = seed
        self.seed_generator = random.SeedGenerator(seed)

    def build(self, input_shape: Any) -> None:
        if len(input_shape) != 4:
            raise ValueError(
                "`LearnedAugmentation` expects a batch of images, of rank 4. "
                f"Received: input_shape={input_shape}"
            )
        self.rho = {
            name: self.add_rho(
                name, start=start, meaning=f"{name} ({UNITS[name]})"
            )
            for name, start in self.starts.items()
            if start is not None
        }

    @property
    def widths(self) -> dict[str, float]:
        """The widths as learned, by name, in the units of the constructor."""
        return {name: human_value(rho) for name, rho in self.rho.items()}

    def call(
        self, inputs: Any, training: bool = False, sampling: bool | None = None
    ) -> Any:
        images = ops.cast(inputs, self.compute_dtype)
        if not (training or sampling):
            return images
        if self.data_format == "channels_first":
            images = ops.transpose(images, (0, 2, 3, 1))
        amounts = self._draw(ops.shape(images)[0], sampling)
        outputs = images
        if not GEOMETRIC.isdisjoint(self.rho):
            outputs = affine_warp(
                images, affine_matrix(amounts), self.fill_mode
            )
        if not GEOMETRIC.issuperset(self.rho):
            outputs = change_colors(outputs, images, amounts)
        outputs = ops.cast(outputs, self.compute_dtype)
        if self.data_format == "channels_first":
            outputs = ops.transpose(outputs, (0, 3, 1, 2))
        return outputs

    def _draw(self, batch_size: Any, sampling: bool | None) -> dict[str, Any]:
        """`width * u` for every transform; zeros for those left out.

        Every amount is of shape `(batch,)`, the translation `(2, batch)`, in
        float32 or wider.
        """
        wide = "float64" if self.compute_dtype == "float64" else "float32"
        shape = (len(UNITS) + 1, batch_size)
        u = 2.0 * random.uniform(shape, self.seed_generator, wide) - 1.0
        draws = {name: u[i] for i, name in enumerate(UNITS)}
        draws["translation"] = ops.stack([u[0], u[-1]])
        widths = {
            name: ops.cast(self.rho_value(rho, sampling), wide)
            for name, rho in self.rho.items()
        }
        return {name: widths.get(name, 0.0) * draws[name] for name in UNITS}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **self.starts,
            "fill_mode": self.fill_mode,
            "data_format": self.data_format,
            "seed": self.seed,
        }


def affine_matrix(amounts: dict[str, Any]) -> Any:
    """`exp(zoom) * rotation @ shear`, with the translation as last column.

    Args:
        amounts: Of each transform, `(batch,)`, in units of the layer;
            `"translation"` is `(2, batch)`.

    Returns:
        Tensor `(batch, 2, 3)`: from `(y, x, 1)` to `(y, x)`.
    """
    angle = amounts["rotation"] * (math.pi / 180)
    slope = ops.tan(amounts["shear"] * (math.pi / 180))
    scale = ops.exp(amounts["zoom"])
    sin, cos = ops.sin(angle), ops.cos(angle)
    shift_y, shift_x = amounts["translation"][0], amounts["translation"][1]
    rows = [
        ops.stack([scale * (cos - sin * slope), -scale * sin, shift_y], 1),
        ops.stack([scale * (sin + cos * slope), scale * cos, shift_x], 1),
    ]
    return ops.stack(rows, axis=1)


def affine_warp(images: Any, matrix: Any, fill_mode: str = "reflect") -> Any:
    """Reads images at affinely mapped positions, interpolated linearly.

    `outputs[y, x] = images[matrix @ (y, x, 1)]`, positions in pixels from the
    centre of the image. `keras.ops.image.affine_transform` has no gradient
    with respect to the matrix, and `keras.ops.image.map_coordinates` is an
    order of magnitude slower on a CPU.

    Args:
        images: Floating point tensor `(batch, height, width, channels)`.
        matrix: Tensor `(batch, 2, 3)`, float32 or wider.
        fill_mode: As in `LearnedAugmentation`.

    Returns:
        Tensor of the shape of `images` and the dtype of `matrix`.
    """
    batch, height, width, channels = ops.shape(images)
    dtype = matrix.dtype
    y = ops.arange(height, dtype=dtype) - _center(height, dtype)
    x = ops.arange(width, dtype=dtype) - _center(width, dtype)

    # A matmul would round positions to 10 bits on recent GPUs.
    def source(row: Any, center: Any) -> Any:
        by_y = row[:, :1] * y + row[:, 2:] + center
        by_x = row[:, 1:2] * x
        return by_y[:, :, None] + by_x[:, None, :]

    source_y = source(matrix[:, 0], _center(height, dtype))
    source_x = source(matrix[:, 1], _center(width, dtype))
    top, bottom, down = _neighbors(source_y, height, fill_mode)
    left, right, across = _neighbors(source_x, width, fill_mode)

    # All pixels of the batch are one list, so that a corner is one gather.
    pixels = ops.reshape(images, (-1, channels))
    first = ops.reshape(ops.arange(batch, dtype="int32"), (-1, 1, 1)) * height
    top, bottom = (first + top) * width, (first + bottom) * width

    def corner(index: Any) -> Any:
        return ops.cast(ops.take(pixels, index, axis=0), dtype)

    top_left, bottom_left = corner(top + left), corner(bottom + left)
    upper = top_left + across * (corner(top + right) - top_left)
    lower = bottom_left + across * (corner(bottom + right) - bottom_left)
    outputs = upper + down * (lower - upper)
    if fill_mode == "constant":
        covered = _cover(source_y, height) * _cover(source_x, width)
        outputs = outputs * covered[..., None]
    return outputs


def _center(size: Any, dtype: str) -> Any:
    return (ops.cast(size, dtype) - 1) / 2


def _neighbors(
    position: Any, size: Any, fill_mode: str
) -> tuple[Any, Any, Any]:
    """The pixels before and after, and how far it is from one to the other.

    The pixels carry no gradient; the distance, with a last axis for the
    channels, has that of `position`.
    """
    floor = ops.floor(position)
    before = ops.cast(floor, "int32")
    return (
        _inside(before, size, fill_mode),
        _inside(before + 1, size, fill_mode),
        ops.expand_dims(position - ops.stop_gradient(floor), -1),
    )


def _inside(index: Any, size: Any, fill_mode: str) -> Any:
    """The pixel of the image that stands at an index beyond its edges."""
    if fill_mode == "wrap":
        return ops.mod(index, size)
    if fill_mode == "reflect":
        index = ops.mod(index, 2 * size)
        return ops.minimum(index, 2 * size - 1 - index)
    return ops.clip(index, 0, size - 1)


def _cover(position: Any, size: Any) -> Any:
    """1 on the image, 0 from one pixel beyond it, linear in between."""
    before = position + 1
    behind = ops.cast(size, position.dtype) - position
    # `keras.ops.minimum` of float64 is float32 on PyTorch.
    return ops.clip(ops.where(before < behind, before, behind), 0, 1)


def change_colors(outputs: Any, images: Any, amounts: dict[str, Any]) -> Any:
    """`mean + exp(contrast) * (outputs - mean) + brightness * std`.

    `mean` and `std` are those of each of the `images`, before they were
    warped; `std` without a gradient, which a constant image does not have.
    """
    images = ops.cast(images, amounts["contrast"].dtype)
    mean = ops.mean(images, axis=(1, 2, 3))
    std = ops.stop_gradient(ops.std(images, axis=(1, 2, 3)))
    gain = ops.exp(amounts["contrast"])
    offset = mean * (1 - gain) + amounts["brightness"] * std
    per_image = (-1, 1, 1, 1)
    outputs = ops.cast(outputs, gain.dtype)
    return outputs * ops.reshape(gain, per_image) + ops.reshape(
        offset, per_image
    )
