"""Ten trainings give what they gave before the neutral core was taken out."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
# What `ten_models.py` wrote on commit 189a8e4.
BEFORE = HERE / "189a8e4.npz"


@pytest.mark.slow
def test_ten_models_give_the_same_numbers(tmp_path):
    path = tmp_path / "now.npz"
    subprocess.run(
        [sys.executable, HERE / "ten_models.py", path],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        check=True,
    )
    before, now = np.load(BEFORE), np.load(path)
    assert set(before.files) == set(now.files)
    is_same_machine = before["machine"] == now["machine"]
    for name in set(before.files) - {"machine"}:
        if name.startswith("merge/"):
            # Its last epochs begin elsewhere now.
            continue
        found, expected = now[name], before[name]
        if "/history_reg_" in name:
            # An epoch without a rho step had no number then, and has one now.
            known = np.isfinite(expected)
            found, expected = found[known], expected[known]
        if name.startswith("augmentation/") and "accuracy" not in name:
            # The tangent of a shear is a sine over a cosine since then.
            np.testing.assert_allclose(
                found, expected, rtol=1e-4, atol=1e-6, err_msg=name
            )
        elif is_same_machine:
            np.testing.assert_array_equal(found, expected, err_msg=name)
        elif "accuracy" not in name and "evaluate" not in name:
            # Other processors round otherwise, and training goes on from
            # there.
            np.testing.assert_allclose(
                found, expected, rtol=1e-3, atol=1e-4, err_msg=name
            )
