"""Several replicas: on two devices of one machine, and on two machines.

TensorFlow configures devices and clusters before anything else, so that the
checks run in processes of their own.
"""

import ast
import json
import os
import pathlib
import re
import shlex
import socket
import subprocess
import sys
import xml.etree.ElementTree

import keras
import numpy as np
import pytest
from helpers import assert_same
from helpers import compile_model
from helpers import make_data
from helpers import values
from still import still_model
from still import train

import keras_crossreg as kcr

HERE = pathlib.Path(__file__).parent
FOLDER = HERE / "distribution"
ROOT = HERE.parents[2]


def environment(**kwargs):
    folders = [ROOT, ROOT / "tests", HERE, os.environ.get("PYTHONPATH", "")]
    paths = map(str, folders)
    # No GPU: it would be one for all.
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **kwargs,
    }


def names_in(file):
    """The tests in a file, without their parameters."""
    tree = ast.parse((FOLDER / file).read_text())
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


RESULTS = {}


def run_tests(file, folder, timeout):
    """Runs a file of tests in a process of its own, once.

    Returns:
        `{name: [failures]}`
    """
    if file not in RESULTS:
        report = folder / "report.xml"
        process = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
            + [f"--junitxml={report}", str(FOLDER / file)],
            env=environment(),
            cwd=ROOT,
            timeout=timeout,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert report.exists(), process.stdout
        results = RESULTS[file] = {}
        for case in xml.etree.ElementTree.parse(report).iter("testcase"):
            name = case.attrib["name"].split("[")[0]
            failures = results.setdefault(name, [])
            failures += [
                f"{case.attrib['name']}: {child.text}"
                for child in case
                if child.tag in ("failure", "error", "skipped")
            ]
    return RESULTS[file]


@pytest.mark.slow
@pytest.mark.parametrize("name", names_in("mirrored.py"))
def test_mirrored_strategy(name, tmp_path):
    failures = run_tests("mirrored.py", tmp_path, timeout=900)[name]
    assert not failures, "\n".join(failures)


@pytest.mark.slow
@pytest.mark.parametrize("name", names_in("mirrored_grid.py"))
def test_mirrored_strategy_with(name, tmp_path):
    failures = run_tests("mirrored_grid.py", tmp_path, timeout=3600)[name]
    assert not failures, "\n".join(failures)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def run_all(commands, timeout):
    """Runs commands beside each other; none of them outlives this call."""
    processes = []
    try:
        for arguments, variables in commands:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *map(str, arguments)],
                    env=environment(**variables),
                    cwd=ROOT,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        outputs = [p.communicate(timeout=timeout)[0] for p in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs


def as_workers(script, *arguments, config=None):
    """The commands that run a script as two workers."""
    config = config or {"cluster": {}, "task": {"type": "worker"}}
    ports = free_ports(2)
    config["cluster"]["worker"] = [f"localhost:{port}" for port in ports]
    for index in range(2):
        config["task"]["index"] = index
        yield [script, *arguments], dict(TF_CONFIG=json.dumps(config))


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    run_all(as_workers(FOLDER / "worker.py", folder), timeout=600)
    return folder, [dict(np.load(folder / f"worker_{i}.npz")) for i in (0, 1)]


@pytest.fixture(scope="module")
def two_workers_with(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    run_all(as_workers(FOLDER / "worker_grid.py", folder), timeout=1800)
    return [dict(np.load(folder / f"worker_{i}.npz")) for i in (0, 1)]


def part(kept, prefix):
    """What a worker kept under names that start so."""
    return {n: a for n, a in kept.items() if n.startswith(prefix)}


@pytest.mark.slow
def test_two_workers_train_as_one_device(two_workers):
    _, kept = two_workers
    model, history = train(
        compile_arguments=dict(run_eagerly=True), validation_data=None
    )
    for worker in kept:
        logs = {f"log {name}": value for name, value in history.items()}
        assert set(part(worker, "log")) == set(logs)
        weights = {
            f"weight {i}": v for i, v in enumerate(values(model.weights))
        }
        assert set(part(worker, "weight")) == set(weights)
        for name, value in {**logs, **weights}.items():
            np.testing.assert_allclose(
                worker[name], value, rtol=1e-5, atol=1e-5, err_msg=name
            )


@pytest.mark.slow
def test_two_workers_stay_equal(two_workers):
    _, (first, second) = two_workers
    for prefix in ("log", "weight"):
        ours, theirs = part(first, prefix), part(second, prefix)
        assert ours
        assert_same([*ours.values()], [*theirs.values()])


@pytest.mark.slow
def test_what_the_chief_saved(two_workers):
    folder, (first, _) = two_workers
    model = keras.saving.load_model(folder / "model.keras")
    assert_same(values(model.weights), [*part(first, "weight").values()])
    assert int(model.rho_optimizer.iterations) == 4


@pytest.mark.slow
def test_every_worker_draws_noise_of_its_own(two_workers):
    _, (first, second) = two_workers
    assert (first["noise"] != second["noise"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["arrays", "dataset"])
def test_every_worker_sees_its_part_of_the_regularization_set(
    two_workers, form
):
    # Three batches of four: a pass over the twelve.
    parts = [worker[f"rows of {form}"] for worker in two_workers[1]]
    assert [p.shape for p in parts] == [(3, 2), (3, 2)]
    rows = np.concatenate(parts, axis=1)
    np.testing.assert_array_equal(np.sort(rows, axis=None), np.arange(12))
    if form == "dataset":
        np.testing.assert_array_equal(rows, np.arange(12).reshape(3, 4))


@pytest.mark.slow
def test_both_workers_refuse_too_small_a_batch(two_workers):
    for worker in two_workers[1]:
        assert "a batch of 1 examples" in str(worker["error"])


def assert_equal_models(workers, name, rho_steps):
    """The same steps, and the same weights, which it returns."""
    first, second = (part(worker, name) for worker in workers)
    assert_same([*first.values()], [*second.values()])
    assert first[f"{name}: rho steps"] == rho_steps
    return [*part(first, f"{name}: weight").values()]


def assert_close(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_workers_stay_in_step_where_their_data_end_at_different_times(
    two_workers_with,
):
    # Twice the longer one's ten batches of one row for each worker, which
    # Keras counts as eleven: the one that is not there, too.
    assert_equal_models(two_workers_with, "different lengths", 10)


@pytest.mark.slow
def test_train_on_batches_of_their_own(two_workers_with):
    weights = assert_equal_models(two_workers_with, "own batches", 1)
    model = compile_model(still_model(batch_norm=False))
    both, reg_both = (
        [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        for parts in (
            [make_data(4, seed=seed) for seed in (0, 1)],
            [make_data(3, seed=seed) for seed in (2, 3)],
        )
    )
    model.train_on_batch(*both, reg_data=tuple(reg_both))
    assert_close(weights, values(model.weights))


@pytest.mark.slow
def test_workers_evaluate_and_predict(two_workers_with):
    first, second = (part(worker, "used") for worker in two_workers_with)
    assert_same([*first.values()], [*second.values()])
    model, history = train(compile_arguments=dict(run_eagerly=True), epochs=2)
    x, y = make_data(7, seed=3)
    expected = [
        history["val_loss"],
        model.evaluate(x, y, verbose=0),
        model.predict(x, verbose=0),
        model.predict_samples(x, 2, verbose=0),
    ]
    assert_close(first.values(), expected)


@pytest.mark.slow
def test_workers_merge_epochs(two_workers_with):
    weights = assert_equal_models(two_workers_with, "merged", 3)
    model, _ = train(
        compile_arguments=dict(run_eagerly=True),
        make=lambda: still_model(batch_norm=False),
        merge_epochs=1,
        reg_data=make_data(16, seed=1),
    )
    assert_close(weights, values(model.weights))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resumed", "backed up"])
def test_workers_go_on_where_they_stopped(two_workers_with, name):
    weights = assert_equal_models(two_workers_with, name, 4)
    model, _ = train(compile_arguments=dict(run_eagerly=True))
    assert_close(weights, values(model.weights))


# The page, and the script that it runs.

PAGE = (ROOT / "docs" / "distribution.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


def test_the_page_shows_the_script():
    script = (ROOT / "examples" / "distributed.py").read_text()
    assert len(blocks("py")) == 3
    for block in blocks("py"):
        assert block in script


@pytest.mark.slow
def test_the_page_on_one_machine(tmp_path):
    command = shlex.split(blocks("bash")[0])
    assert command[0] == "python"
    saved = tmp_path / "model.keras"
    arguments = [*command[1:], "--epochs", 1, "--save", saved]
    (output,) = run_all([(arguments, {})], timeout=600)
    assert "1 replicas, test accuracy" in output
    assert isinstance(keras.saving.load_model(saved), kcr.CrossRegModel)


@pytest.mark.slow
def test_the_page_on_two_machines(tmp_path):
    setting, command = blocks("bash")[1].splitlines()
    config = json.loads(shlex.split(setting)[1].removeprefix("TF_CONFIG="))
    assert len(config["cluster"]["worker"]) == 2
    saved = tmp_path / "model.keras"
    arguments = [*shlex.split(command)[1:], "--epochs", 2, "--save", saved]
    chief, other = run_all(as_workers(*arguments, config=config), timeout=600)
    assert "2 replicas, test accuracy" in chief
    assert "replicas" not in other
    assert isinstance(keras.saving.load_model(saved), kcr.CrossRegModel)
