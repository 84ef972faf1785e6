"""The notebooks run from their first cell to the last, at a small size."""

import json
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells_of(path, kind="code"):
    cells = json.loads(path.read_text())["cells"]
    return [c for c in cells if c["cell_type"] == kind]


def test_there_are_some():
    assert len(NOTEBOOKS) >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    for cell in cells_of(path):
        assert not cell["outputs"] and cell["execution_count"] is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path, monkeypatch):
    monkeypatch.setenv("CROSSREG_EPOCHS", "2")
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    for module in ("sklearn", "statsmodels"):
        pytest.importorskip(module)
    install, *cells = ("".join(c["source"]) for c in cells_of(path))
    assert install.splitlines()[-1].startswith("%pip install")
    namespace = {}
    for cell in cells:
        exec(compile(cell, path.name, "exec"), namespace)
    plt.close("all")
