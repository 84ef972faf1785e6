"""Every option of an optimizer, for theta and for rho, and each for its own."""

import keras
import numpy as np
import pytest
from helpers import EAGER
from helpers import assert_same
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from helpers import slow_but
from helpers import values

import keras_crossreg as kcr

optimizers = keras.optimizers

OPTIMIZERS = {
    "AdamW": lambda: optimizers.AdamW(0.05, weight_decay=0.5),
    "SGD with weight decay": lambda: optimizers.SGD(0.1, weight_decay=0.5),
    "clipnorm": lambda: optimizers.Adam(0.05, clipnorm=0.01),
    "global_clipnorm": lambda: optimizers.Adam(0.05, global_clipnorm=0.01),
    "clipvalue": lambda: optimizers.SGD(0.1, clipvalue=0.001),
    "use_ema": lambda: optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5),
    "use_ema that overwrites": lambda: optimizers.SGD(
        0.1, use_ema=True, ema_overwrite_frequency=2
    ),
    "cosine decay": lambda: optimizers.Adam(
        optimizers.schedules.CosineDecay(0.1, 6)
    ),
    "warm-up": lambda: optimizers.Adam(
        optimizers.schedules.CosineDecay(
            0.0, 6, warmup_target=0.1, warmup_steps=2
        )
    ),
    "gradient accumulation": lambda: optimizers.SGD(
        0.1, gradient_accumulation_steps=2
    ),
    "loss scale": lambda: optimizers.LossScaleOptimizer(
        optimizers.SGD(0.1), initial_scale=64
    ),
    "Adafactor": lambda: optimizers.Adafactor(0.1),
    "Ftrl": lambda: optimizers.Ftrl(0.1),
    "Lamb": lambda: optimizers.Lamb(0.1),
    "Lion": lambda: optimizers.Lion(0.01),
    "Muon": lambda: optimizers.Muon(0.1),
    "RMSprop": lambda: optimizers.RMSprop(0.01, momentum=0.5),
}


# What the slow ones show, one of these shows too: a decay of weights, a limit,
# a schedule, or an algorithm without an option of its own.
EVERY_ONE = pytest.mark.parametrize(
    "name",
    slow_but(
        [
            "AdamW",
            "global_clipnorm",
            "use_ema",
            "gradient accumulation",
            "loss scale",
            "Muon",
        ],
        OPTIMIZERS,
    ),
)


def build(cls):
    """One rho without noise, so that a rho step uses up no random numbers."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    dense = keras.layers.Dense(4, use_bias=False)
    x = kcr.layers.NormMagnitude(dense, name="norm")(inputs)
    x = keras.layers.BatchNormalization()(x)
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    return cls(inputs, outputs)


def averages(optimizer):
    """What an optimizer with `use_ema` keeps of each variable."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return values(v for v in inner.variables if v.name.endswith("average"))


class Weights(keras.callbacks.Callback):
    """The weights of theta at the end of every epoch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen += values(self.model.trainable_variables)


@EVERY_ONE
def test_theta_moves_as_in_keras_and_rho_not_at_all(name):
    plain = build(keras.Model)
    plain.compile(
        OPTIMIZERS[name](), "sparse_categorical_crossentropy", run_eagerly=EAGER
    )
    x, y = make_data()
    plain.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    model = compile_model(
        build(kcr.CrossRegModel),
        optimizer=OPTIMIZERS[name](),
        rho_optimizer=optimizers.SGD(0.0),
    )
    rho = values(model.rho_variables)
    fit(model, batch_size=4)
    assert_same(values(plain.weights), values(model.weights))
    assert_same(values(plain.optimizer.variables), model.optimizer.variables)
    assert_same(rho, values(model.rho_variables))
    assert int(model.rho_optimizer.iterations) == 6


@EVERY_ONE
def test_rho_move_as_the_same_optimizer_moves_theta(name):
    """A rho whose training loss is that of its regularization set."""
    target = np.float32(2.0)
    x, y = np.ones((8, 1), "float32"), np.full((8, 1), target)

    class Scale(kcr.layers.RhoLayer):
        stochastic = False

        def build(self, input_shape):
            self.rho = kcr.mark_rho(
                self.add_weight(
                    initializer="ones",
                    dtype="float32",
                    autocast=False,
                    trainable=False,
                )
            )

        def call(self, inputs, sampling=None):
            return inputs * self.rho

    class PlainScale(keras.layers.Layer):
        def build(self, input_shape):
            self.scale = self.add_weight(initializer="ones")

        def call(self, inputs):
            return inputs * self.scale

    inputs = keras.Input((1,))
    model = kcr.CrossRegModel(inputs, Scale()(inputs))
    compile_model(model, loss="mse", rho_optimizer=OPTIMIZERS[name]())
    plain = keras.Model(inputs, PlainScale()(inputs))
    plain.compile(OPTIMIZERS[name](), "mse", run_eagerly=True)
    with pytest.warns(UserWarning):
        # Of the rows, and of their number; theta has nothing to learn.
        model.fit(x, y, reg_data=(x, y), batch_size=2, verbose=0)
    plain.fit(x, y, batch_size=2, verbose=0)
    assert int(plain.optimizer.iterations) == int(
        model.rho_optimizer.iterations
    )
    rho, scale = model.weights[0], plain.weights[0]
    assert values([scale])[0] != 1.0
    np.testing.assert_allclose(rho, scale, rtol=1e-6)


@pytest.mark.parametrize(
    "rho_optimizer",
    [
        "adamw",
        {"class_name": "SGD", "config": {"learning_rate": 0.25}},
        optimizers.Nadam(0.3),
    ],
    ids=["string", "dict", "object"],
)
def test_forms_of_the_rho_optimizer(rho_optimizer):
    model = compile_model(make_model(), rho_optimizer=rho_optimizer)
    expected = optimizers.get(rho_optimizer).get_config()
    config = model.rho_optimizer.get_config()
    assert config | {"name": ""} == expected | {"name": ""}
    fit(model)
    assert int(model.rho_optimizer.iterations) == 3


def test_a_schedule_of_rho_counts_rho_steps():
    schedule = optimizers.schedules.PiecewiseConstantDecay([1], [0.5, 0.0])
    model = compile_model(
        make_model(), rho_optimizer=optimizers.SGD(schedule), reg_freq=3
    )
    seen = []
    for _ in range(4):
        fit(model)
        seen.append(model.get_rho()["noise/scale"])
    # Steps 0 and 1 move it, 2 and 3 do not.
    assert len(set([0.5, *seen[:2]])) == 3
    assert seen[1] == seen[2] == seen[3]


def test_rho_end_at_their_average():
    """`average <- m average + (1 - m) rho`, from the first step's rho on."""
    model = compile_model(
        make_model(),
        rho_optimizer=optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5),
    )
    seen = []

    class Rho(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(float(self.model.rho_variables[0]))

    fit(model, callbacks=[Rho()])
    average = seen[0]
    for value in seen[1:]:
        average = 0.5 * average + 0.5 * value
    assert len(set(seen)) == 3
    assert float(model.rho_variables[0]) == pytest.approx(average, rel=1e-6)


def test_averages_of_rho_outlive_steps_of_theta():
    rho_optimizer = optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5)
    model = compile_model(make_model(), rho_optimizer=rho_optimizer)
    fit(model)
    model.freeze_rho()
    model.fit(*make_data(), verbose=0)
    # On JAX these steps give the arrays of frozen rho away.
    assert_same(averages(rho_optimizer), values(model.rho_variables))


def test_rho_that_never_learned_stay_where_they_are():
    # The averages are still zero.
    model = compile_model(
        make_model(),
        rho_optimizer=optimizers.SGD(0.5, use_ema=True),
        reg_freq=100,
    )
    with pytest.warns(UserWarning, match="there were 3"):
        fit(model)
    assert model.get_rho()["noise/scale"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "scaled", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_averages_wait_for_the_merged_epochs(scaled):
    seen = {}
    for use_ema in (False, True):
        optimizer = optimizers.SGD(0.1, use_ema=use_ema, ema_momentum=0.9)
        if scaled:
            optimizer = optimizers.LossScaleOptimizer(optimizer, 64)
        model = compile_model(make_model(), optimizer=optimizer)
        weights = Weights()
        fit(model, epochs=2, merge_epochs=1, callbacks=[weights])
        seen[use_ema] = weights.seen
    # All the way theta is where it would be without averages.
    assert_same(seen[False], seen[True])
    # At the end it is the average.
    assert_same(averages(optimizer), values(model.theta_variables))
    assert not np.array_equal(seen[True][-1], model.theta_variables[-1])


def test_averages_end_a_run_that_stops_before_the_merged_epochs():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    optimizer = optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9)
    model = compile_model(make_model(), optimizer=optimizer)
    fit(model, epochs=3, merge_epochs=1, callbacks=[Stop()])
    assert_same(averages(optimizer), values(model.theta_variables))


class Halved(optimizers.schedules.LearningRateSchedule):
    """Without a `get_config`, which training does not need."""

    def __call__(self, step):
        return 0.1 * 0.5 ** keras.ops.cast(step, "float32")


@pytest.mark.parametrize("name", ["optimizer", "rho_optimizer"])
def test_a_schedule_that_keras_cannot_copy_trains(name, tmp_path):
    model = compile_model(make_model(), **{name: optimizers.SGD(Halved())})
    before = values(model.rho_variables + model.theta_variables)
    fit(model)
    after = values(model.rho_variables + model.theta_variables)
    assert all((a != b).any() for a, b in zip(before, after, strict=True))
    message = f"`{name}` cannot be copied.*Received: {name}=<keras"
    with pytest.raises(ValueError, match=message):
        kcr.refit(model, *make_data(), verbose=0)
    # As `keras.Model` does, of its one.
    with pytest.raises((ValueError, NotImplementedError), match="get_config"):
        model.save(tmp_path / "model.keras")
