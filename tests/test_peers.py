"""The benchmark against other ways to learn a strength, on a few rows."""

import importlib
import json
import pathlib

import keras
import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Imports a module of the benchmarks."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def layer(script):
    """Concrete Dropout in front of a dense layer of known weights."""
    concrete = script("peer_runs.concrete_dropout")
    layer = concrete.ConcreteDropout(
        keras.layers.Dense(2, use_bias=False),
        rows=50,
        length_scale=0.5,
        initial_rate=0.2,
    )
    layer.build((None, 3))
    layer.layer.kernel.assign([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    return layer


def test_concrete_dropout_has_the_published_loss(layer):
    layer(np.ones((4, 3), "float32"))
    squares, p = 91.0, 0.2
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    expected = 0.25 / 50 * squares / (1 - p) - 3 / 50 * entropy
    assert np.allclose(layer.losses[0], expected, rtol=1e-5)


def test_concrete_dropout_drops_at_its_rate_and_keeps_the_mean(layer):
    keras.utils.set_random_seed(0)
    inputs = np.zeros((20000, 3), "float32")
    inputs[:, 0] = 1.0
    outputs = np.asarray(layer(inputs))[:, 0]
    # The relaxed mask is binary but for about one in fifty. Both bounds are
    # five standard errors, and what the relaxation moves the mean by.
    assert abs((outputs < 0.5 / 0.8).mean() - 0.2) < 0.015
    assert abs(outputs.mean() - 1.0) < 0.03


def test_concrete_dropout_learns_its_rate_from_training(script, layer):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.Adam(0.1), "mse")
    before = float(keras.ops.stop_gradient(layer.rate))
    # The loss of an input that is dropped is large: the rate falls.
    x = np.ones((64, 3), "float32")
    y = x @ np.asarray(layer.layer.kernel)
    model.fit(x, y, epochs=20, batch_size=16, verbose=0)
    assert float(keras.ops.stop_gradient(layer.rate)) < 0.6 * before


def test_batches_hold_every_row_once(script):
    problem = script("peer_runs.problem")
    x = np.arange(10.0)[:, None]
    batches = problem.Batches((x, np.arange(10)), 4, seed=0)
    first, second = list(batches), list(batches)
    assert [len(y) for _, y, _ in first] == [4, 4, 2]
    orders = [np.concatenate([y for _, y, _ in b]) for b in (first, second)]
    assert (np.sort(orders) == np.arange(10)).all()
    assert (orders[0] != orders[1]).any()
    for x, y, _ in first:
        assert (x[:, 0] == y).all()


def test_lines_count_neither_docstrings_nor_comments(script):
    problem = script("peer_runs.problem")
    run = problem.Run(None, None, (problem.Batches,))
    # Of `Batches`: the class, three heads, two lines of `__init__`, four of
    # `__iter__` and two of `forever`.
    assert run.lines == 12


def test_a_missing_package_is_named(script, tmp_path, monkeypatch):
    peers = script("peers")
    monkeypatch.setitem(peers.NEEDS, "betty", "no_such_package")
    out = tmp_path / "peers.jsonl"
    with pytest.raises(SystemExit, match="betty-ml==0.2.1.*no_such_package"):
        peers.main(["--out", str(out), "--smoke", "--peer", "betty"])
    assert not out.exists()


@pytest.mark.slow
def test_command_trains_times_and_resumes(
    script, tmp_path, monkeypatch, capsys
):
    peers = script("peers")
    runs = ("plain", "concrete_dropout", "noise+merge")
    monkeypatch.setitem(peers.PEERS, "keras", runs)
    out = tmp_path / "peers.jsonl"
    command = ["--out", str(out), "--peer", "keras", "--seeds", "0"]
    peers.main([*command, "--smoke"])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["run"], row["what"]) for row in rows] == [
        ("plain", "quality"),
        ("concrete_dropout", "quality"),
        ("concrete_dropout", "time"),
        ("noise+merge", "quality"),
    ]
    plain, concrete, timed, ours = rows
    for row in (plain, concrete, ours):
        assert np.isfinite(row["nll"])
        assert 0 <= row["accuracy"] <= 1
        assert row["memory"] >= row["memory_before"] > 0
    assert timed["time"] > 0
    assert len(concrete["learned"]) == len(ours["learned"]) == 3
    assert plain["lines"] < ours["lines"] < concrete["lines"]
    peers.main([*command, "--smoke"])
    assert len(out.read_text().splitlines()) == len(rows)
    capsys.readouterr()
    peers.main([*command, "--table"])
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + len(runs)
    assert len({line.count("|") for line in table}) == 1
