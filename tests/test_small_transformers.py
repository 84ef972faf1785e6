"""The example with transformers, at the scale of seconds."""

import importlib
import json
import pathlib

import keras
import numpy as np
import pytest

import keras_crossreg as kcr

pytestmark = pytest.mark.slow

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
WORDS = np.array("good bad dull fine film plot actor scene".split())


def random_sentences():
    # Words become numbers by Keras's `TextVectorization`, which needs it.
    pytest.importorskip("tensorflow")
    rng = np.random.default_rng(0)
    rows = [" ".join(rng.choice(WORDS, 12)) for _ in range(500)]
    return np.array(rows), np.arange(500, dtype="int32") % 2


@pytest.fixture
def transformers(monkeypatch):
    """The module, with few examples, and no sentences but random ones."""
    policy = keras.config.dtype_policy()
    for name in ("matplotlib", "pandas", "rich", "sklearn"):
        pytest.importorskip(name)
    monkeypatch.syspath_prepend(EXAMPLES)
    module = importlib.import_module("small_transformers")
    monkeypatch.setattr(module, "load_reviews", random_sentences)
    for name, task in list(module.TASKS.items()):

        def small(seed, task=task):
            result = task(seed, size=400, test=50)
            result.depth = 1
            return result

        monkeypatch.setitem(module.TASKS, name, small)
    monkeypatch.setattr(module, "SAMPLES", 9)
    # Five times as fast, where there is little to do.
    compile = kcr.CrossRegModel.compile

    def eagerly(*args, **kwargs):
        few = dict(num_samples=2, reg_freq=2, run_eagerly=True)
        compile(*args, **{**few, **kwargs})

    monkeypatch.setattr(kcr.CrossRegModel, "compile", eagerly)
    yield module
    # Where a task was skipped, it is still that of the example.
    keras.config.set_dtype_policy(policy)


def test_it_makes_a_table_and_a_figure_and_resumes(
    transformers, tmp_path, capsys
):
    arguments = ["--data", "reviews", "--seeds", "0", "--epochs", "1"]
    arguments += ["--out", str(tmp_path)]
    transformers.main(arguments)
    lines = (tmp_path / "transformers.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 4
    for row in rows:
        assert np.isfinite([row[name] for name in ("nll", "ece", "loss")]).all()
    learned = rows[2]["rho"]
    assert len(learned) == 4
    for path, values in learned.items():
        assert values != ([0.1] if path.endswith("rate") else [0.3])
    assert "refitted" in capsys.readouterr().out
    assert (tmp_path / "transformers.png").stat().st_size > 1000
    assert keras.config.dtype_policy().name == "float32"

    def train(task):
        raise AssertionError

    transformers.runs = train
    transformers.main(arguments)


@pytest.mark.parametrize("name", ["digits", "reviews"])
def test_noise_is_added_to_a_transformer_with_gains(transformers, name):
    """`add_noise`: layers, operations and a mask in one graph."""
    task = transformers.TASKS[name](0)
    plain = transformers.build(task, transformers.Regularizers(), gain=True)
    plain = keras.Model(plain.input, plain.output)
    model = kcr.add_noise(plain)
    x, y = task.train
    np.testing.assert_allclose(model(x[:8]), plain(x[:8]), atol=1e-6)
    # Behind each normalization; none of the activations needs its own.
    assert len(model.rho_variables) == 3
    before = model.get_rho()
    model.compile("adam", "sparse_categorical_crossentropy", reg_freq=2)
    model.fit(x, y, batch_size=32, reg_data=task.reg, verbose=0)
    after = model.get_rho()
    assert all(after[path] != before[path] for path in before)
    assert np.isfinite(model.predict(x[:8], verbose=0)).all()
