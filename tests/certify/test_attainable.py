"""What n samples can certify: against published values and by exhaustion."""

import math
import subprocess
import sys

import numpy as np
import pytest

from certbench.certify.attainable import (
    ladder,
    ladder_inverse,
    ladder_share,
    minimum_predict_samples,
    minimum_samples,
    radius_cap,
    vote_threshold,
)
from certbench.certify.intervals import cp_lower
from certbench.certify.radii import radius_one, round_down
from certbench.errors import CertbenchError

TOLERANCE = 1e-9


@pytest.mark.parametrize(
    ("n", "cap", "threshold"),
    [
        (10, 0.0029759578, 10),
        (100, 1.5004750241, 66),
        (1000, 2.4632626148, 550),
        (10000, 3.1985775147, 5156),
        (100000, 3.8114565634, 50490),
        (1000000, 4.3467736987, None),
    ],
)
def test_cap_and_smallest_certifying_count(n, cap, threshold):
    assert radius_cap(n, 0.001, 1.0) == pytest.approx(cap, abs=TOLERANCE)
    if threshold is not None:
        assert vote_threshold(n, 0.001, 0.0, 0.5) == threshold


@pytest.mark.parametrize(
    ("radius", "count"), [(0.25, 69598), (0.5, 84492), (1.0, 97870), (1.5, 99900), (2.0, None)]
)
def test_vote_thresholds_for_a_radius(radius, count):
    assert vote_threshold(100000, 0.001, radius, 0.5) == count


def test_the_vote_threshold_is_the_smallest_count_by_exhaustion():
    for n, radius in ((30, 0.0), (30, 0.2), (200, 0.7), (9, 0.0)):
        radii = radius_one(cp_lower(np.arange(n + 1), n, 0.001), 0.5)
        certifying = np.flatnonzero((radii > 0) & (radii >= radius))
        expected = int(certifying[0]) if certifying.size else None
        assert vote_threshold(n, 0.001, radius, 0.5) == expected


@pytest.mark.parametrize(
    ("z", "n"), [(0.0, 10), (1, 40), (2, 301), (3, 5114), (3.5, 29691), (4, 218105), (5, 24098087)]
)
def test_minimum_samples_for_a_cap(z, n):
    assert minimum_samples(0.001, radius=z / 2, sigma=0.5) == n


def test_minimum_samples_to_answer_at_all():
    assert [minimum_samples(a) for a in (0.001, 0.01, 0.05)] == [10, 7, 5]
    assert [minimum_predict_samples(a) for a in (0.001, 0.01, 0.05)] == [11, 8, 6]
    # (2^-10)^(1/10) is exactly one half, which abstains.
    assert minimum_samples(2.0**-10) == 11
    with pytest.raises(CertbenchError, match="no feasible number"):
        minimum_samples(0.001, radius=20.0, sigma=0.25)


def test_ladder_and_its_inverse_round_trip():
    rungs = ladder(1000, 0.001, 0.25)
    assert rungs.shape == (1001,) and np.all(np.diff(rungs) >= 0)
    certifying = np.arange(550, 1001)
    assert np.all(rungs[:550] == 0) and np.all(rungs[550:] > 0)
    assert np.array_equal(ladder_inverse(rungs[550:], 0.25, 1000, 0.001), certifying)
    assert np.array_equal(ladder_inverse(round_down(rungs[550:]), 0.25, 1000, 0.001), certifying)
    assert ladder_inverse(0.0, 0.25, 1000, 0.001) == -1
    assert ladder_inverse(rungs[550] / 1e3, 0.25, 1000, 0.001) == 550
    with pytest.raises(CertbenchError, match="above"):
        ladder_inverse(0.9, 0.25, 1000, 0.001)
    with pytest.raises(CertbenchError, match="above"):
        ladder_inverse(0.1, 0.25, 5, 0.001)


def test_the_ladder_tells_the_alpha_of_a_log():
    votes = np.array([99990, 99999, 100000, 97001, 60005])
    logged = np.array([float(f"{r:.3g}") for r in ladder(100000, 0.01, 0.5)[votes]])
    assert ladder_share(logged, 0.5, 100000, 0.01) == 1.0
    assert ladder_share(logged, 0.5, 100000, 0.001) < 1.0
    assert ladder(100000, 0.001, 0.5)[-1] < 1.95
    assert ladder_share([1.95, 0.0, 0.0], 0.5, 100000, 0.001) == 0.0
    assert math.isnan(ladder_share([0.0], 0.5, 100000, 0.001))


@pytest.mark.parametrize("module", ["intervals", "radii", "attainable", "significance"])
def test_importing_the_statistics_loads_no_torch_and_no_distributions(module):
    code = (
        f"import sys, certbench.certify.{module}; "
        "print([name for name in ('torch', 'scipy.stats') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
