"""Every rho has a key of its own, wherever rho are named."""

import keras
import numpy as np
import pytest
from helpers import compile_model
from helpers import make_data

import keras_crossreg as kcr


def tower(name, scale):
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4, name="dense")(inputs)
    x = kcr.layers.GaussianNoiseScale(scale, name="noise")(x)
    return keras.Model(inputs, x, name=name)


def two_towers():
    """Layers of the same names in two nested models."""
    inputs = keras.Input((3,))
    towers = [tower("left", 0.1)(inputs), tower("right", 0.5)(inputs)]
    x = keras.layers.Concatenate()(towers)
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    return kcr.CrossRegModel(inputs, outputs)


LEFT, RIGHT = "left/noise/scale", "right/noise/scale"


def test_rho_of_one_path_are_told_apart_by_their_models():
    model = two_towers()
    assert len({v.path for v in model.rho_variables}) == 1
    assert model.get_rho() == pytest.approx({LEFT: 0.1, RIGHT: 0.5})
    model.set_rho({RIGHT: 0.7})
    assert model.get_rho() == pytest.approx({LEFT: 0.1, RIGHT: 0.7})


def test_rho_of_one_path_in_one_model_are_numbered():
    class Pair(kcr.CrossRegModel):
        def __init__(self):
            super().__init__()
            self.noise = [
                kcr.layers.GaussianNoiseScale(scale, name="noise")
                for scale in (0.1, 0.5, 0.9)
            ]

        def call(self, inputs):
            for layer in self.noise:
                inputs = layer(inputs)
            return inputs

    model = Pair()
    model(np.zeros((1, 3), "float32"))
    first, *others = model.get_rho()
    assert others == [f"{first}_1", f"{first}_2"]
    assert list(model.get_rho().values()) == pytest.approx([0.1, 0.5, 0.9])


def test_learned_regularizers_of_one_path_are_numbered():
    inputs = keras.Input((3,))
    towers = []
    for name in ("left", "right"):
        regularizer = kcr.regularizers.LearnedL2()
        inner = keras.Input((3,))
        dense = keras.layers.Dense(
            4, kernel_regularizer=regularizer, name="dense"
        )
        towers.append(keras.Model(inner, dense(inner), name=name)(inputs))
    model = kcr.CrossRegModel(inputs, keras.layers.Add()(towers))
    assert list(model.get_rho()) == [
        "dense/kernel/l2_norm",
        "dense/kernel/l2_norm_1",
    ]


def test_a_path_of_its_own_stays_the_key():
    inputs = keras.Input((3,))
    model = kcr.CrossRegModel(inputs, tower("only", 0.3)(inputs))
    assert list(model.get_rho()) == [v.path for v in model.rho_variables]


def test_keys_stay_over_saving_cloning_and_refitting(tmp_path):
    model = compile_model(two_towers())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_rho() == model.get_rho()
    clone = keras.models.clone_model(model)
    assert list(clone.get_rho()) == [LEFT, RIGHT]
    final = kcr.refit(model, *make_data(), verbose=0)
    assert final.get_rho() == model.get_rho()


def test_a_history_and_its_replay_have_both():
    model = compile_model(two_towers())
    record = kcr.callbacks.RhoHistory()
    history = model.fit(
        *make_data(),
        batch_size=8,
        reg_data=make_data(24, seed=1),
        epochs=2,
        callbacks=[record],
        verbose=0,
    ).history
    assert list(record.history) == [LEFT, RIGHT]
    assert list(record.meanings) == [LEFT, RIGHT]
    assert {f"rho/{LEFT}", f"rho/{RIGHT}"} <= set(history)
    final = kcr.refit(model, *make_data(), schedule=record, epochs=2, verbose=0)
    assert final.get_rho() == pytest.approx(model.get_rho(), rel=1e-5)
    assert final.get_rho()[LEFT] != pytest.approx(final.get_rho()[RIGHT])


def test_an_unknown_key_names_those_there_are():
    with pytest.raises(ValueError, match="left/noise.*Received: path=noise"):
        two_towers().set_rho({"noise/scale": 0.1})
