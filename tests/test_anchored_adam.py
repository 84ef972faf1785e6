"""Rho stay near their start as long as there is little evidence."""

import keras
import numpy as np
import pytest
from helpers import values
from keras import ops

import keras_crossreg as kcr

pytestmark = pytest.mark.backend

START = np.array([1.0, -2.0], "float32")


def gradients(count, size=2):
    return np.random.default_rng(0).normal(size=(count, size)).astype("float32")


def moved(optimizer, grads, held=None):
    """A variable after steps along these gradients."""
    variable = keras.Variable(START)
    optimizer.build([variable])
    if held is not None:
        optimizer.hold([variable], held)
    for g in grads:
        optimizer.apply([ops.convert_to_tensor(g)])
    return ops.convert_to_numpy(variable)


def test_where_nothing_is_held_it_is_adam():
    grads = gradients(9)
    adam = moved(keras.optimizers.Adam(0.1), grads)
    for optimizer, held in (
        (kcr.optimizers.AnchoredAdam(), None),
        (kcr.optimizers.AnchoredAdam(), 0.0),
        (kcr.optimizers.AnchoredAdam(anchor=0.0), 0.5),
    ):
        np.testing.assert_allclose(
            moved(optimizer, grads, held), adam, rtol=1e-6
        )


def test_formula():
    rho, m, v = START.astype("float64"), np.zeros(2), np.zeros(2)
    grads = gradients(9)
    for t, g in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        mean, square = m / (1 - 0.9**t), v / (1 - 0.999**t)
        rho = rho - 0.1 * mean / np.sqrt(square)
        noise = np.sqrt(np.maximum(1 - mean**2 / square, 0))
        rho = rho - 0.1 * 3.0 * np.sqrt(0.25) * noise * (rho - START)
    found = moved(kcr.optimizers.AnchoredAdam(anchor=3.0), grads, held=0.25)
    np.testing.assert_allclose(found, rho, rtol=1e-4)


@pytest.mark.parametrize("errors, part", [(1, 0.25), (2, 0.25), (3, 0.04)])
def test_rests_where_the_gradient_is_so_many_standard_errors(errors, part):
    """The mean of 400 variables, in batches of a part of the set.

    A batch's gradient has a standard deviation of 7, so that the mean of the
    set has a standard error of `7 sqrt(part)`. Adam's mean is that of ten
    gradients, which takes rho up to a twelfth further. Each variable is spread
    by .65 at the most: .2 are six standard deviations of their mean, and the
    test fails by chance less than once in 10^8.
    """
    rng = np.random.default_rng(0)
    rho = keras.Variable(np.full(400, 0.5, "float32"))
    optimizer = kcr.optimizers.AnchoredAdam()
    optimizer.build([rho])
    optimizer.hold([rho], part)
    for _ in range(400):
        batch = rng.normal(7 * errors * part**0.5, 7, 400).astype("float32")
        optimizer.apply([ops.convert_to_tensor(batch)])
    distance = 0.5 - ops.convert_to_numpy(rho).mean()
    assert errors - 0.2 < distance < 13 / 12 * errors + 0.2


def make_data(rows):
    x = np.random.default_rng(rows).normal(size=(rows, 5)).astype("float32")
    return x, (x[:, :1] > 0).astype("float32")


def make_model(**compile_kwargs):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,))
    dense = keras.layers.Dense(8, use_bias=False)
    x = ops.relu(kcr.layers.NormMagnitude(dense)(inputs))
    x = kcr.layers.LearnedDropout(0.5, name="dropout", seed=0)(x)
    model = kcr.CrossRegModel(inputs, keras.layers.Dense(1)(x))
    model.compile(
        keras.optimizers.Adam(0.01), "mse", num_samples=4, **compile_kwargs
    )
    return model


class Parts(keras.callbacks.Callback):
    """What the norm and the rate are held by, at the end of each epoch."""

    def on_train_begin(self, logs=None):
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(parts(self.model))


def parts(model):
    return values(model.rho_optimizer.variables)[-1].tolist()


def test_fit_holds_noise_by_the_part_of_a_batch():
    model = make_model(reg_freq=1)
    assert isinstance(model.rho_optimizer, kcr.optimizers.AnchoredAdam)
    assert [v.path.split("/")[-1] for v in model.rho_variables] == [
        "magnitude",
        "rate",
    ]
    record = Parts()

    def fit(**kwargs):
        model.fit(
            *make_data(64), verbose=0, epochs=2, callbacks=[record], **kwargs
        )
        # Outside of `fit`, this is Adam.
        assert parts(model) == [0.0, 0.0]
        return record.seen[-1]

    reg_data = make_data(40)
    assert fit(reg_data=reg_data, reg_batch_size=10) == [0.0, 0.25]
    assert fit(reg_data=make_data(20), reg_batch_size=30) == [0.0, 1.0]
    # Sets of known length, and one that has none.
    assert fit(reg_data=Batches(4)) == [0.0, 0.25]
    assert fit(reg_data=Batches(4), reg_batch_size=2) == [0.0, 0.125]
    assert fit(reg_data=endless()) == [0.0, 0.0]
    assert fit(reg_split=0.5, reg_batch_size=4) == [0.0, 0.125]
    # Callbacks of merged epochs see what was.
    assert fit(reg_data=reg_data, reg_batch_size=10, merge_epochs=1) == [
        0.0,
        0.25,
    ]


def test_an_interrupted_fit_lets_rho_go():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    model = make_model(reg_freq=1)
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            *make_data(64),
            reg_data=make_data(20),
            callbacks=[Stop()],
            verbose=0,
        )
    assert parts(model) == [0.0, 0.0]


class Batches(keras.utils.PyDataset):
    """So many batches of four."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return make_data(4)


def endless():
    while True:
        yield make_data(4)


def test_few_examples_lead_less_far_than_by_adam():
    """Rates that the same 20 examples take far by Adam."""

    def rate(**kwargs):
        model = make_model(reg_freq=1, **kwargs)
        model.fit(
            *make_data(64),
            reg_data=make_data(20),
            reg_batch_size=2,
            batch_size=16,
            epochs=15,
            verbose=0,
        )
        return model.get_rho()["dropout/rate"]

    adam = rate(rho_optimizer=keras.optimizers.Adam(0.1))
    anchored = rate()
    closer = rate(rho_optimizer=kcr.optimizers.AnchoredAdam(anchor=10.0))
    assert adam < anchored < closer < 0.5
    assert adam < 0.35 and closer > 0.45


class BackToTheStart(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.set_rho({"dropout/rate": 0.5})


def test_what_is_back_at_its_start_is_not_without_effect():
    """Rho that are held may end where they were; Adam's would not by chance."""

    def fit(**kwargs):
        make_model(reg_freq=1, **kwargs).fit(
            *make_data(64),
            reg_data=make_data(20),
            batch_size=2,
            verbose=0,
            callbacks=[BackToTheStart()],
        )

    # The suite takes any warning for an error.
    fit()
    with pytest.warns(UserWarning, match="These rho have not moved in 32"):
        fit(rho_optimizer=keras.optimizers.Adam(0.1))


def starts(model):
    """Those of the rates, which are stored as logits."""
    return [
        float(ops.squeeze(v.value))
        for v in model.rho_optimizer.variables
        if v.name.endswith("start") and "rate" in v.name
    ]


def test_the_start_is_the_first_one_for_a_saved_model_too(tmp_path):
    model = make_model()
    model.fit(*make_data(64), reg_data=make_data(20), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.rho_optimizer, kcr.optimizers.AnchoredAdam)
    assert starts(loaded) == starts(model) == [0.0]
    assert loaded.get_rho() == model.get_rho()
    assert model.get_rho()["dropout/rate"] != 0.5


def test_a_rate_that_is_set_is_a_start():
    model = make_model()
    model.fit(*make_data(64), reg_data=make_data(20), verbose=0)
    model.set_rho({"dropout/rate": 1 / (1 + np.exp(1.5))})
    np.testing.assert_allclose(starts(model), [-1.5], rtol=1e-5)


@pytest.mark.parametrize("anchor", [-1.0, float("nan"), float("inf"), "1"])
def test_bad_anchors(anchor):
    with pytest.raises(
        ValueError,
        match=r"`anchor` must be a finite number of 0 or more. Received: "
        f"anchor={anchor}",
    ):
        kcr.optimizers.AnchoredAdam(anchor=anchor)


def test_config():
    optimizer = kcr.optimizers.AnchoredAdam(0.2, anchor=2.0, beta_1=0.8)
    copy = kcr.optimizers.AnchoredAdam.from_config(optimizer.get_config())
    assert copy.get_config() == optimizer.get_config()
    assert copy.anchor == 2.0
    assert copy.beta_1 == 0.8
