"""Data as PyTorch has it."""

import keras
import numpy as np
import pytest
import torch
from helpers import Recorder
from helpers import compile_model
from helpers import make_data
from helpers import make_model
from helpers import recording_model
from helpers import values
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset
from torch.utils.data import RandomSampler
from torch.utils.data import TensorDataset

import keras_crossreg as kcr


def loader(rows, seed, batch_size=8, **arguments):
    x, y = map(torch.as_tensor, make_data(rows, seed))
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, **arguments)


FORMS = {
    "loaders": lambda rows, seed: (loader(rows, seed), None),
    "loaders that shuffle": lambda rows, seed: (
        loader(rows, seed, shuffle=True),
        None,
    ),
    "tensors": lambda rows, seed: tuple(
        map(torch.as_tensor, make_data(rows, seed))
    ),
    "NumPy": make_data,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reg_form", FORMS)
def test_every_form_with_every_other(form, reg_form):
    model = compile_model(make_model(), metrics=["accuracy"])
    x, y = FORMS[form](24, 0)
    reg = FORMS[reg_form](16, 1)
    reg = reg[0] if reg[1] is None else reg
    arguments = {} if y is None else dict(y=y, batch_size=8)
    history = model.fit(
        x,
        **arguments,
        epochs=2,
        shuffle=False,
        reg_data=reg,
        validation_data=x if y is None else (x, y),
        verbose=0,
    ).history
    assert int(model.rho_optimizer.iterations) == 6
    assert np.isfinite(history["reg_loss"]).all()
    assert "reg_accuracy" in history


def test_loaders_and_arrays_give_the_same_numbers():
    found = []
    for form in ("loaders", "tensors", "NumPy"):
        model = compile_model(make_model())
        x, y = FORMS[form](24, 0)
        arguments = {} if y is None else dict(y=y, batch_size=8)
        model.fit(
            x,
            **arguments,
            shuffle=False,
            reg_data=make_data(12, 1),
            reg_batch_size=4,
            epochs=2,
            verbose=0,
        )
        found.append(values(model.rho_variables + model.theta_variables))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("reg_split", [0.25, 0.5])
def test_tensors_are_cut(reg_split):
    model = compile_model(make_model())
    x, y = map(torch.as_tensor, make_data(48))
    model.fit(x, y, reg_split=reg_split, batch_size=4, verbose=0)
    assert int(model.optimizer.iterations) == 12 * (1 - reg_split)


def test_merged_loaders_have_all_examples_of_both():
    model, recorder = recording_model(reg_freq=1)
    assert isinstance(recorder, Recorder)
    rows = np.arange(10, dtype="float32")[:, None]
    loaders = [
        DataLoader(
            TensorDataset(*(torch.as_tensor(part) for part in (r, r))),
            batch_size=2,
        )
        for r in (rows[:6], rows[6:])
    ]
    recorder.trained.clear()
    model.fit(
        loaders[0],
        epochs=2,
        merge_epochs=1,
        reg_data=loaders[1],
        shuffle=False,
        verbose=0,
    )
    merged = recorder.trained[-5:]
    assert sum(merged, []) == list(range(10))


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(*make_data(24), strict=True)


@pytest.mark.parametrize("kind", ["iterable", "sampler"])
def test_loaders_that_cannot_be_merged(kind):
    if kind == "iterable":
        x = DataLoader(Stream(), batch_size=8)
        steps = dict(steps_per_epoch=3)
    else:

        class Own(RandomSampler):
            pass

        data = TensorDataset(*map(torch.as_tensor, make_data(24)))
        x, steps = DataLoader(data, batch_size=8, sampler=Own(data)), {}
    model = compile_model(make_model())
    with pytest.raises(ValueError, match="DataLoader` without a sampler"):
        model.fit(
            x,
            epochs=2,
            merge_epochs=1,
            reg_data=loader(12, 1),
            shuffle=False,
            verbose=0,
            **steps,
        )


def test_float64_tensors_are_cast_as_by_keras():
    model = compile_model(make_model())
    x, y = make_data(24)
    reg_x, reg_y = make_data(12, 1)
    model.fit(
        torch.as_tensor(x.astype("float64")),
        torch.as_tensor(y),
        reg_data=(torch.as_tensor(reg_x.astype("float64")), reg_y),
        verbose=0,
    )
    assert {v.dtype for v in model.weights} == {"float32"}


def test_a_wrapped_module_of_torch_learns_beside_rho():
    inputs = keras.Input((3,))
    module = keras.layers.TorchModuleWrapper(
        torch.nn.Sequential(
            torch.nn.Linear(3, 4),
            torch.nn.BatchNorm1d(4),
            torch.nn.Dropout(0.5),
        ),
        output_shape=(None, 4),
    )
    x = kcr.layers.GaussianNoiseScale(0.5)(module(inputs))
    model = kcr.CrossRegModel(
        inputs, keras.layers.Dense(2, activation="softmax")(x)
    )
    compile_model(model)
    weight = module.module[0].weight
    before, rho = weight.detach().clone(), values(model.rho_variables)
    x, y = make_data()
    model.fit(x, y, reg_data=make_data(12, 1), batch_size=8, verbose=0)
    assert (weight.detach() != before).any()
    assert (values(model.rho_variables)[0] != rho[0]).all()
    first = model.predict(x, verbose=0)
    np.testing.assert_array_equal(first, model.predict(x, verbose=0))
