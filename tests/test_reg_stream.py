"""What rho learn from: which examples, in which order."""

import gc
import threading
import weakref

import keras
import numpy as np
import pytest
from form_checks import check_a_second_fit_goes_on
from form_checks import check_order_of_batches
from form_checks import numbers
from form_checks import see
from forms import FORMS
from forms import Batches
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from helpers import recording_model

from keras_crossreg.trainers.array_stream import ArrayStream
from keras_crossreg.trainers.reg_stream import RegularizationStream

# The sets here are of numbers from 0, told apart by their value.
pytestmark = [
    pytest.mark.backend,
    pytest.mark.filterwarnings("ignore:1 rho learn from"),
]


def test_every_example_of_arrays_is_seen_once_in_each_pass():
    seen = see(numbers(10), 4, epochs=2, reg_batch_size=5)
    passes = [seen[i] + seen[i + 1] for i in (0, 2, 4, 6)]
    assert all(sorted(p) == list(range(10)) for p in passes)
    # In another order each time: four alike have probability 10!^-3.
    assert len({tuple(p) for p in passes}) == 4


def test_a_batch_of_arrays_goes_over_the_end_of_a_pass():
    # Every batch has the same size, so that one trace is enough.
    seen = see(numbers(10), 5, reg_batch_size=4)
    assert [len(s) for s in seen] == [4] * 5
    together = sum(seen, [])
    assert sorted(together[:10]) == sorted(together[10:]) == list(range(10))


def test_a_batch_is_at_most_the_set():
    seen = see(numbers(10), 2, reg_batch_size=99)
    assert [sorted(s) for s in seen] == [list(range(10))] * 2


def test_the_batch_size_is_an_eighth_of_the_training_batches_by_default():
    model, recorder = recording_model()
    x = np.full((48, 1), -1.0)
    for batch_size, expected in ((24, 3), (7, 1), (None, 4)):
        recorder.sampled.clear()
        model.fit(x, x, batch_size=batch_size, reg_data=numbers(10), verbose=0)
        # The first is of the check.
        assert {len(s) for s in recorder.sampled[1:]} == {expected}


@pytest.mark.parametrize(
    "form",
    [
        "endless PyDataset",
        "generator",
        "torch DataLoader",
        "torch DataLoader of unknown length",
    ],
)
def test_batches_come_in_their_order_again_and_again(form):
    check_order_of_batches(FORMS[form])


@pytest.mark.parametrize("form", ["PyDataset", "PyDataset with workers"])
def test_a_pydataset_is_shuffled_by_batches_in_each_pass(form):
    keras.utils.set_random_seed(0)
    seen = see(FORMS[form](numbers(10), 2), 5, epochs=3)
    passes = [tuple(s[0] for s in seen[i : i + 5]) for i in (0, 5, 10)]
    assert all(sorted(p) == [0, 2, 4, 6, 8] for p in passes)
    # Of the 120 orders, which the seed makes always the same.
    assert len(set(passes)) == 3


@pytest.mark.parametrize(
    "form", ["arrays", "endless PyDataset", "torch DataLoader"]
)
def test_a_second_fit_goes_on_in_the_set(form):
    check_a_second_fit_goes_on(FORMS[form], in_order=form != "arrays")


def test_a_second_fit_goes_on_in_a_generator():
    seen = see(FORMS["generator"](numbers(8), 2), 2, fits=3)
    # What a `fit` reads ahead is lost, as Keras loses it for x.
    assert len(set(map(tuple, seen))) > 2


def test_the_order_does_not_depend_on_that_of_training():
    seen, trained = [], []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        model, recorder = recording_model()
        x, _ = numbers(12)
        model.fit(
            x - 12,
            x,
            batch_size=4,
            reg_data=numbers(12),
            epochs=2,
            verbose=0,
        )
        seen.append(recorder.sampled)
        trained.append(recorder.trained)
    assert seen[0] == seen[1]
    # The same order by chance has probability 12!^-2.
    assert trained[0] != trained[1]


def test_no_pair_of_batches_for_ever():
    # Training batches that come in the same order in every epoch, as many as
    # regularization batches.
    model, recorder = recording_model()
    x, _ = numbers(12)
    model.fit(
        x - 12,
        x,
        batch_size=4,
        shuffle=False,
        reg_data=numbers(12),
        epochs=3,
        verbose=0,
    )
    epochs = [recorder.trained[i : i + 3] for i in (0, 3, 6)]
    assert epochs[0] == epochs[1] == epochs[2]
    met = [recorder.sampled[1:][i : i + 3] for i in (0, 3, 6)]
    # The order of rho's batches is a fixed one, without chance.
    assert all(a != b for a, b in zip(met[0], met[1], strict=True))
    assert met[1] != met[2]


def test_reg_loss_is_of_a_set_with_a_partial_batch():
    model, _ = recording_model(
        optimizer=keras.optimizers.SGD(0.0),
        rho_optimizer=keras.optimizers.SGD(0.0),
    )
    data = numbers(10)
    history = model.fit(
        np.full((3, 1), -1.0),
        np.zeros((3, 1)),
        batch_size=1,
        reg_data=FORMS["PyDataset"](data, 4),
        verbose=0,
    ).history
    expected = model.evaluate(*data, verbose=0)
    assert history["reg_loss"][0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_pass_over_a_pydataset_is_ended(workers):
    events = []

    class Logged(Batches):
        def on_epoch_begin(self):
            events.append("begin")

        def on_epoch_end(self):
            events.append("end")

    x, _ = numbers(12)
    batches = [(x[i : i + 1], x[i : i + 1]) for i in range(12)]
    before = set(threading.enumerate())
    reg_data = Logged(batches, workers=workers, max_queue_size=2)
    # In the middle of the second pass.
    see(reg_data, 16)
    assert events == ["begin", "end"] * 2
    assert set(threading.enumerate()) <= before


def test_no_batch_of_a_generator_is_lost():
    model, recorder = recording_model()
    x, _ = numbers(6)
    data = ((x[i : i + 2], x[i : i + 2]) for i in (0, 2, 4))
    model.fit(
        data,
        steps_per_epoch=3,
        shuffle=False,
        reg_data=numbers(12),
        verbose=0,
    )
    assert recorder.trained == [[0, 1], [2, 3], [4, 5]]


def test_a_generator_that_ends_says_so():
    model = compile_model(make_model())
    x, y = make_data()
    reg_data = (make_data(12, seed=i) for i in range(2))
    match = "ran out of batches(?s:.*)Received: reg_data=generator$"
    with pytest.raises(ValueError, match=match):
        model.fit(x, y, batch_size=8, reg_data=reg_data, verbose=0)


def test_a_single_example_is_enough():
    model = compile_model(make_model())
    history = fit(model, reg_data=make_data(1, seed=1)).history
    assert np.isfinite(history["reg_loss"]).all()
    assert np.isfinite(model.get_rho()["noise/scale"])


@pytest.mark.parametrize("form", ["arrays", "PyDataset"])
def test_a_stream_ends_with_fit(form, monkeypatch):
    # Not with the next garbage collection, which would wait for the threads
    # of every `fit` since the last.
    close, closed = RegularizationStream.close, []

    def noted(self):
        closed.append(weakref.ref(self))
        close(self)

    monkeypatch.setattr(RegularizationStream, "close", noted)
    model = compile_model(make_model())
    reg_data = FORMS[form](make_data(12, seed=1), 4)
    gc.disable()
    try:
        fit(model, reg_data=reg_data)
        assert [stream() for stream in closed] == [None]
    finally:
        gc.enable()


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="`tf.data` reads ahead"
)
def test_batches_of_arrays_are_sent_to_the_device_one_ahead():
    sent = []

    class Sending(ArrayStream):
        def _on_device(self, batch):
            sent.append(batch)
            return batch

    stream = Sending(numbers(10), 5, 0)
    stream.seek(2)
    sent.clear()
    for number in range(1, 4):
        assert next(stream) is sent[number - 1]
        assert len(sent) == number + 1
