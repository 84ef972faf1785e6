"""Every public layer keeps our contract of rho layers, and Keras's own."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras.src.testing import TestCase

import keras_crossreg as kcr
from keras_crossreg.layers import GaussianNoiseScale
from keras_crossreg.layers import LearnedAugmentation
from keras_crossreg.layers import LearnedDropout
from keras_crossreg.layers import LearnedGaussianDropout
from keras_crossreg.layers import NormMagnitude
from keras_crossreg.layers import Temperature


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer in one configuration, and what Keras's test must count.

    The arguments come from a function, as each test wraps a layer of its own.
    The inputs are a shape, or an array; the outputs are of the same shape
    where none is given.
    """

    layer: type
    arguments: Callable[[], dict[str, Any]]
    inputs: Any
    outputs: tuple[int, ...] | None = None
    theta: int = 0
    rho: int = 1
    seeds: int = 1
    masks: bool = True

    @property
    def given(self):
        """The inputs, as both contracts name them."""
        is_shape = isinstance(self.inputs, tuple)
        return {"input_shape" if is_shape else "input_data": self.inputs}


def noise(inputs, **arguments):
    return Case(GaussianNoiseScale, lambda: arguments, inputs)


def dropout(inputs, **arguments):
    return Case(LearnedDropout, lambda: arguments, inputs)


def augmentation(inputs, rho, **arguments):
    return Case(LearnedAugmentation, lambda: arguments, inputs, rho=rho)


def norm(cls, inputs, outputs, axis=None, theta=2, masks=False, **arguments):
    return Case(
        NormMagnitude,
        lambda: {"layer": cls(**arguments), "axis": axis},
        inputs,
        outputs,
        theta,
        seeds=0,
        masks=masks,
    )


IDS = np.array([[1, 2, 0], [4, 0, 0]])

# Lists are what tuples become in a file.
CASES = {
    "noise": noise((4, 3)),
    "relative noise": noise(
        (2, 3, 4, 2), initial_scale=0.2, axis=[1, -1], relative=True, seed=3
    ),
    "dropout": dropout((4, 5, 3), initial_rate=0.2, axis=-1, seed=3),
    "dropout together": dropout(
        (4, 5, 3), axis=[1, 2], noise_shape=[None, 5, 1]
    ),
    "Gaussian dropout": Case(
        LearnedGaussianDropout,
        lambda: {"initial_rate": 0.3, "axis": [1, -1], "seed": 3},
        (4, 5, 3),
    ),
    "augmentation": augmentation(
        (2, 8, 6, 3), rho=6, data_format="channels_last"
    ),
    "some augmentation": augmentation(
        (2, 1, 6, 5),
        rho=4,
        rotation=None,
        brightness=None,
        fill_mode="constant",
        data_format="channels_first",
        seed=4,
    ),
    "temperature": Case(
        Temperature, lambda: {"initial_temperature": 2.0}, (4, 5, 3), seeds=0
    ),
    "norm": norm(keras.layers.Dense, (2, 5, 3), (2, 5, 4), units=4, masks=True),
    "norm per unit": norm(
        keras.layers.Dense, (4, 3), (4, 4), axis=-1, units=4, masks=True
    ),
    "norm per kernel": norm(
        keras.layers.Conv2D,
        (2, 6, 7, 3),
        (2, 4, 5, 4),
        axis=[-2, -1],
        filters=4,
        kernel_size=3,
    ),
    "norm per token": norm(
        keras.layers.Embedding,
        IDS,
        (2, 3, 3),
        axis=0,
        theta=1,
        masks=True,
        input_dim=5,
        output_dim=3,
        mask_zero=True,
    ),
}

# Kernels of other shapes are nothing new to our own contract.
MORE_KERNELS = {
    "norm of EinsumDense": norm(
        keras.layers.EinsumDense,
        (2, 5, 3),
        (2, None, 4, 2),
        axis=(1, 2),
        theta=1,
        equation="abc,cde->abde",
        output_shape=(None, 4, 2),
    ),
    "norm of Conv1D": norm(
        keras.layers.Conv1D,
        (2, 8, 3),
        (2, 6, 4),
        axis=(0, -1),
        filters=4,
        kernel_size=3,
    ),
    "norm of Conv3D": norm(
        keras.layers.Conv3D,
        (2, 4, 4, 4, 3),
        (2, 3, 3, 3, 4),
        axis=-1,
        filters=4,
        kernel_size=2,
    ),
    "norm of Conv2DTranspose": norm(
        keras.layers.Conv2DTranspose,
        (2, 5, 4, 3),
        (2, 11, 9, 4),
        axis=-2,
        filters=4,
        kernel_size=3,
        strides=2,
    ),
    "norm of DepthwiseConv2D": norm(
        keras.layers.DepthwiseConv2D,
        (2, 5, 4, 3),
        (2, 3, 2, 6),
        axis=(-2, -1),
        kernel_size=3,
        depth_multiplier=2,
    ),
}


def cases(of, slow=()):
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(
                case, id=name, marks=pytest.mark.slow if name in slow else ()
            )
            for name, case in of.items()
        ],
    )


def test_no_public_layer_is_left_out():
    public = {getattr(kcr.layers, name) for name in kcr.layers.__all__}
    checked = {case.layer for case in CASES.values()}
    assert checked == public - {kcr.layers.RhoLayer}


@cases(
    CASES,
    slow=[
        "dropout together",
        "some augmentation",
        "norm per unit",
        "norm per kernel",
    ],
)
def test_keeps_the_contract_of_rho_layers(case):
    kcr.testing.check_rho_layer(
        case.layer,
        case.arguments(),
        supports_masking=case.masks,
        **case.given,
    )


# Keras's test shuffles a generator, and fits a model that may have no theta.
@pytest.mark.filterwarnings("ignore:`shuffle=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:The model does not:UserWarning")
@cases({**CASES, **MORE_KERNELS})
def test_keeps_the_contract_of_keras_layers(case):
    TestCase().run_layer_test(
        case.layer,
        init_kwargs=case.arguments(),
        expected_output_shape=case.outputs or case.inputs,
        expected_num_trainable_weights=case.theta,
        expected_num_non_trainable_weights=case.rho,
        expected_num_seed_generators=case.seeds,
        expected_num_losses=0,
        supports_masking=case.masks,
        # A `NormMagnitude` is of the dtype of the layer in it.
        run_mixed_precision_check=case.layer is not NormMagnitude,
        **case.given,
    )
