"""What rho learn from: which examples, in which order."""

import gc
import threading
import time
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from forms import FORMS
from forms import Batches
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from helpers import recording_model

from keras_crossreg.backend.tensorflow.stream import RegularizationStream

# The sets here are of numbers from 0, told apart by their value.
pytestmark = pytest.mark.filterwarnings("ignore:1 rho learn from")

BATCH_FORMS = [
    "dataset",
    "dataset of unknown length",
    "dataset of unknown shapes",
    "endless dataset",
    "endless PyDataset",
    "generator",
    "torch DataLoader",
    "torch DataLoader of unknown length",
]


def numbers(rows):
    """`(x, y)` whose examples are numbered."""
    x = np.arange(float(rows), dtype="float32")[:, None]
    return x, x


def see(reg_data, steps, fits=1, **arguments):
    """The examples of each rho step in runs of so many training steps."""
    model, recorder = recording_model()
    x = np.full((steps, 1), -1.0)
    seen = []
    for _ in range(fits):
        recorder.sampled.clear()
        model.fit(x, x, batch_size=1, reg_data=reg_data, verbose=0, **arguments)
        seen += recorder.sampled[-steps * arguments.get("epochs", 1) :]
    return seen


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


@pytest.mark.parametrize("form", BATCH_FORMS)
def test_batches_come_in_their_order_again_and_again(form):
    # Shorter than an epoch, and with a last partial batch.
    seen = see(FORMS[form](numbers(10), 4), 5)
    batches = [list(range(4)), list(range(4, 8)), [8, 9]]
    assert seen == batches + batches[:2]


@pytest.mark.parametrize("form", ["PyDataset", "PyDataset with workers"])
def test_a_pydataset_is_shuffled_by_batches_in_each_pass(form):
    keras.utils.set_random_seed(0)
    seen = see(FORMS[form](numbers(10), 2), 5, epochs=3)
    passes = [tuple(s[0] for s in seen[i : i + 5]) for i in (0, 5, 10)]
    assert all(sorted(p) == [0, 2, 4, 6, 8] for p in passes)
    # Of the 120 orders, which the seed makes always the same.
    assert len(set(passes)) == 3


@pytest.mark.parametrize(
    "form",
    [
        "arrays",
        "dataset",
        "dataset of unknown length",
        "endless PyDataset",
        "generator",
        "torch DataLoader",
    ],
)
def test_a_second_fit_goes_on_in_the_set(form):
    # Longer than an epoch: four batches, of which each `fit` takes two.
    seen = see(FORMS[form](numbers(8), 2), 2, fits=3, reg_batch_size=2)
    if form == "generator":
        # What a `fit` reads ahead is lost, as Keras loses it for x.
        assert len(set(map(tuple, seen))) > 2
        return
    assert sorted(sum(seen[:4], [])) == list(range(8))
    if form != "arrays":
        assert seen[4:] == seen[:2]


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
        reg_data=FORMS["dataset"](data, 4),
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


def test_a_dataset_is_read_once_an_epoch():
    # To look at it before would move on the random state of its shuffling.
    starts = []

    def batches():
        starts.append(1)
        yield make_data()

    signature = (
        tf.TensorSpec((None, 3), "float32"),
        tf.TensorSpec((None,), "int32"),
    )
    dataset = tf.data.Dataset.from_generator(
        batches, output_signature=signature
    )
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(1))
    model = compile_model(make_model())
    fit(model, x=dataset, y=None, batch_size=None, epochs=2)
    assert len(starts) == 2


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


def test_the_data_of_a_stream_end_with_fit():
    # Not with the next garbage collection, which would wait for the threads
    # of every `fit` since the last.
    stream = RegularizationStream(
        make_data(), 8, tf.distribute.get_strategy(), position=0
    )
    next(stream)
    reference = weakref.ref(stream)
    gc.disable()
    try:
        stream.close()
        del stream
        assert reference() is None
    finally:
        gc.enable()


def test_a_fit_that_ends_waits_for_nothing():
    # TensorFlow's tuner of pipelines sleeps for as long as it has run, and
    # is waited for: from 0.6 s to 1.3 s, where there is one.
    class Slow(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            time.sleep(0.25)

        def on_train_end(self, logs=None):
            self.end = time.perf_counter()

    untuned = tf.data.Options()
    untuned.autotune.enabled = False
    batches = tf.data.Dataset.from_tensor_slices(make_data()).batch(8)
    batches = batches.with_options(untuned)
    waits = []
    for _ in range(4):
        model, slow = compile_model(make_model()), Slow()
        fit(model, x=batches, y=None, batch_size=None, callbacks=[slow])
        waits.append(time.perf_counter() - slow.end)
    assert max(waits) < 0.2
