"""What the paper proves of the method, by experiment: `examples/theory.py`."""

import importlib
import pathlib

import numpy as np
import pytest
import scipy.stats

pytestmark = pytest.mark.slow

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


@pytest.fixture
def theory(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("theory")


def test_the_alternation_converges_linearly_at_the_rate_of_its_eigenvalues(
    theory,
):
    distances, factor = theory.alternate(steps=200)
    late = slice(100, None)
    fit = scipy.stats.linregress(np.arange(200)[late], np.log(distances[late]))
    assert fit.rvalue**2 > 0.999
    assert np.exp(fit.slope) == pytest.approx(factor, abs=1e-3)


def test_the_excess_loss_is_that_of_k_numbers_learned_from_m_rows(theory):
    """It is a chi square of k freedoms over m, here the mean of 64.

    Four standard errors; the seeds are fixed. The variance of the noise is 1
    and a little more: theta too are learned.
    """
    for k, m in ((1, 200), (4, 200), (4, 800)):
        scaled = theory.excess(k, m) * m / k
        bound = 4 * np.sqrt(2 / (64 * k))
        assert abs(scaled.mean() - m / (m - k)) < bound + 0.05


def test_the_optimum_does_not_depend_on_the_start(theory):
    ends = [theory.ends_of_norm(s, "implicit", steps=3000) for s in (0.05, 5)]
    assert ends[0] == pytest.approx(ends[1], rel=0.01)
