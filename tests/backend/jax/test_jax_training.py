"""What JAX alone could break: arrays that a step gives away, and traces."""

import signal
import subprocess
import sys

import jax
import keras
import numpy as np
import pytest
from helpers import assert_same
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from helpers import values

import keras_crossreg as kcr


def is_whole(model):
    """Whether every variable can be read, and the model trains on."""
    optimizers = model.optimizer.variables + model.rho_optimizer.variables
    for array in values(model.variables + optimizers):
        assert np.isfinite(array).all()
    before = values(model.weights)
    history = fit(model).history
    assert np.isfinite(history["loss"]).all()
    return any(
        (a != b).any()
        for a, b in zip(before, values(model.weights), strict=True)
    )


class Raise(keras.callbacks.Callback):
    """Raises as Ctrl-C does, in one method of a callback."""

    def __init__(self, name):
        super().__init__()
        setattr(self, name, self.interrupt)

    def interrupt(self, *args, **kwargs):
        raise KeyboardInterrupt


@pytest.mark.parametrize("jit_compile", [True, False])
def test_a_generator_that_ends_leaves_the_model_whole(jit_compile):
    model = compile_model(make_model(), jit_compile=jit_compile)
    x, y = make_data(4, 1)
    with pytest.raises(ValueError, match="`reg_data` ran out of batches"):
        fit(model, reg_data=((x, y) for _ in range(2)), epochs=3)
    # As many steps were taken as there were batches, and one of theta.
    assert int(model.rho_optimizer.iterations.value) == 2
    assert int(model.optimizer.iterations.value) == 3
    assert is_whole(model)


def test_training_data_that_raise_leave_the_model_whole():
    def batches():
        x, y = make_data(8)
        for _ in range(4):
            yield x, y
        raise RuntimeError("the disk is gone")

    model = compile_model(make_model())
    with pytest.raises(RuntimeError, match="the disk is gone"):
        fit(model, x=batches(), y=None, batch_size=None)
    assert int(model.optimizer.iterations.value) == 4
    assert is_whole(model)


@pytest.mark.parametrize(
    "name",
    [
        "on_train_batch_begin",
        "on_train_batch_end",
        "on_epoch_begin",
        "on_test_batch_end",
        "on_epoch_end",
    ],
)
def test_an_interrupt_leaves_the_model_whole(name):
    model = compile_model(make_model())
    fit(model)
    with pytest.raises(KeyboardInterrupt):
        fit(model, callbacks=[Raise(name)], validation_data=make_data(8, 2))
    assert is_whole(model)


def test_batches_by_hand_after_a_fit():
    model = compile_model(make_model(), metrics=["accuracy"])
    fit(model)
    x, y = make_data(8, 2)
    whole = model.evaluate(x, y, batch_size=8, verbose=0)
    np.testing.assert_allclose(model.test_on_batch(x, y), whole, rtol=1e-6)
    np.testing.assert_allclose(
        model.predict_on_batch(x), model.predict(x, verbose=0), rtol=1e-6
    )
    before = values(model.theta_variables)
    model.train_on_batch(x, y, reg_data=make_data(8, 3))
    assert not np.array_equal(before[0], values(model.theta_variables)[0])


@pytest.mark.parametrize("method", ["evaluate", "predict", "predict_samples"])
def test_data_that_raise_leave_a_model_that_predicts_whole(method):
    def batches():
        yield make_data(8) if method == "evaluate" else make_data(8)[:1]
        raise RuntimeError("the disk is gone")

    model = compile_model(make_model())
    fit(model)
    before = values(model.weights)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        getattr(model, method)(batches(), verbose=0)
    assert_same(before, values(model.weights))
    assert is_whole(model)


def test_a_signal_while_a_step_runs_leaves_the_model_whole():
    model = compile_model(make_model())
    x, y = make_data(4096)
    arguments = dict(reg_data=make_data(64, 1), verbose=0, shuffle=False)
    model.fit(x, y, batch_size=16, **arguments)
    for delay in np.linspace(0.001, 0.2, 12):
        steps = int(model.optimizer.iterations.value)
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, delay)
        try:
            model.fit(x, y, batch_size=16, epochs=100, **arguments)
        except KeyboardInterrupt:
            pass
        assert np.isfinite(values(model.variables)[0]).all()
        assert int(model.optimizer.iterations.value) >= steps
    assert is_whole(model)


def test_a_closure_reads_the_newest_weights_in_mid_epoch():
    model = compile_model(make_model())
    seen = []
    read = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_, **__: seen.append(
            (values(model.theta_variables), model.get_rho())
        )
    )
    fit(model, callbacks=[read])
    assert len(seen) == 3
    assert_same(seen[-1][0], values(model.theta_variables))
    assert seen[-1][1] == model.get_rho()
    assert not np.array_equal(seen[0][0][0], seen[1][0][0])


def test_no_two_models_share_an_array():
    model = compile_model(make_model())
    fit(model)
    x, y = make_data()
    final = kcr.refit(model, x, y, epochs=1, verbose=0)
    copies = [kcr.add_noise(model, after="classes"), final]
    before = values(model.weights)
    for copy in copies:
        mine = {id(v.value) for v in model.variables}
        assert not mine & {id(v.value) for v in copy.variables}
    fit(final, reg_data=None) if not final.rho_variables else None
    assert_same(before, values(model.weights))


def test_rho_that_becomes_trainable_learns_all_the_same():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4)(inputs)
    norm = keras.layers.BatchNormalization()
    outputs = keras.layers.Dense(2, activation="softmax")(norm(x))
    model = kcr.CrossRegModel(inputs, outputs)
    compile_model(model, rho="gamma$")
    norm.trainable = True
    before = values([norm.gamma])
    fit(model, reg_data=make_data(48, 1))
    assert (before[0] != values([norm.gamma])[0]).any()


def test_a_variable_that_keras_does_not_know_moves_too():
    class Counts(kcr.CrossRegModel):
        def rho_step(self, data, train_data=None):
            count[0].assign_add(1.0)
            return super().rho_step(data, train_data)

    # Keras does not track it, and a step that is compiled would take its
    # value for a constant.
    count = [keras.Variable(0.0, trainable=False)]
    model = compile_model(make_model(cls=Counts))
    fit(model, epochs=2)
    assert float(count[0].value) == 6.0


def test_each_step_is_compiled_once():
    calls = []

    class Noting(kcr.CrossRegModel):
        def train_step(self, *args):
            calls.append("theta")
            return super().train_step(*args)

        def rho_step(self, *args):
            calls.append("rho")
            return super().rho_step(*args)

    model = compile_model(make_model(cls=Noting))
    fit(model, epochs=3)
    assert calls == ["theta", "rho"]


def test_tensorflow_and_torch_are_never_imported(tmp_path):
    code = "\n".join(
        [
            "import sys",
            "sys.modules['tensorflow'] = None",
            "from helpers import *",
            "model = compile_model(make_model(), metrics=['accuracy'])",
            "fit(model, epochs=2, validation_data=make_data(8, 2))",
            "x, y = make_data()",
            "model.predict(x, verbose=0)",
            "model.save(sys.argv[1])",
            "keras.saving.load_model(sys.argv[1]).evaluate(x, y, verbose=0)",
            "kcr.refit(model, x, y, epochs=1, verbose=0)",
            "assert 'torch' not in sys.modules",
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ":".join(p for p in sys.path if p))
        result = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "model.keras")],
            capture_output=True,
            text=True,
        )
    assert not result.returncode, result.stderr


@pytest.mark.slow
def test_memory_of_many_samples_is_that_of_one_pass():
    def bytes_of(num_samples):
        inputs = keras.Input((256,))
        x = keras.layers.Dense(512, "relu")(inputs)
        x = kcr.layers.GaussianNoiseScale()(x)
        x = keras.layers.Dense(512, "relu")(x)
        outputs = keras.layers.Dense(2, activation="softmax")(x)
        model = kcr.CrossRegModel(inputs, outputs)
        compile_model(model, num_samples=num_samples, samples_per_pass=16)
        rng = np.random.default_rng(0)
        x = rng.normal(size=(128, 256)).astype("float32")
        y = np.arange(128) % 2
        model.train_on_batch(x, y)
        model.rho_optimizer.build(model.rho_variables)

        def step(values, batch):
            pairs = zip(model.variables, values, strict=True)
            with keras.StatelessScope(list(pairs)):
                return model.rho_step(batch)

        compiled = jax.jit(step).lower(
            [v.value for v in model.variables], (x, y)
        )
        return compiled.compile().memory_analysis().temp_size_in_bytes

    # XLA takes what is the same in all passes out of their loop, which costs
    # a part of a pass once: two passes take what sixteen do.
    assert bytes_of(256) < 1.1 * bytes_of(32)
    assert bytes_of(256) < 1.5 * bytes_of(16)
