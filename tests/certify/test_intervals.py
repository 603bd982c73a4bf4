"""Confidence limits against exact sums over the binomial, a second library and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from certbench.certify.intervals import binomial_interval, cp_lower, cp_lower_randomised, cp_upper
from certbench.certify.radii import radius_one


def test_the_smallest_certifying_count_sits_just_above_one_half():
    assert cp_lower(50490, 100000, 0.001) == pytest.approx(0.5000089488, abs=1e-9)
    assert cp_lower(1, 100000, 0.001) == pytest.approx(1.0005e-8, rel=1e-4)


def test_scalars_give_scalars_and_arrays_keep_their_shape():
    assert isinstance(cp_lower(5, 10, 0.05), float)
    assert cp_upper(np.array([[1, 2, 3]]), 10, 0.05).shape == (1, 3)
    assert cp_lower(np.array([], dtype=np.int64), 10, 0.05).shape == (0,)


def test_no_samples_say_nothing():
    assert cp_lower(0, 0, 0.001) == 0.0
    assert cp_upper(0, 0, 0.001) == 1.0
    assert cp_lower_randomised(0, 0, 0.1, 0.01) == 0.0


@pytest.mark.parametrize(
    ("p", "n", "alpha", "miss"),
    [
        (0.5, 100, 0.001, 0.0008949652),
        (0.9, 1000, 0.05, 0.0485025069),
        (0.9, 1000, 0.001, 0.0008603278),
        (0.99, 10000, 0.05, 0.0455191598),
        (0.99, 10000, 0.001, 0.0009255700),
        (0.999, 10000, 0.05, 0.0291959502),
        (0.5, 10000, 0.05, 0.0494690459),
        (0.75, 500, 0.05, 0.0425412114),
        (0.6, 200, 0.1, 0.0843977820),
    ],
)
def test_exact_miscoverage_by_summing_the_binomial(p, n, alpha, miss):
    k = np.arange(n + 1)
    pmf = stats.binom.pmf(k, n, p)
    exact = pmf[cp_lower(k, n, alpha) > p].sum()
    assert exact == pytest.approx(miss, abs=1e-6)
    assert exact <= alpha
    # By simulation within 4 standard errors: false-alarm probability 6e-5 per case.
    draws = np.random.default_rng(20260728).binomial(n, p, size=40000)
    seen = np.mean(cp_lower(draws, n, alpha) > p)
    assert abs(seen - exact) <= 4 * math.sqrt(exact * (1 - exact) / draws.size) + 1 / draws.size


@pytest.mark.parametrize("p", [0.04, 0.3, 0.5, 0.8, 0.97])
def test_upper_limits_two_sided_intervals_and_bound_pairs_cover_by_exact_sums(p):
    n, alpha = 120, 0.05
    k = np.arange(n + 1)
    pmf = stats.binom.pmf(k, n, p)
    assert 0 < pmf[cp_upper(k, n, alpha) < p].sum() <= alpha
    low, high = binomial_interval(k, n, 0.95)
    assert pmf[(low <= p) & (p <= high)].sum() >= 0.95
    # Randomised limit: averaged over the coin the miss is alpha itself (midpoint rule, 100 coins;
    # at a coin below 2 alpha and nA = n the coin is rounded up, which only lowers the miss).
    coins = (np.arange(100) + 0.5) / 100
    miss = np.mean([pmf[cp_lower_randomised(k, n, alpha, u) > p].sum() for u in coins])
    # Each count's share of coins is resolved to half a step.
    assert miss <= alpha + pmf.max() / 200
    assert miss >= alpha - pmf.max() / 200 - 2 * alpha * pmf[n]


@pytest.mark.parametrize("n", [7, 50, 300])
def test_limits_agree_with_a_second_library(n):
    from statsmodels.stats.proportion import proportion_confint

    for k in range(0, n + 1, 3):
        low, high = proportion_confint(k, n, alpha=0.002, method="beta")
        assert cp_lower(k, n, 0.001) == pytest.approx(low, abs=1e-12)
        assert cp_upper(k, n, 0.001) == pytest.approx(high, abs=1e-12)
        w_low, w_high = proportion_confint(k, n, alpha=0.05, method="wilson")
        low, high = binomial_interval(k, n, 0.95, method="wilson")
        assert (low, high) == (pytest.approx(w_low, abs=1e-12), pytest.approx(w_high, abs=1e-12))


def test_limits_solve_their_defining_equation():
    for k, n in ((1, 10), (5, 10), (990, 1000), (99000, 100000)):
        low, high = cp_lower(k, n, 0.001), cp_upper(k, n, 0.001)
        assert stats.binom.sf(k - 1, n, low) == pytest.approx(0.001, rel=1e-6)
        assert stats.binom.cdf(k, n, high) == pytest.approx(0.001, rel=1e-6)
        for u in (0.1, 0.5, 0.9):
            p = cp_lower_randomised(k, n, 0.001, u)
            tail = stats.binom.sf(k, n, p) + u * stats.binom.pmf(k, n, p)
            assert tail == pytest.approx(0.001, rel=1e-6)


def test_randomised_limits():
    for u, limit in ((1.0, 0.9889893404), (0.5, 0.9889944544), (0.1, 0.9889987262)):
        assert cp_lower_randomised(99000, 100000, 0.001, u) == pytest.approx(limit, abs=1e-9)
    cap = radius_one(cp_lower_randomised(100000, 100000, 0.001, 0.5), 1.0)
    assert cap == pytest.approx(3.8375, abs=5e-5)
    counts = np.arange(101)
    assert np.allclose(
        cp_lower_randomised(counts, 100, 0.01, 1.0), cp_lower(counts, 100, 0.01), atol=1e-14
    )
    # A tiny coin must not certify everything from a few agreeing votes.
    assert cp_lower_randomised(20, 20, 0.001, 1e-9) < 1
    assert cp_lower_randomised(0, 20, 0.01, 0.5) == 0.0
    no_votes = cp_lower_randomised(0, 20, 0.01, 0.001)
    assert 1 - 0.999 * (1 - no_votes) ** 20 == pytest.approx(0.01, rel=1e-9)
