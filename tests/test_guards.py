"""Warnings about regularization sets that will not do what they should."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model

import keras_crossreg as kcr

X, Y = make_data()


def test_the_validation_set_as_regularization_set():
    data = make_data(12, seed=1)
    model = compile_model(make_model())
    with pytest.warns(UserWarning, match="also the `validation_data`"):
        fit(model, reg_data=data, validation_data=data)


def test_the_same_dataset_object():
    data = tf.data.Dataset.from_tensor_slices(make_data(12, seed=1)).batch(12)
    model = compile_model(make_model())
    with pytest.warns(UserWarning, match="also the `validation_data`"):
        fit(model, reg_data=data, validation_data=data)


def test_training_rows_in_the_regularization_set():
    x, y = make_data(12, seed=1)
    reg_data = np.concatenate([x, X[3:7]]), np.concatenate([y, Y[3:7]])
    model = compile_model(make_model())
    with pytest.warns(UserWarning, match="^4 of 16 regularization examples"):
        fit(model, reg_data=reg_data)


def test_the_same_inputs_with_other_targets_are_other_examples():
    model = compile_model(make_model())
    fit(model, reg_data=(X[:12], 1 - Y[:12]))


def test_more_rho_than_a_tenth_of_the_examples():
    model = kcr.wrap(make_model(rho=False))
    inputs = model.inputs[0]
    noise = kcr.layers.GaussianNoiseScale(axis=-1)
    model = compile_model(kcr.CrossRegModel(inputs, model(noise(inputs))))
    with pytest.warns(UserWarning, match="^3 rho learn from 29 reg"):
        fit(model, reg_data=make_data(29, seed=1))
    fit(model, reg_data=make_data(30, seed=1))


def test_frozen_rho_need_no_warning():
    model = compile_model(make_model())
    model.freeze_rho()
    fit(model, reg_data=(X[:3], Y[:3]))


def test_a_run_without_a_rho_step():
    model = compile_model(make_model(), reg_freq=4)
    with pytest.warns(UserWarning, match="comes after 4 .* there were 3"):
        fit(model)
    # The fourth step.
    fit(model)
