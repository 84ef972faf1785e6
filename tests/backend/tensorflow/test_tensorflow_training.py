"""How TensorFlow trains: traces, pipelines and strategies."""

import keras
import numpy as np
import tensorflow as tf
from form_checks import numbers
from form_checks import quiet
from form_checks import rho_steps
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from helpers import recording_model

import keras_crossreg as kcr


def test_each_step_is_traced_once():
    traces = []

    class Counter(kcr.layers.RhoLayer):
        def build(self, input_shape):
            self.rho = self.add_rho("scale", start=0.1)

        def call(self, inputs, training=False, sampling=None):
            traces.append("rho" if sampling else "theta")
            return inputs * self.rho_value(self.rho, sampling)

    inputs = keras.Input((3,))
    outputs = keras.layers.Dense(2)(Counter()(inputs))
    model = kcr.CrossRegModel(inputs, outputs)
    compile_model(model, loss="mse", optimizer="adam", run_eagerly=False)
    x, _ = make_data()
    y = np.zeros((len(x), 2))
    traces.clear()
    reg_x, _ = make_data(13, seed=1)
    reg_data = (reg_x, y[:13])
    arguments = dict(x=x, y=y, reg_data=reg_data, reg_batch_size=5)
    fit(model, epochs=10, **arguments)
    # Of rho, one for each of both sets, and one for the check that the gradient
    # reaches it.
    assert sorted(traces) == 3 * ["rho"] + ["theta"]
    model.freeze_rho()
    fit(model, **arguments)
    model.unfreeze_rho()
    fit(model, epochs=3, **arguments)
    assert len(traces) == 4


def test_a_rho_step_every_r_of_a_strategy():
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
    with strategy.scope():
        model = compile_model(make_model(), reg_freq=2, run_eagerly=False)
    history = fit(model, epochs=2).history
    assert rho_steps(model) == 3
    assert np.isfinite(history["reg_loss"]).all()


# TensorFlow's tuner of pipelines sleeps for as long as it has run, and whoever
# drops an iterator, as each `fit` does at its end, waits for it.
@quiet
def test_the_pipeline_of_a_stream_is_not_tuned(monkeypatch):
    strategy = tf.distribute.get_strategy()
    distribute, given = strategy.experimental_distribute_dataset, []

    def noted(dataset, *args, **kwargs):
        given.append(dataset)
        return distribute(dataset, *args, **kwargs)

    monkeypatch.setattr(strategy, "experimental_distribute_dataset", noted)
    model, _ = recording_model()
    x = np.full((3, 1), -1.0)
    model.fit(x, x, batch_size=1, reg_data=numbers(10), verbose=0)
    (first, _) = next(iter(given[0]))
    # The first is of the regularization set: there, no example is negative.
    assert (first.numpy() >= 0).all()
    assert given[0].options().autotune.enabled is False


def test_train_on_batch_makes_no_pipeline(monkeypatch):
    # Which takes a hundred times as long as the step of a small model.
    def forbidden(*args, **kwargs):
        raise AssertionError

    model = compile_model(make_model())
    monkeypatch.setattr(tf.data.Dataset, "__init__", forbidden)
    model.train_on_batch(*make_data(), reg_data=make_data(12, seed=1))
    assert rho_steps(model) == 1
