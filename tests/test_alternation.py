"""How often rho learn, and what the logs show of it."""

import keras
import numpy as np
import pytest
from form_checks import check_default_warmup
from form_checks import rho_steps
from forms import Batches
from forms import EndlessBatches
from forms import batches
from helpers import Subclassed
from helpers import assert_same
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from helpers import needs_executions_of
from helpers import recording_model
from helpers import values

import keras_crossreg as kcr
from keras_crossreg.trainers.rho_schedule import Work
from keras_crossreg.trainers.rho_schedule import default_reg_warmup

pytestmark = pytest.mark.backend


@pytest.mark.parametrize(
    ("reg_freq", "reg_warmup", "steps_per_execution", "expected"),
    [
        # 2 epochs of 5 steps.
        (1, 0, 1, 10),
        (3, 0, 1, 3),
        (2, 4, 1, 3),
        # Executions of 3 and 2 steps.
        (2, 0, 3, 5),
        (4, 1, 3, 2),
    ],
)
def test_number_of_rho_steps(
    reg_freq, reg_warmup, steps_per_execution, expected
):
    needs_executions_of(steps_per_execution)
    model = compile_model(
        make_model(),
        reg_freq=reg_freq,
        reg_warmup=reg_warmup,
        steps_per_execution=steps_per_execution,
        # One case is compiled, and more of them in `test_modes`.
        run_eagerly=reg_freq > 1,
    )
    fit(model, batch_size=5, epochs=2)
    assert int(model.optimizer.iterations) == 10
    assert rho_steps(model) == expected


@pytest.mark.parametrize(
    ("num_samples", "reg_batch_size", "batch_size", "expected"),
    [
        # 6 K B_reg / B, so that K B_reg / (r B) * 2/3 is 1/9.
        (2, 1, 8, 2),
        (2, 2, 8, 3),
        (2, 4, 8, 6),
        (4, 4, 32, 3),
        # Rho step at every training step at the most. A B of which nothing is
        # known counts as B_reg.
        (1, 1, 64, 1),
        (2, 3, 0, 12),
    ],
)
def test_the_default_of_reg_freq(
    num_samples, reg_batch_size, batch_size, expected
):
    work = Work(num_samples)
    assert work.reg_freq(reg_batch_size, batch_size) == expected


@pytest.mark.parametrize(
    ("steps", "expected"),
    # A ninth of the work for both sets, of a long run and of one whose length
    # is not known; two ninths of a short one; 200 rho steps in between.
    [(100_000, 24), (4800, 24), (3600, 18), (2400, 12), (100, 12), (None, 24)],
)
def test_the_default_of_reg_freq_for_both_sets(steps, expected):
    both = Work(16, num_sets=2, steps=steps, all_steps=steps)
    assert both.reg_freq(16, 128) == expected
    one = Work(16, steps=steps, all_steps=steps)
    assert one.reg_freq(16, 128) == 12


@pytest.mark.parametrize(
    ("reg_batch_size", "expected", "steps_per_execution", "run_eagerly"),
    [
        # By default an eighth of B, which is 8: two steps, which are too few.
        (None, 1, 3, False),
        pytest.param(4, 6, 1, True, marks=pytest.mark.slow),
        # Of data in batches B is not known beforehand, and B_reg all there is.
        ("batches", 18, 3, True),
    ],
)
def test_by_default_rho_steps_add_a_ninth_of_the_work(
    reg_batch_size, expected, steps_per_execution, run_eagerly
):
    needs_executions_of(steps_per_execution)
    model = compile_model(
        make_model(),
        reg_freq=None,
        steps_per_execution=steps_per_execution,
        run_eagerly=run_eagerly,
    )
    arguments = dict(reg_batch_size=reg_batch_size)
    if reg_batch_size == "batches":
        x = Batches(batches(make_data(), 8))
        arguments = dict(x=x, y=None, batch_size=None)
    fit(model, epochs=6, **arguments)
    assert int(model.optimizer.iterations) == 18
    assert rho_steps(model) == 18 // expected


@pytest.mark.parametrize(
    ("momentum", "steps", "expected"),
    [
        # 2 / (1 - momentum) steps; but not for averages that never move.
        (0.8, 60, 10),
        (0.9, 120, 20),
        (0.99, None, 200),
        (0.0, 12, 2),
        (1.0, 12, 0),
        # A quarter of the steps there are.
        (0.9, 12, 3),
        (0.99, 24, 6),
    ],
)
def test_how_long_moving_averages_take(momentum, steps, expected):
    norm = keras.layers.BatchNormalization(momentum=momentum)
    assert default_reg_warmup([norm], steps) == expected
    # The slowest counts.
    layers = [keras.layers.BatchNormalization(momentum=0.0), norm]
    assert default_reg_warmup(layers, steps) == max(expected, 2)


@pytest.mark.parametrize(
    ("momentum", "epochs", "expected"),
    # As long as the moving averages take, or a quarter of the steps.
    [(0.5, 2, 4), (0.9, 1, 3)],
)
def test_by_default_rho_wait_for_moving_averages(momentum, epochs, expected):
    model = make_model()
    (norm,) = (la for la in model.layers if hasattr(la, "momentum"))
    norm.momentum = momentum
    compile_model(model, reg_warmup=None)
    fit(model, epochs=epochs, batch_size=2)
    assert rho_steps(model) == 12 * epochs - expected
    # They have come up with theta by then.
    fit(model)
    assert rho_steps(model) == 12 * epochs - expected + 3


@pytest.mark.parametrize(
    ("kind", "expected"),
    # It is not known how many batches a generator has.
    [("PyDataset", 3), ("generator", 10)],
)
def test_the_default_warmup_of_data_in_batches(kind, expected):
    x = batches(make_data(), 2)
    x = Batches(x) if kind == "PyDataset" else (batch for batch in x)
    check_default_warmup(x, expected)


def test_the_default_warmup_of_endless_data():
    model = make_model()
    model.layers[2].momentum = 0.8
    compile_model(model, reg_warmup=None)
    x = EndlessBatches(batches(make_data(), 2))
    fit(model, x=x, y=None, batch_size=None, steps_per_epoch=4, epochs=2)
    assert rho_steps(model) == 8 - 2


@pytest.mark.parametrize("kind", ["frozen", "without", "zero"])
def test_without_moving_averages_rho_do_not_wait(kind):
    model = make_model()
    if kind == "frozen":
        model.layers[2].trainable = False
    if kind == "without":
        inputs = keras.Input((3,))
        x = kcr.layers.GaussianNoiseScale()(inputs)
        outputs = keras.layers.Dense(2, activation="softmax")(x)
        model = kcr.CrossRegModel(inputs, outputs)
    compile_model(model, reg_warmup=0 if kind == "zero" else None)
    fit(model)
    assert rho_steps(model) == 3


@pytest.mark.slow
def test_a_nested_and_a_subclassed_model_wait_too():
    class Nested(kcr.CrossRegModel):
        def __init__(self):
            super().__init__()
            self.inner = make_model(cls=keras.Model)

        def call(self, inputs):
            return self.inner(inputs)

    for model in (Nested(), Subclassed()):
        compile_model(model, reg_warmup=None)
        fit(model, epochs=4)
        assert rho_steps(model) == 12 - 3


def test_counting_goes_on_over_several_fits():
    model = compile_model(make_model(), reg_freq=4, reg_warmup=1)
    with pytest.warns(UserWarning, match="comes after 5 .* there were 3"):
        fit(model)
    assert rho_steps(model) == 0
    for expected in (1, 2, 2, 3):
        fit(model)
        assert rho_steps(model) == expected


def test_gradient_accumulation_does_not_change_the_count():
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)
    model = compile_model(make_model(), optimizer=optimizer, reg_freq=2)
    fit(model, epochs=2)
    assert rho_steps(model) == 3


def test_train_on_batch_moves_rho_when_asked():
    model = compile_model(
        make_model(), metrics=["accuracy"], reg_freq=7, run_eagerly=False
    )
    x, y = make_data()
    logs = model.train_on_batch(x, y, return_dict=True)
    assert rho_steps(model) == 0
    assert set(logs) == {"loss", "accuracy"}
    reg_data = make_data(12, seed=1)
    logs = model.train_on_batch(x, y, reg_data=reg_data, return_dict=True)
    assert rho_steps(model) == 1
    assert set(logs) == {"loss", "accuracy", "reg_loss", "reg_accuracy"}


# What the logs show.


def test_reg_loss_and_metrics_are_in_history():
    model = compile_model(
        make_model(),
        metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy("hits")],
    )
    history = fit(model, epochs=2, validation_data=make_data(12, seed=2))
    assert set(history.history) == {
        f"{prefix}{name}"
        for prefix in ("", "reg_", "val_")
        for name in ("loss", "accuracy", "hits")
    }
    assert all(len(column) == 2 for column in history.history.values())


@pytest.mark.parametrize(
    "run_eagerly", [pytest.param(True, marks=pytest.mark.slow), False]
)
def test_every_epoch_is_measured_with_and_without_a_rho_step(run_eagerly):
    # Three steps an epoch: the first rho step is in the second epoch, and
    # there is none in the third. Noise would depend on the place in the batch.
    reg_data = make_data(12, seed=1)
    model = compile_model(
        make_model(),
        metrics=["accuracy"],
        rho_optimizer=keras.optimizers.SGD(0.0),
        reg_freq=5,
        run_eagerly=run_eagerly,
    )
    model.set_rho({"noise/scale": 0.0})
    measured = []

    class Measure(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            measured.append(
                self.model.evaluate(*reg_data, batch_size=12, verbose=0)
            )

    history = fit(
        model,
        epochs=3,
        reg_data=reg_data,
        reg_batch_size=12,
        callbacks=[Measure()],
    ).history
    assert rho_steps(model) == 1
    for name, column in (("reg_loss", 0), ("reg_accuracy", 1)):
        found = np.array(history[name])
        expected = np.array(measured)[:, column]
        # These are measured with theta as they are at the end of the epoch.
        for epoch in (0, 2):
            assert found[epoch] == pytest.approx(expected[epoch], rel=1e-5)
        # The rho step of this one came before its last step of theta.
        assert np.isfinite(found[1])


def test_measuring_an_epoch_moves_nothing():
    states = []
    for reg_freq in (100, 101):
        model = compile_model(make_model(), reg_freq=reg_freq)
        with pytest.warns(UserWarning, match="Rho have not learned"):
            fit(model, epochs=2, reg_data=make_data(12, seed=1))
        states.append(values(model.weights))
    frozen = compile_model(make_model())
    frozen.freeze_rho()
    fit(frozen, epochs=2, reg_data=None)
    for state in states:
        assert_same(state, values(frozen.weights))


def test_the_batch_that_was_measured_is_the_one_that_rho_learn_from():
    model, recorder = recording_model(reg_freq=4)
    x = np.full((6, 1), -1.0)
    reg = np.arange(4.0)[:, None]
    model.fit(
        x,
        x,
        batch_size=2,
        epochs=2,
        shuffle=False,
        reg_data=Batches([(reg[i : i + 2], reg[i : i + 2]) for i in (0, 2)]),
        verbose=0,
    )
    # The check, the first epoch at its end, and the step of the second.
    assert len(recorder.sampled) == 3
    assert recorder.sampled[1] == recorder.sampled[2]


def test_history_shows_means_and_not_last_batches():
    # Nothing moves and nothing is random: the epoch's loss is that of all.
    model = compile_model(
        make_model(),
        optimizer=keras.optimizers.SGD(0.0),
        rho_optimizer=keras.optimizers.SGD(0.0),
        metrics=["accuracy"],
    )
    model.set_rho({"noise/scale": 0.0})
    norm = model.layers[2]
    norm.momentum = 1.0
    reg = make_data(12, seed=1)
    # 3 rho steps of 4 rows go once through the set.
    history = fit(model, reg_data=reg, reg_batch_size=4).history
    loss, accuracy = model.evaluate(*reg, verbose=0)
    assert history["reg_loss"][0] == pytest.approx(loss, rel=1e-5)
    assert history["reg_accuracy"][0] == pytest.approx(accuracy)


def test_evaluate_does_not_report_the_regularization_set():
    model = compile_model(make_model())
    fit(model)
    results = model.evaluate(*make_data(), verbose=0, return_dict=True)
    assert set(results) == {"loss"}


def test_metrics_that_cannot_be_copied_leave_reg_loss():
    class Custom(keras.metrics.Mean):
        def __init__(self, factor):
            super().__init__(name="custom")
            self.factor = factor

        def update_state(self, y, y_pred, sample_weight=None):
            super().update_state(self.factor)

    with pytest.warns(UserWarning, match="Only `reg_loss` is measured"):
        model = compile_model(make_model(), metrics=[Custom(3.0)])
    history = fit(model).history
    assert set(history) == {"loss", "custom", "reg_loss"}
    assert history["custom"] == [3.0]
