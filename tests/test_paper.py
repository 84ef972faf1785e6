"""The scripts of the paper's tables, at the scale of seconds."""

import importlib
import json
import pathlib

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets")

PAPER = pathlib.Path(__file__).parents[1] / "examples" / "paper"


def random_images(name, split):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 32, 32, 3)).astype("float32")
    return x, rng.integers(0, 10, 400).astype("int32")


@pytest.fixture
def script(monkeypatch):
    """Imports a script; random images where CIFAR-10 is not installed."""
    monkeypatch.syspath_prepend(PAPER)
    if not tfds.builder("cifar10").data_path.exists():
        common = importlib.import_module("common")
        monkeypatch.setattr(
            common.Experiment, "_load", staticmethod(random_images)
        )
    return importlib.import_module


def test_calibration_makes_a_table_and_resumes(script, tmp_path, capsys):
    calibration = script("calibration")
    runs = {
        name: calibration.RUNS[name]
        for name in ("uncalibrated", "temperature scaling", "cross-regularized")
    }
    arguments = ["--scale", "smoke", "--out", str(tmp_path)]

    def run():
        calibration.main("Title.", "calibration", runs, arguments)
        lines = (tmp_path / "calibration-smoke.jsonl").read_text()
        return [json.loads(line) for line in lines.splitlines()]

    rows = run()
    assert [row["run"] for row in rows] == list(runs)
    # A run that was interrupted goes on with what is missing.
    (tmp_path / "calibration-smoke.jsonl").write_text(
        json.dumps(rows[0]) + "\n"
    )
    capsys.readouterr()
    again = run()
    assert "uncalibrated\n" not in capsys.readouterr().out.split("| run")[0]
    assert again[0] == rows[0] and len(again) == 3
    for first, second in zip(rows, again, strict=True):
        for score in ("accuracy", "nll", "brier", "ece"):
            assert np.isfinite(first[score])
            assert second[score] == pytest.approx(first[score], rel=1e-4)
    page = (tmp_path / "calibration-smoke.md").read_text()
    assert "| cross-regularized" in page and "not with published" in page
    assert (tmp_path / "calibration-smoke.png").stat().st_size > 1000
