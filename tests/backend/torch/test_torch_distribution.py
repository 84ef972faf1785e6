"""Two processes of `torch.distributed` on a CPU."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

WORKER = pathlib.Path(__file__).parent / "distribution" / "worker.py"


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    workers = [
        subprocess.Popen(
            [sys.executable, WORKER, str(rank), "2", port, tmp_path / "end"],
            env={**os.environ, "KERAS_BACKEND": "torch"},
        )
        for rank in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    one, other = (np.load(tmp_path / f"end.{rank}.npz") for rank in range(2))
    for name in set(one.files) - {"noise"}:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-6)
    # Rho learn, and each process draws noise of its own.
    assert (one["rho"] != np.float32(np.log(np.expm1(0.5)))).all()
    assert not np.isin(one["noise"], other["noise"]).any()
