"""Every run has enough rho steps, however short it is."""

import itertools

import keras
import numpy as np
import pytest
from forms import Batches
from helpers import compile_model
from helpers import make_data
from helpers import make_model

from keras_crossreg.trainers.rho_schedule import Epochs
from keras_crossreg.trainers.rho_schedule import RhoSchedule
from keras_crossreg.trainers.rho_schedule import Work


def rho_steps(model):
    return int(model.rho_optimizer.iterations)


def without_norm():
    """A warm-up is another matter."""
    model = make_model()
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    return model


@pytest.mark.parametrize(
    ("steps", "batch_size"),
    [(20, 16), (100, 16), (100, 512), (500, 128), (5000, 16), (5000, 512)],
)
def test_by_batch_size_and_length(steps, batch_size):
    work = Work(num_samples=16, steps=steps, all_steps=steps)
    size = work.reg_batch_size(batch_size)
    schedule = RhoSchedule(None, 0, work, has_enough=True)
    schedule.choose_reg_freq(size, batch_size)
    taken = schedule.advance(steps)
    assert taken >= min(50, steps)
    assert 1 <= size <= batch_size // 8
    added = taken * 16 * size * 2 / 3
    if size > 1:
        # A ninth of the work, and never more.
        assert added <= steps * batch_size / 9 * 1.001
        assert added >= 0.5 * steps * batch_size / 9
    else:
        # At worst a rho step of one example for each of fifty steps.
        assert added <= max(steps * batch_size / 9, 50 * 16 * 2 / 3) * 1.02


@pytest.mark.parametrize(
    ("batch_size", "merge_epochs"),
    [(24, 0), (24, 5), (8, 0), (8, 5)],
)
@pytest.mark.slow
def test_a_short_run_has_fifty(batch_size, merge_epochs):
    model = compile_model(without_norm(), reg_freq=None, num_samples=16)
    x, y = make_data(240)
    epochs = 50 * batch_size // 240 + 1 + merge_epochs
    model.fit(
        x,
        y,
        reg_data=make_data(40, seed=1),
        batch_size=batch_size,
        epochs=epochs,
        merge_epochs=merge_epochs,
        verbose=0,
    )
    assert rho_steps(model) >= 50


@pytest.mark.slow
@pytest.mark.parametrize("form", ["PyDataset", "generator"])
def test_large_batches_are_split_up(form):
    """500 rows in batches of 256, which would be one rho step."""
    model = compile_model(without_norm(), reg_freq=None, num_samples=16)
    x, y = make_data(500, seed=1)
    batches = [(x[:256], y[:256]), (x[256:], y[256:])]
    reg_data = Batches(batches)
    if form == "generator":
        reg_data = (batch for batch in itertools.cycle(batches))
    model.fit(
        *make_data(240),
        reg_data=reg_data,
        batch_size=24,
        epochs=8,
        verbose=0,
    )
    assert rho_steps(model) >= 50


def seen_batches(reg_data, **arguments):
    """The regularization batches of a run."""
    seen = []
    model = compile_model(without_norm(), run_eagerly=True, **arguments)
    step = model.rho_step

    def noted(data, *rest):
        seen.append(np.asarray(data[0]))
        return step(data, *rest)

    model.rho_step = noted
    model.fit(
        *make_data(24), reg_data=reg_data, batch_size=8, epochs=2, verbose=0
    )
    return seen


def test_pieces_come_in_order_and_leave_out_what_is_left_over():
    x, y = make_data(14, seed=1)
    reg_data = Batches([(x[:7], y[:7]), (x[7:], y[7:])])
    # Six steps, and pieces of `6 * 8 // 50`, which is one at the least.
    seen = seen_batches(reg_data, reg_freq=None)
    assert [len(s) for s in seen] == [1] * 6
    # Keras shuffles such batches, and not what is in them.
    whole = next(b for b in (x[:7], x[7:]) if np.array_equal(b[0], seen[0][0]))
    np.testing.assert_array_equal(np.concatenate(seen), whole[:6])


def test_batches_stay_whole_where_reg_freq_is_given():
    x, y = make_data(14, seed=1)
    reg_data = Batches([(x[:7], y[:7]), (x[7:], y[7:])])
    seen = seen_batches(reg_data, reg_freq=3)
    assert [len(s) for s in seen] == [7, 7]


def test_epochs_of_a_fit():
    epochs = Epochs(count=10, learning=5, steps=39)
    assert epochs.until(0) == 390
    assert epochs.learning_until(0, 95) == 100
    # It goes on from earlier ones.
    assert epochs.learning_until(40, 95) == 140
    assert Epochs(10, 0, 39).learning_until(0, 0) is None
    assert Epochs(10, 5, None).until(0) is None


def test_rho_steps_are_as_many_where_rho_learn_in_a_part_of_the_run():
    whole = Work(16, steps=800, all_steps=800)
    part = Work(16, steps=200, all_steps=800)
    assert whole.reg_freq(16, 128) == 12
    assert part.reg_freq(16, 128) == 3
