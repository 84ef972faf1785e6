"""Random image layers of Keras as `LearnedAugmentation`."""

from __future__ import annotations

import math
from typing import Any

import keras

from keras_crossreg.layers.learned_augmentation import FILL_MODES
from keras_crossreg.layers.learned_augmentation import UNITS
from keras_crossreg.layers.learned_augmentation import LearnedAugmentation
from keras_crossreg.rewriting.learned_forms import ZERO
from keras_crossreg.rewriting.learned_forms import Form
from keras_crossreg.rewriting.learned_forms import Learned
from keras_crossreg.rewriting.learned_forms import Left
from keras_crossreg.rewriting.learned_forms import same_place

_NO_STRENGTH = {
    name: "it has no strength to learn"
    for name in ("RandomFlip", "RandomGrayscale", "RandomInvert", "RandomCrop")
}
_NO_FORM = "there is no learned form of this transform"
_OTHERS = ("AugMix", "CutMix", "MixUp", "RandAugment")


def image_form(layer: Any, shape: Any) -> Form:
    """The form of a random image layer of Keras.

    Args:
        layer: Any layer.
        shape: The shape of its inputs; `None` where that is not known.

    Returns:
        `None` where the layer is none of these.
    """
    find = _FORMS.get(type(layer))
    if find is None:
        name = type(layer).__name__
        known = getattr(keras.layers, name, None) is type(layer)
        if known and (name.startswith("Random") or name in _OTHERS):
            return Left(_NO_STRENGTH.get(name, _NO_FORM))
        if isinstance(layer, tuple(_FORMS)):
            return Left(
                "its class is not Keras's own, and may do something else"
            )
        return None
    if shape is not None and len(shape) != 4:
        return Left("it takes single images, not batches of them")
    return _misfit(layer) or find(layer, shape)


def _misfit(layer: Any) -> Left | None:
    """What `LearnedAugmentation` cannot do of how a layer warps."""
    if getattr(layer, "interpolation", "bilinear") != "bilinear":
        return Left(
            f'its interpolation is "{layer.interpolation}", which has no '
            'gradient: ours is "bilinear"'
        )
    mode = getattr(layer, "fill_mode", "reflect")
    if mode not in FILL_MODES:
        return Left(f'its fill mode "{mode}" is none of ours')
    if mode == "constant" and layer.fill_value != 0:
        return Left(f"it fills with {layer.fill_value}: ours fills with 0")
    return None


def _asymmetric(bounds: Any) -> bool:
    low, high = bounds
    return not math.isclose(low, -high, abs_tol=1e-9)


def _uneven(bounds: Any) -> Left:
    low, high = bounds
    return Left(
        f"it draws from {low:.4g} to {high:.4g}: ours draws evenly around "
        "no change"
    )


def _learned(layer: Any, transform: str, width: float, note: str = "") -> Form:
    if width == 0:
        return Left(ZERO)
    # All transforms but this one are left out.
    widths: dict[str, Any] = dict.fromkeys(UNITS)
    widths[transform] = width
    learned = LearnedAugmentation(
        **widths,
        fill_mode=getattr(layer, "fill_mode", "reflect"),
        data_format=layer.data_format,
        seed=layer.seed,
        **same_place(layer),
    )
    start = f"{transform} {width:.4g} ({UNITS[transform]})"
    return Learned(learned, start, note)


def _translation(layer: Any, shape: Any) -> Form:
    # Keras counts in parts of the size, and we count in pixels.
    bounds = {
        "height": (layer.height_lower, layer.height_upper),
        "width": (layer.width_lower, layer.width_upper),
    }
    for given in bounds.values():
        if _asymmetric(given):
            return _uneven(given)
    sizes = None if shape is None else tuple(shape[1:3])
    if shape is not None and layer.data_format == "channels_first":
        sizes = tuple(shape[2:4])
    if sizes is None or None in sizes:
        return Left("the size of its images, in which it counts, is not known")
    down, across = (
        given[1] * size
        for given, size in zip(bounds.values(), sizes, strict=True)
    )
    if not math.isclose(down, across, rel_tol=1e-6):
        return Left(
            f"it shifts by up to {down:.4g} pixels down and {across:.4g} "
            "across: ours has one width for both"
        )
    return _learned(layer, "translation", down)


def _rotation(layer: Any, shape: Any) -> Form:
    if _asymmetric(layer.factor):
        return _uneven(layer.factor)
    # Keras counts in parts of a full turn.
    return _learned(layer, "rotation", 360.0 * layer.factor[1])


def _shear(layer: Any, shape: Any) -> Form:
    if any(layer.y_factor):
        return Left("it shears along the columns: ours shears along the rows")
    low, high = layer.x_factor
    # Keras draws a sign too: only from 0 it is even.
    if low > 0:
        return _uneven((low, high))
    degrees = math.degrees(math.atan(high))
    note = "about the centre of the image; Keras shears about its corner"
    return _learned(layer, "shear", degrees, note)


def _zoom(layer: Any, shape: Any) -> Form:
    if layer.width_factor is not None:
        return Left("it zooms height and width apart: ours zooms them alike")
    bounds = (layer.height_lower, layer.height_upper)
    if _asymmetric(bounds):
        return _uneven(bounds)
    width = bounds[1]
    note = (
        f"scales from {math.exp(-width):.3g} to {math.exp(width):.3g}; Keras "
        f"from {1 - width:.3g} to {1 + width:.3g}"
    )
    return _learned(layer, "zoom", width, note)


def _brightness(layer: Any, shape: Any) -> Form:
    if _asymmetric(layer.factor):
        return _uneven(layer.factor)
    low, high = layer.value_range
    # Keras counts in parts of the range, and we count in deviations of the
    # image: values that are spread evenly have one of 1 / sqrt(12) of it.
    width = math.sqrt(12) * layer.factor[1]
    note = (
        f"as Keras's for images whose values fill {low} to {high} evenly; "
        "nothing is clipped"
    )
    return _learned(layer, "brightness", width, note)


def _contrast(layer: Any, shape: Any) -> Form:
    low, high = layer.factor
    # Of a single number Keras makes 0 for the lower bound.
    if low not in (0, high):
        return _uneven((1 - low, 1 + high))
    note = (
        f"gains from {math.exp(-high):.3g} to {math.exp(high):.3g}; Keras "
        f"from {1 - low:.3g} to {1 + high:.3g}, clipped, about the mean of "
        "each channel"
    )
    return _learned(layer, "contrast", high, note)


_FORMS = {
    keras.layers.RandomTranslation: _translation,
    keras.layers.RandomRotation: _rotation,
    keras.layers.RandomShear: _shear,
    keras.layers.RandomZoom: _zoom,
    keras.layers.RandomBrightness: _brightness,
    keras.layers.RandomContrast: _contrast,
}
