"""The benchmark against hyperparameter search, at the scale of seconds."""

import functools
import importlib
import json
import pathlib
import sys

import numpy as np
import pytest

keras_tuner = pytest.importorskip("keras_tuner")
pytest.importorskip("sklearn")

pytestmark = pytest.mark.slow

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
SCORES = ("accuracy", "nll", "ece")


@pytest.fixture
def search(monkeypatch):
    """The script, on few digits."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = importlib.import_module("search")

    def few():
        data = script.digits()
        data.update(train=384, reg=64, batch_size=8)
        data.update(x=data["x"][:600], y=data["y"][:600])
        return data

    monkeypatch.setitem(script.DATA, "digits", few)
    return script


def test_search_makes_a_table_and_resumes(search, tmp_path, capsys):
    out = tmp_path / "search.jsonl"
    arguments = f"--out {out} --data digits --seeds 0 --trials 2 --epochs 1"
    runs = "no regularization", "cross-regularized", "random search, one rate"

    def run():
        search.main([*arguments.split(), "--run", *runs])
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        return rows, capsys.readouterr().out

    rows, _ = run()
    names = [row["run"] for row in rows]
    assert names == [*runs[:2], "cross-regularized, refitted", runs[2]]
    for row in rows:
        assert np.isfinite([row[score] for score in SCORES]).all()
        assert row["cpu_seconds"] > 0
    again, printed = run()
    assert again == rows
    assert ", seed 0" not in printed
    for name in names:
        assert f"| {name} " in printed


@pytest.mark.parametrize("regularizer", ["Dropout", "Noise"])
def test_the_best_rates_train_the_final_network(search, regularizer):
    problem = search.Problem("digits", getattr(search, regularizer), 0)
    problem.epochs = 1
    row = search.searched("random", shared=False)(problem, 2)[""]
    assert [len(trial["rates"]) for trial in row["trials"]] == [3, 3]
    best = min(row["trials"], key=lambda trial: trial["nll"])
    assert row["rates"] == best["rates"]
    # The copies have its weights.
    used = row[problem.regularizer.predicts]
    assert used["nll"] == pytest.approx(row["nll"], abs=1e-3)


def test_hyperband_goes_on_where_a_trial_stopped(search, monkeypatch):
    hyperband = functools.partial(keras_tuner.Hyperband, factor=2)
    monkeypatch.setattr(keras_tuner, "Hyperband", hyperband)
    problem = search.Problem("digits", search.Dropout, 0)
    problem.epochs = 2
    row = search.searched("hyperband", shared=False)(problem, 0)[""]
    lengths = [trial["epochs"] for trial in row["trials"]]
    assert set(lengths) == {1, 2}
    full = [t for t in row["trials"] if t["epochs"] == 2]
    best = min(full, key=lambda trial: trial["nll"])
    assert row["rates"] == best["rates"]


def test_the_worst_of_a_population_goes_on_from_the_best(search):
    pytest.importorskip("ray.tune")
    search.keras.utils.set_random_seed(0)  # As the command does.
    problem = search.Problem("digits", search.Noise, 0)
    problem.epochs = 2 * search.population.GENERATION
    # On what it was selected by.
    problem.test = problem.reg
    rows = search.population_based(4)(problem, 0)
    row, final = rows[""], rows[", refitted"]
    lengths = [trial["epochs"] for trial in row["trials"]]
    assert lengths == 4 * [search.population.GENERATION] + 4 * [problem.epochs]
    first = sorted(row["trials"][:4], key=lambda trial: trial["nll"])
    last = {trial["member"]: trial for trial in row["trials"][4:]}
    kept = [trial["rates"] == last[trial["member"]]["rates"] for trial in first]
    assert kept == [True, True, True, False]
    # The network that is scored is the best at the end.
    best = min(last.values(), key=lambda trial: trial["nll"])
    assert row["rates"] == final["rates"] == best["rates"]
    assert row["averaged"]["nll"] == pytest.approx(best["nll"], abs=0.03)
    assert final["cpu_seconds"] > row["cpu_seconds"] > 0


def test_a_population_without_ray_names_the_extra(search, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match=r"keras-crossreg\[search\]"):
        search.main(["--run", "PBT, population 4"])
