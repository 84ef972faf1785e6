"""The benchmark of steps and predictions, on the backend that is set."""

import pathlib
import runpy
import sys

import keras
import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.filterwarnings("ignore:Rho took")
def test_a_small_run(capsys, monkeypatch):
    folder = ROOT / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    script = str(folder / "step_ratio.py")
    monkeypatch.setattr(sys, "argv", [script, "--smoke"])
    runpy.run_path(script, run_name="__main__")
    first, _, *table = capsys.readouterr().out.splitlines()
    assert first.endswith(keras.backend.backend())
    rows = [[cell.strip() for cell in line.split("|")] for line in table[2:]]
    for network in ("dense", "cnn"):
        found = {
            kind: step for _, name, kind, step, *_ in rows if name == network
        }
        assert found["GaussianNoise"] == "1.00 (1.00 to 1.00)"
        assert len(found) == 7
        assert all(float(step.split()[0]) > 0 for step in found.values())
