"""Models whose class trains, tests or predicts in a way of its own."""

import keras
import numpy as np
import pytest
from helpers import IS_JAX
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model

import keras_crossreg as kcr


class OwnTest(kcr.CrossRegModel):
    """Measures the loss itself, as Keras's guide does."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.own_loss = keras.metrics.Mean(name="loss")

    def test_step(self, data):
        x, y = data
        y_pred = self(x, training=False)
        self.own_loss.update_state(self.compute_loss(y=y, y_pred=y_pred))
        return {"loss": self.own_loss.result()}


class OwnTestOnJax(OwnTest):
    """The same, as Keras's guide for JAX does."""

    def test_step(self, state, data):
        x, y = data
        y_pred, rest = self.stateless_call(*state[:2], x, training=False)
        loss, state = self.stateless_compute_loss(
            state[0], rest, state[2], x=x, y=y, y_pred=y_pred, training=False
        )
        pairs = list(zip(self.metrics_variables, state[2], strict=True))
        with keras.StatelessScope(pairs) as scope:
            self.own_loss.update_state(loss)
            logs = {"loss": self.own_loss.result()}
        moved = [scope.get_current_value(v) for v in self.metrics_variables]
        return logs, (*state[:2], moved)


OWN_TEST = OwnTestOnJax if IS_JAX else OwnTest


def test_a_test_step_of_ones_own_sees_averaged_predictions():
    x, y = make_data()
    arguments = dict(batch_size=24, verbose=0, return_dict=True)
    losses = []
    for cls in (OWN_TEST, kcr.CrossRegModel):
        model = compile_model(make_model(cls=cls))
        losses.append(model.evaluate(x, y, **arguments)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    # Without noise it is another number.
    model.set_rho({"noise/scale": 0.0})
    noiseless = model.evaluate(x, y, **arguments)["loss"]
    assert noiseless != pytest.approx(losses[0], rel=1e-3)


def test_validation_by_a_test_step_of_ones_own():
    logs = [
        fit(
            compile_model(make_model(cls=cls)),
            validation_data=make_data(8, seed=2),
            validation_batch_size=8,
        ).history["val_loss"]
        for cls in (OWN_TEST, kcr.CrossRegModel)
    ]
    np.testing.assert_allclose(*logs, rtol=1e-6)


def test_a_call_in_training_mode_stays_one():
    # Monte Carlo dropout by hand, in a test step of one's own.
    class ByHand(kcr.CrossRegModel):
        def predict_step(self, *args):
            *state, data = args
            x, *_ = keras.utils.unpack_x_y_sample_weight(data)
            if state:
                return self.stateless_call(*state[0], x, training=True)
            return self(x, training=True)

    x, _ = make_data()
    model = make_model(cls=ByHand)
    # Each is of noise of its own; averages repeat.
    first, second = (model.predict(x, verbose=0) for _ in range(2))
    assert not np.array_equal(first, second)


class Own(keras.Model):
    def train_step(self, data):
        return {"loss": 0.0}

    def compute_loss(self, **kwargs):
        return 0.0


class OwnWithCall(keras.Model):
    def call(self, inputs):
        return inputs

    def train_step(self, data):
        return {"loss": 0.0}


@pytest.mark.parametrize(
    "function", [kcr.wrap, kcr.add_noise, kcr.learn_regularizers]
)
def test_steps_that_would_be_left_out_are_refused(function):
    inputs = keras.Input((3,))
    x = keras.layers.Dense(2, activation="relu")(inputs)
    model = Own(inputs, keras.layers.Dense(2)(x))
    message = (
        f"`{function.__name__}` trains .* does in `train_step`, "
        "`compute_loss`. Derive `Own` .*Received: model="
    )
    with pytest.raises(ValueError, match=message):
        function(model)


def test_a_wrapped_class_with_a_call_of_its_own_too():
    with pytest.raises(ValueError, match="Derive `OwnWithCall` from"):
        kcr.wrap(OwnWithCall())


def test_models_without_steps_of_their_own_are_wrapped():
    class Plain(keras.Model):
        def call(self, inputs):
            return inputs

    assert isinstance(kcr.wrap(Plain()), kcr.CrossRegModel)


@pytest.mark.parametrize("weights", [False, True])
def test_a_rho_step_of_ones_own_gets_the_batch_as_it_is(weights):
    class Own(kcr.CrossRegModel):
        def rho_step(self, data, train_data=None):
            sizes.append(len(data))
            return super().rho_step(data, train_data)

    sizes = []
    # Eagerly: a step that is compiled is traced once.
    model = compile_model(make_model(cls=Own), run_eagerly=True)
    reg_data = make_data(12, seed=1)
    if weights:
        reg_data += (np.ones(12, "float32"),)
    fit(model, reg_data=reg_data)
    assert sizes == [2 + weights] * 3
