"""What one thread asks of a model does not change another's answer."""

import threading

import keras
import numpy as np
import pytest
from helpers import compile_model
from helpers import make_data
from helpers import make_model

import keras_crossreg as kcr


@pytest.mark.parametrize("run_eagerly", [True, False])
def test_samples_in_one_thread_and_predictions_in_another(run_eagerly):
    x, _ = make_data()
    model = compile_model(make_model(), run_eagerly=run_eagerly)
    expected = model.predict(x, verbose=0).shape
    found, stop = [], threading.Event()

    def predict():
        while not stop.is_set():
            found.append(model.predict(x, verbose=0).shape)

    thread = threading.Thread(target=predict)
    thread.start()
    samples = []
    try:
        for num_samples in (3, 4, 3, 4):
            samples.append(model.predict_samples(x, num_samples, verbose=0))
    finally:
        stop.set()
        thread.join()
    assert set(found) == {expected}
    assert [s.shape for s in samples] == [(k, 24, 2) for k in (3, 4, 3, 4)]


def test_samples_leave_the_predict_function_alone():
    x, _ = make_data()
    model = compile_model(make_model())
    model.predict(x, verbose=0)
    function = model.predict_function
    model.predict_samples(x, 3, verbose=0)
    assert model.predict_function is function


def test_samples_of_a_predict_step_of_ones_own():
    class Own(kcr.CrossRegModel):
        def predict_step(self, *args):
            *state, data = args
            x, *_ = keras.utils.unpack_x_y_sample_weight(data)
            if not state:
                return {"twice": 2 * self(x, training=False)}
            # On JAX.
            y, rest = self.stateless_call(*state[0], x, training=False)
            return {"twice": 2 * y}, rest

    x, _ = make_data()
    model = make_model(cls=Own)
    plain = make_model()
    samples = model.predict_samples(x, 5, verbose=0)
    assert set(samples) == {"twice"}
    np.testing.assert_allclose(
        samples["twice"], 2 * plain.predict_samples(x, 5, verbose=0), rtol=1e-5
    )
