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


@pytest.mark.parametrize("kind", ["data", "model"])
@pytest.mark.parametrize("devices", [2, 4])
def test_several_devices_are_as_one(devices, kind, one):
    many = run(devices, kind)
    assert set(many) == set(one)
    for name, expected in one.items():
        found = many[name]
        # The kernels are where the layout says.
        sharded = [s for s in found["sharding"] if "model" in s]
        assert bool(sharded) == (kind == "model")
        for part in ("history", "rho", "predictions", "spread"):
            np.testing.assert_allclose(
                flat(found[part]),
                flat(expected[part]),
                rtol=1e-5,
                atol=1e-5,
                err_msg=f"{name}: {part}",
            )


def test_noise_is_independent_on_each_device(one):
    # The halves of a batch are on two devices, where noise of equal seeds
    # would make equal spreads of equal examples. The spreads are those of one
    # device, on which no two examples have the same noise.
    many = run(2, "data")["direct"]["spread"]
    np.testing.assert_allclose(many, one["direct"]["spread"], atol=1e-5)
    assert len(set(many)) == len(many)
