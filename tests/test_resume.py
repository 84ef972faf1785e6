"""A run that is killed goes on in another process as if it had not been."""

import signal

import keras
import numpy as np
import pytest
import runs
from helpers import Configured
from helpers import assert_same_state
from helpers import compile_model
from helpers import fit

pytestmark = pytest.mark.backend


@pytest.mark.parametrize(
    ("kind", "deaths"),
    [
        # While rho learn; and with rho frozen.
        ("float32", [(2, 1)]),
        pytest.param("float32", [(5, 2)], marks=pytest.mark.slow),
        pytest.param("compiled", [(2, 1), (5, 2)], marks=pytest.mark.slow),
        # At the switch, where averages are not to be put in place yet.
        pytest.param("averages", [(4, 0), (5, 2)], marks=pytest.mark.slow),
        # When loss scaling has left out steps, of theta and of rho.
        pytest.param("mixed_float16", [(2, 1)], marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed(kind, deaths, tmp_path):
    expected = runs.train(kind)
    for at in deaths:
        code = runs.in_process(runs.train, kind, tmp_path, at)
        assert code == -signal.SIGKILL
    assert runs.in_process(runs.train, kind, tmp_path) == 0
    assert_same_state(np.load(tmp_path / "state.npz"), expected)


def test_a_model_that_has_not_seen_data_can_be_backed_up(tmp_path):
    # Keras asks that it is built before.
    backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
    model = compile_model(Configured())
    fit(model, epochs=2, callbacks=[backup])
    assert int(model.optimizer.iterations) == 6
    assert not (tmp_path / "backup").exists()
