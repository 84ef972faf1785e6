"""Several devices of Keras's `distribution` compute what one does."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

WORKER = pathlib.Path(__file__).parent / "distribution" / "worker.py"

pytestmark = pytest.mark.slow


def run(devices, kind):
    """What the worker writes, on so many virtual devices."""
    result = subprocess.run(
        [sys.executable, str(WORKER), str(devices), kind],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
    )
    assert not result.returncode, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def one():
    return run(1, "one")


def flat(structure):
    """All numbers of a structure, in order."""
    if isinstance(structure, dict):
        return [v for k in sorted(structure) for v in flat(structure[k])]
    if isinstance(structure, list):
        return [v for part in structure for v in flat(part)]
    return [structure]


DEVICES = [(n, kind) for n in (2, 4) for kind in ("data", "model")]


@pytest.fixture(scope="module")
def many():
    """The runs on several devices, each made once."""
    made = {}

    def made_once(devices, kind):
        if (devices, kind) not in made:
            made[devices, kind] = run(devices, kind)
        return made[devices, kind]

    return made_once


def assert_equal(name, found, expected):
    for part in ("history", "rho", "predictions", "spread"):
        np.testing.assert_allclose(
            flat(found[part]),
            flat(expected[part]),
            rtol=1e-5,
            atol=1e-5,
            err_msg=f"{name}: {part}",
        )


@pytest.mark.parametrize(("devices", "kind"), DEVICES)
def test_several_devices_are_as_one(devices, kind, one, many):
    runs = many(devices, kind)
    assert set(runs) == set(one)
    for name, found in runs.items():
        # The kernels are where the layout says.
        sharded = [s for s in found["sharding"] if "model" in s]
        assert bool(sharded) == (kind == "model")
        assert_equal(name, found, one[name])


def test_noise_is_independent_on_each_device(one, many):
    # The halves of a batch are on two devices, where noise of equal seeds
    # would make equal spreads of equal examples. The spreads are those of one
    # device, on which no two examples have the same noise.
    spread = many(2, "data")["direct"]["spread"]
    np.testing.assert_allclose(spread, one["direct"]["spread"], atol=1e-5)
    assert len(set(spread)) == len(spread)
