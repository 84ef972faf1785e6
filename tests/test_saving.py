"""What is saved is what is loaded, and training goes on from there."""

import pathlib
import pickle

import keras
import numpy as np
import pytest
import runs
from helpers import Configured
from helpers import assert_same
from helpers import assert_same_state
from helpers import compile_model
from helpers import fit
from helpers import make_data
from helpers import make_model
from helpers import random_states
from helpers import values
from runs import go_on

import keras_crossreg as kcr


def train(model):
    """Three steps, with a regularization set of one batch."""
    fit(model, reg_batch_size=12)
    return model


def compiled(model, eagerly=True):
    # Adam, whose state matters, and a rho step at every second step.
    return compile_model(
        model,
        optimizer=keras.optimizers.Adam(0.01),
        rho_optimizer=keras.optimizers.Adam(0.05),
        reg_freq=2,
        num_samples=3,
        eval_num_samples=5,
        reg_warmup=1,
        averaging="probabilities",
        metrics=["accuracy"],
        run_eagerly=eagerly,
    )


def built(kind):
    if kind == "functional":
        return make_model()
    if kind == "subclassed":
        keras.utils.set_random_seed(0)
        return Configured(units=5)
    keras.utils.set_random_seed(0)
    layers = make_model().layers[1:]
    return kcr.wrap(keras.Sequential(layers))


@pytest.mark.parametrize("kind", ["functional", "subclassed", "wrapped"])
def test_round_trip(kind, tmp_path):
    model = train(compiled(built(kind)))
    assert int(model.rho_optimizer.iterations) == 1
    model.freeze_rho()
    path = tmp_path / "model.keras"
    model.save(path)
    # Warnings are errors here: no optimizer state may be dropped.
    loaded = keras.models.load_model(path)
    assert isinstance(loaded, kcr.CrossRegModel)
    assert_same(values(model.weights), values(loaded.weights))
    for name in ("optimizer", "rho_optimizer"):
        old, new = getattr(model, name), getattr(loaded, name)
        assert_same(values(old.variables), values(new.variables))
        assert old.get_config() == new.get_config()
    x, _ = make_data(9, seed=2)
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), loaded.predict(x, verbose=0)
    )
    assert loaded.predict_samples(x, verbose=0).shape == (5, 9, 2)
    for name, value in model.get_compile_config().items():
        assert loaded.get_compile_config()[name] == value, name
    assert loaded.get_compile_config()["rho_frozen"] is True


@pytest.mark.parametrize(
    ("kind", "eagerly"),
    [
        pytest.param("functional", False, marks=pytest.mark.slow),
        ("subclassed", True),
        pytest.param("wrapped", True, marks=pytest.mark.slow),
    ],
)
def test_training_goes_on_as_if_nothing_had_been(kind, eagerly, tmp_path):
    # After 6 steps, a warm-up of 1 and a rho step in every second, the next
    # rho step is one step away, with the third batch of three.
    model = go_on(compiled(built(kind), eagerly))
    model.save(tmp_path / "model.keras")
    go_on(model)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    go_on(loaded)
    assert_same_state(runs.state(loaded), runs.state(model))


def test_all_that_is_saved_counts(tmp_path):
    model = go_on(compiled(make_model()), epochs=1)
    model.save(tmp_path / "model.keras")
    go_on(model, epochs=1)
    # The noise, the phase, the batch that comes next.
    for disturb in (
        lambda m: random_states(m)[0].assign([7, 7]),
        lambda m: m.optimizer.iterations.assign_add(1),
        lambda m: m.rho_optimizer.iterations.assign_add(1),
    ):
        loaded = keras.models.load_model(tmp_path / "model.keras")
        disturb(loaded)
        go_on(loaded, epochs=1)
        assert (values(loaded.weights)[0] != values(model.weights)[0]).any()


@pytest.mark.slow
def test_training_goes_on_in_another_process(tmp_path):
    expected = {}
    for policy in ("float32", "mixed_float16"):
        model = go_on(runs.compiled(policy), epochs=4)
        model.save(tmp_path / f"{policy}.keras")
        expected[policy] = runs.state(go_on(model))
    assert runs.in_process(runs.go_on_with_files, tmp_path) == 0
    for policy, state in expected.items():
        assert_same_state(np.load(tmp_path / f"{policy}.npz"), state)


def test_weights(tmp_path):
    model = train(compiled(make_model()))
    for path in ("model.weights.h5", "model.weights.json", "model.keras"):
        path = tmp_path / path
        if path.suffix == ".keras":
            model.save(path)
        else:
            shards = 1e-6 if path.suffix == ".json" else None
            model.save_weights(path, max_shard_size=shards)
        # Keras loads no optimizer that has not trained yet.
        other = make_model(seed=5)
        other.load_weights(path)
        compiled(other)
        assert model.get_rho() == other.get_rho()
        x, _ = make_data()
        np.testing.assert_array_equal(
            model.predict(x, verbose=0), other.predict(x, verbose=0)
        )


def test_weights_with_both_optimizers(tmp_path):
    model = go_on(compiled(make_model()), epochs=1)
    model.save_weights(tmp_path / "model.weights.h5")
    go_on(model, epochs=1)
    other = compiled(make_model(seed=5))
    other.optimizer.build(other.theta_variables)
    other.rho_optimizer.build(other.rho_variables)
    other.load_weights(tmp_path / "model.weights.h5")
    assert_same_state(runs.state(go_on(other, epochs=1)), runs.state(model))


def test_weights_to_and_from_keras_models(tmp_path):
    path = tmp_path / "model.weights.h5"
    x, _ = make_data()
    for source, target in (
        (kcr.CrossRegModel, keras.Model),
        (keras.Model, kcr.CrossRegModel),
    ):
        model = make_model(cls=source)
        model.save_weights(path)
        other = make_model(seed=5, cls=target)
        other.load_weights(path)
        assert_same(values(model.weights), values(other.weights))
        np.testing.assert_array_equal(model(x), other(x))


def test_old_hdf5_files_are_refused(tmp_path):
    model = compiled(make_model())
    with pytest.raises(ValueError, match=r"\.keras.*Received: filepath=.*h5$"):
        model.save(tmp_path / "model.h5")
    # Without rho there is nothing that it would lose.
    model = make_model(rho=False)
    model.save(tmp_path / "model.h5")
    loaded = keras.models.load_model(
        tmp_path / "model.h5",
        custom_objects={"CrossRegModel": kcr.CrossRegModel},
    )
    assert_same(values(model.weights), values(loaded.weights))


def test_old_files_keep_loading():
    folder = pathlib.Path(__file__).parent / "data"
    expected = dict(np.load(folder / "0.1.0.npz"))
    model = keras.models.load_model(folder / "0.1.0.keras")
    model.run_eagerly = True
    x = expected.pop("x")
    np.testing.assert_allclose(
        model(x), expected.pop("predictions"), rtol=1e-4, atol=1e-6
    )
    steps = [int(o.iterations) for o in (model.optimizer, model.rho_optimizer)]
    assert steps == expected.pop("steps").tolist() == [9, 4]
    noise = model.get_layer("noise")
    np.testing.assert_array_equal(
        noise.seed_generator.state, expected.pop("seed")
    )
    rho = {path.replace("/", " "): v for path, v in model.get_rho().items()}
    assert set(rho) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(rho[name], value, rtol=1e-5)
    settings = model.get_compile_config()
    assert settings["averaging"] == "probabilities"
    assert [settings[k] for k in ("num_samples", "reg_freq", "reg_warmup")] == [
        3,
        2,
        1,
    ]
    assert model.predict_samples(x, verbose=0).shape == (5, 5, 2)
    # It trains on.
    x = np.random.default_rng(0).normal(size=(118, 4, 4, 1))
    y = np.arange(118) % 2
    model.fit(x[:8], y[:8], reg_data=(x[8:], y[8:]), verbose=0)
    assert int(model.optimizer.iterations) == 10


def test_a_model_that_is_not_compiled(tmp_path):
    model = make_model()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert not loaded.compiled
    assert_same(values(model.weights), values(loaded.weights))


@pytest.mark.parametrize("kind", ["functional", "subclassed", "wrapped"])
def test_pickle(kind):
    model = train(compiled(built(kind)))
    loaded = pickle.loads(pickle.dumps(model))
    assert isinstance(loaded, kcr.CrossRegModel)
    assert_same(values(model.weights), values(loaded.weights))
    for name in ("optimizer", "rho_optimizer"):
        old, new = getattr(model, name), getattr(loaded, name)
        assert_same(values(old.variables), values(new.variables))


def test_optimizers_keep_their_names(tmp_path):
    model = compile_model(make_model(), optimizer="adam", rho_optimizer="adam")
    train(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for name in ("optimizer", "rho_optimizer"):
        old, new = getattr(model, name), getattr(loaded, name)
        assert old.get_config() == new.get_config()


@keras.saving.register_keras_serializable("tests")
class OtherCompile(Configured):
    """Compiles with an argument of its own."""

    def compile(self, rate, **kwargs):
        super().compile(keras.optimizers.SGD(rate), **kwargs)


def test_a_compile_of_ones_own_is_left_to_its_author(tmp_path):
    # As in `keras.Model`: loaded, not compiled, and a warning that says so.
    model = OtherCompile()
    model.compile(0.1, loss="mse")
    model(make_data()[0])
    model.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match=r"`compile\(\)` was not called"):
        loaded = keras.models.load_model(tmp_path / "model.keras")
    assert getattr(loaded, "optimizer", None) is None
    assert_same(values(model.weights), values(loaded.weights))


def test_mixed_precision(tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = train(compiled(make_model()))
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy(before)
    for name in ("optimizer", "rho_optimizer"):
        old, new = getattr(model, name), getattr(loaded, name)
        assert type(old) is type(new) is keras.optimizers.LossScaleOptimizer
        assert_same(values(old.variables), values(new.variables))


@pytest.mark.parametrize("kind", ["functional", "subclassed", "wrapped"])
def test_copies(kind):
    model = compiled(built(kind))
    model(make_data()[0])
    model.freeze_rho()
    shapes = [v.shape for v in model.weights]
    clone = keras.models.clone_model(model)
    copy = type(model).from_config(model.get_config())
    copy(make_data()[0])
    for other in (clone, copy):
        assert isinstance(other, kcr.CrossRegModel)
        assert len(other.rho_variables) == 1
        assert [v.shape for v in other.weights] == shapes
        assert {id(v) for v in other.weights}.isdisjoint(map(id, model.weights))
    # As Keras does it, a clone is compiled and a copy is not.
    assert not copy.compiled
    assert clone.get_compile_config() == model.get_compile_config()
    clone.unfreeze_rho()
    go_on(clone, epochs=1)
    assert int(clone.rho_optimizer.iterations) == 1
    assert int(model.optimizer.iterations) == 0
