"""The example of a training set that grows, at the scale of seconds."""

import importlib
import pathlib

import numpy as np
import pytest

import keras_crossreg as kcr

pytestmark = pytest.mark.slow

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def random_images(split):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (300, 32, 32, 3), dtype="uint8")
    return x, rng.integers(0, 10, 300).astype("int32")


@pytest.fixture
def growing_data(monkeypatch):
    for name in ("matplotlib", "rich", "tensorflow_datasets"):
        pytest.importorskip(name)
    monkeypatch.syspath_prepend(EXAMPLES)
    module = importlib.import_module("growing_data")
    monkeypatch.setattr(module, "load", random_images)
    monkeypatch.setattr(module, "REG", 100)
    monkeypatch.setattr(module, "TEST", 50)
    monkeypatch.setattr(module, "CURVE", 20)
    monkeypatch.setattr(module, "FILTERS", (4, 4))
    monkeypatch.setattr(module, "REG_FREQ", 1)
    # Faster, where there is little to do.
    compile = kcr.CrossRegModel.compile

    def eagerly(*args, **kwargs):
        compile(*args, **kwargs, num_samples=2, run_eagerly=True)

    monkeypatch.setattr(kcr.CrossRegModel, "compile", eagerly)
    monkeypatch.setattr(module, "REG_BATCH_SIZE", 8)
    return module


def test_batches_go_through_all_the_images_in_turn(growing_data):
    x, y = random_images("train")
    stream = growing_data.batches(x, np.arange(300))
    labels = np.concatenate([next(stream)[1] for _ in range(75)])
    assert len(labels) == 75 * growing_data.BATCH_SIZE == 16 * 300
    for i in range(16):
        part = labels[300 * i : 300 * (i + 1)]
        assert sorted(part) == list(range(300))
        assert list(part) != list(range(300))


def test_rho_go_on_from_where_they_were(
    growing_data, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    runs = []

    class Run(growing_data.Run):
        def fit(self, size):
            runs.append((self, size, self.model.get_rho()))
            super().fit(size)

    monkeypatch.setattr(growing_data, "Run", Run)
    arguments = ["--sizes", "100", "200", "--steps", "4", "--points", "2"]
    growing_data.main(arguments)
    (growing, first, start), (again, second, later), (fresh, size, new) = runs
    assert again is growing and fresh is not growing
    assert (first, second, size) == (100, 200, 200)
    assert list(start.values()) == pytest.approx([0.3] * 3)
    assert new == start
    np.testing.assert_allclose(list(later.values()), growing.sigma[2])
    assert growing.at == [0, 2, 4, 6, 8] and len(growing.sigma) == 5
    assert all(len(values) == 4 for values in growing.losses.values())
    assert growing.model.optimizer.iterations == 8
    assert "fresh" in capsys.readouterr().out
    assert (tmp_path / "growing_data.png").stat().st_size > 1000
