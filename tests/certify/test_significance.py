"""p-values against published values, exact sums and a second library."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from certbench.certify.intervals import cp_lower
from certbench.certify.radii import radius_one
from certbench.certify.significance import (
    high_probability_slack,
    holm,
    paired_test,
    predict_pvalue,
    radius_pvalue,
)
from certbench.errors import CertbenchError


def test_the_radius_pvalue_decides_like_the_limit():
    counts = np.arange(97800, 97940)
    decided = radius_pvalue(counts, 100000, 1.0, 0.5) <= 0.001
    radii = radius_one(cp_lower(counts, 100000, 0.001), 0.5)
    assert np.array_equal(decided, radii >= 1.0)
    assert counts[decided][0] == 97870
    exact = stats.binom.sf(97869, 100000, ndtr(2.0))
    assert radius_pvalue(97870, 100000, 1.0, 0.5) == pytest.approx(exact, rel=1e-9)
    assert radius_pvalue(0, 10, 0.3, 0.5) == 1.0


@pytest.mark.parametrize(
    ("n1", "n2", "p", "predicts"),
    [
        (10, 0, 0.001953125, False),
        (11, 0, 0.0009765625, True),
        (60, 40, 0.05688793364, False),
        (66, 34, 0.001789930391, False),
        (67, 33, 0.0008737198369, True),
        (75, 25, 5.636282034e-07, True),
        (510, 490, 0.5479727459, False),
        (550, 450, 0.001730536085, False),
        (552, 448, 0.001115049179, False),
        (553, 447, 0.0008899859648, True),
        (600, 400, 2.728464156e-10, True),
        (50520, 49480, 0.001017533801, False),
        (50521, 49479, 0.000994924582, True),
        (70, 20, 1.136356508e-07, True),
        (3, 1, 0.625, False),
        (0, 0, 1.0, False),
        (5, 5, 1.0, False),
    ],
)
def test_predict_pvalues(n1, n2, p, predicts):
    value = predict_pvalue(n1, n2)
    assert isinstance(value, float) and value == pytest.approx(p, rel=1e-9)
    assert (value <= 0.001) is np.bool_(predicts)
    if n1 + n2:
        assert value == pytest.approx(stats.binomtest(n1, n1 + n2, 0.5).pvalue, rel=1e-9)


def test_slack_of_the_dataset_statement():
    assert high_probability_slack(500, 0.001, 0.001) == pytest.approx(4 / 500)
    assert high_probability_slack(10000, 0.001, 0.001) == pytest.approx(21 / 10000)
    for m, alpha, rho in ((1, 0.001, 0.01), (50, 0.05, 0.1), (427, 0.001, 0.4)):
        q = round(high_probability_slack(m, alpha, rho) * m)
        assert stats.binom.sf(q, m, alpha) <= rho
        assert q == 0 or stats.binom.sf(q - 1, m, alpha) > rho


def test_paired_test_counts_discordant_items_only():
    a = np.array([True] * 70 + [False] * 30)
    b = np.array([True] * 60 + [False] * 10 + [True] * 2 + [False] * 28)
    result = paired_test(a, b)
    assert (result.only_a, result.only_b) == (10, 2)
    assert result.difference == pytest.approx(0.08)
    assert result.p_value == pytest.approx(stats.binomtest(10, 12, 0.5).pvalue)
    assert paired_test([], []).p_value == 1.0 and math.isnan(paired_test([], []).difference)
    with pytest.raises(CertbenchError, match="shapes"):
        paired_test(a, b[:-1])
    with pytest.raises(CertbenchError, match="booleans"):
        paired_test([1, 0], [1, 1])


def test_paired_test_holds_its_level():
    # Two models of equal accuracy; exact level by summing over the discordant split of 30 items.
    k = np.arange(31)
    level = stats.binom.pmf(k, 30, 0.5)[predict_pvalue(k, 30 - k) <= 0.05].sum()
    assert 0.01 < level <= 0.05


def test_holm_steps_down_and_stops():
    rejected = holm([0.001, 0.04, 0.012, 0.02], 0.05)
    assert rejected.tolist() == [True, True, True, True]
    assert holm([0.013, 0.2, 0.3, 0.001], 0.05).tolist() == [True, False, False, True]
    assert holm([0.02, 0.001, 0.9], 0.05).tolist() == [True, True, False]
    # A small later p-value does not rescue one above its threshold.
    assert holm([0.03, 0.03, 0.03], 0.05).tolist() == [False, False, False]
    assert holm([], 0.05).tolist() == []
