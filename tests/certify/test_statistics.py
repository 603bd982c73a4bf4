"""Bounds and radii against published values, exact sums over the binomial, and simulation."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtr, ndtri

from certbench.certify.noise import ESTIMATION, philox_normal
from certbench.certify.statistics import (
    binomial_interval,
    cp_lower,
    cp_lower_randomised,
    cp_upper,
    high_probability_slack,
    holm,
    incremental_radius,
    ladder,
    ladder_inverse,
    ladder_share,
    median_smoothing_indices,
    minimum_predict_samples,
    minimum_samples,
    paired_test,
    predict_pvalue,
    radius_cap,
    radius_l1_laplace,
    radius_l1_uniform,
    radius_linf_from_l2,
    radius_linf_uniform,
    radius_one,
    radius_pvalue,
    radius_two,
    round_down,
    two_bounds,
    vote_threshold,
)
from certbench.errors import CertbenchError

TOLERANCE = 1e-9

# nA, N, alpha, sigma, lower limit, radius (0.0 where it abstains).
GOLDEN = [
    (100, 100, 0.001, 0.25, 0.9332543008, 0.3751187560),
    (99, 100, 0.001, 0.50, 0.9113731113, 0.6746295194),
    (80, 100, 0.001, 0.50, 0.6535572713, 0.1974711595),
    (66, 100, 0.001, 0.50, 0.5016499513, 0.0020679132),
    (65, 100, 0.001, 0.50, 0.4913756115, 0.0),
    (10, 10, 0.001, 1.00, 0.5011872336, 0.0029759578),
    (9, 9, 0.001, 1.00, 0.4641588834, 0.0),
    (1000, 1000, 0.001, 0.25, 0.9931160484, 0.6158156537),
    (990, 1000, 0.001, 0.25, 0.9760361872, 0.4945023955),
    (900, 1000, 0.001, 0.50, 0.8674640180, 0.5572415811),
    (549, 1000, 0.001, 1.00, 0.4996730641, 0.0),
    (10000, 10000, 0.001, 0.50, 0.9993094630, 1.5992887574),
    (9999, 10000, 0.001, 0.50, 0.9990770387, 1.5569817961),
    (9000, 10000, 0.001, 0.50, 0.8904097337, 0.6143550305),
    (5200, 10000, 0.001, 1.00, 0.5045018489, 0.0112847012),
    (5155, 10000, 0.001, 1.00, 0.4999999394, 0.0),
    (100000, 100000, 0.001, 0.12, 0.9999309248, 0.4573747876),
    (100000, 100000, 0.001, 0.25, 0.9999309248, 0.9528641408),
    (100000, 100000, 0.001, 0.50, 0.9999309248, 1.9057282817),
    (100000, 100000, 0.001, 1.00, 0.9999309248, 3.8114565634),
    (99999, 100000, 0.001, 0.50, 0.9999076697, 1.8695633343),
    (99900, 100000, 0.001, 0.25, 0.9986509924, 0.7500502469),
    (99000, 100000, 0.001, 0.50, 0.9889893404, 1.1449999776),
    (90000, 100000, 0.001, 1.00, 0.8970364962, 1.2648446903),
    (84134, 100000, 0.001, 0.50, 0.8377417924, 0.4926095963),
    (84491, 100000, 0.001, 0.50, 0.8413444656, 0.4999994205),
    (60000, 100000, 0.001, 0.25, 0.5952010473, 0.0602361981),
    (50489, 100000, 0.001, 0.50, 0.4999989485, 0.0),
    (100000, 100000, 0.01, 0.25, 0.9999539494, 0.9776276074),
    (99999, 100000, 0.01, 0.25, 0.9999336184, 0.9553188471),
    (99990, 100000, 0.01, 0.50, 0.9997985634, 1.7690972530),
    (100000, 100000, 0.0005, 0.50, 0.9999239939, 1.8938794330),
    (0, 100000, 0.001, 0.50, 0.0, 0.0),
]


@pytest.mark.parametrize(("n_a", "n", "alpha", "sigma", "limit", "radius"), GOLDEN)
def test_counts_give_the_published_limit_and_radius(n_a, n, alpha, sigma, limit, radius):
    p_lower = cp_lower(n_a, n, alpha)
    assert p_lower == pytest.approx(limit, abs=TOLERANCE)
    # The table gives ten digits; a radius of 0 must be exactly 0.
    reached = radius_one(p_lower, sigma)
    assert reached == pytest.approx(radius, abs=TOLERANCE) and (reached > 0) == (radius > 0)


def test_the_table_as_arrays_gives_the_same_values_as_one_by_one():
    n_a, n, alpha, sigma = (np.array(column) for column in list(zip(*GOLDEN, strict=True))[:4])
    radii = radius_one(cp_lower(n_a, n, alpha), sigma)
    assert radii.dtype == np.float64 and radii.shape == (len(GOLDEN),)
    one_by_one = [float(radius_one(cp_lower(k, m, a), s)) for k, m, a, s, *_ in GOLDEN]
    assert radii.tolist() == one_by_one


def test_the_smallest_certifying_count_sits_just_above_one_half():
    assert cp_lower(50490, 100000, 0.001) == pytest.approx(0.5000089488, abs=1e-9)
    assert cp_lower(1, 100000, 0.001) == pytest.approx(1.0005e-8, rel=1e-4)


def test_scalars_give_scalars_and_arrays_keep_their_shape():
    assert isinstance(cp_lower(5, 10, 0.05), float)
    assert isinstance(radius_one(0.9, 0.5), float)
    assert isinstance(predict_pvalue(5, 2), float)
    assert cp_upper(np.array([[1, 2, 3]]), 10, 0.05).shape == (1, 3)
    assert cp_lower(np.array([], dtype=np.int64), 10, 0.05).shape == (0,)


def test_no_samples_say_nothing():
    assert cp_lower(0, 0, 0.001) == 0.0
    assert cp_upper(0, 0, 0.001) == 1.0
    assert cp_lower_randomised(0, 0, 0.1, 0.01) == 0.0


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
    assert value == pytest.approx(p, rel=1e-9)
    assert (value <= 0.001) is np.bool_(predicts)
    if n1 + n2:
        assert value == pytest.approx(stats.binomtest(n1, n1 + n2, 0.5).pvalue, rel=1e-9)


@pytest.mark.parametrize(
    ("n_a", "n_b", "n", "sigma", "one", "two"),
    [
        (60000, 10000, 100000, 0.5, 0.1204723961, 0.3759771260),
        (60000, 40000, 100000, 0.5, 0.1204723961, 0.1200710150),
        (45000, 5000, 100000, 0.5, 0.0, 0.3710327203),
        (90000, 5000, 100000, 0.5, 0.6324223452, 0.7216628635),
        (99000, 1000, 100000, 0.5, 1.1449999776, 1.1438427694),
        (480, 100, 1000, 1.0, 0.0, 0.4610904942),
        (68269, 15866, 100000, 1.0, 0.4624609443, 0.7229499315),
    ],
)
def test_two_bounds_keep_certificates_that_one_bound_loses(n_a, n_b, n, sigma, one, two):
    assert radius_one(cp_lower(n_a, n, 0.001), sigma) == pytest.approx(one, abs=TOLERANCE)
    p_lower, p_upper = two_bounds(n_a, n_b, n, 0.001)
    assert radius_two(p_lower, p_upper, sigma) == pytest.approx(two, abs=TOLERANCE)


def test_the_two_bound_certificate_abstains_where_the_runner_up_may_be_ahead():
    p_lower, p_upper = two_bounds(np.array([400, 0, 334]), np.array([390, 1000, 333]), 1000, 0.001)
    assert radius_two(p_lower, p_upper, 0.5).tolist() == [0.0, 0.0, 0.0]
    assert radius_two(0.3, 0.9, 1.0) == 0.0


def test_exact_probabilities_of_analytic_classifiers_give_their_exact_radii():
    # Half-space at distance 4: the certificate is the distance, whatever sigma.
    assert radius_one(ndtr(4 / 2), 2.0) == pytest.approx(4.0, abs=1e-12)
    assert radius_one(cp_lower(97725, 100000, 0.001), 2.0) == pytest.approx(3.9461199428, abs=1e-9)
    assert radius_one(cp_lower(977, 1000, 0.001), 2.0) == pytest.approx(3.4643926533, abs=1e-9)
    # Slab of half-width sigma around x, two other classes outside.
    p_a, p_b = ndtr(1) - ndtr(-1), ndtr(-1)
    assert radius_one(p_a, 1.0) == pytest.approx(0.4752328492, abs=1e-9)
    assert radius_two(p_a, p_b, 1.0) == pytest.approx(0.7376164246, abs=1e-9)
    # Ball: the certificate stays below the true radius of the smoothed classifier.
    for d, r0, p, radius, true in (
        (2, 1.0, 0.8646647168, 0.5507598142, 0.8571481399),
        (10, 2.0, 0.9003675995, 0.6418244937, 1.3097650249),
    ):
        p_ball = stats.chi2.cdf(r0**2 / 0.25, d)
        assert p_ball == pytest.approx(p, abs=1e-9)
        assert radius_one(p_ball, 0.5) == pytest.approx(radius, abs=1e-9)
        assert radius_one(p_ball, 0.5) < true


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


def test_certificates_of_a_linear_classifier_are_right_about_its_distance():
    # f(z) = [w.z > 0] at distance m from the boundary; the smoothed classifier's radius is m.
    # 2000 images of 500 samples; 0.0646 is 3 standard errors above alpha (probability 0.0014 of a
    # false alarm if the error were alpha itself; the noise is fixed, so it cannot flicker).
    d, n, alpha, m = 8, 500, 0.05, 0.3
    w = np.linspace(-1, 1, d)
    w /= np.linalg.norm(w)
    votes = np.array(
        [
            np.sum(m + 0.25 * philox_normal(4, ESTIMATION, image, np.arange(n), d) @ w > 0)
            for image in range(2000)
        ]
    )
    radii = radius_one(cp_lower(votes, n, alpha), 0.25)
    assert 0.02 < np.mean(radii > m) <= 0.0646
    # The check has teeth: limits at six times the level are found out.
    assert np.mean(radius_one(cp_lower(votes, n, 0.3), 0.25) > m) > 0.0646


@pytest.mark.parametrize("p", [(0.5, 0.3, 0.2), (0.36, 0.34, 0.3), (0.9, 0.05, 0.05)])
def test_both_bounds_of_the_two_bound_certificate_hold_together(p):
    # 20000 draws; the joint error is at most alpha, so 5 standard errors above it fail by chance
    # with probability below 3e-7.
    votes = np.random.default_rng(8).multinomial(400, p, size=20000)
    p_lower, p_upper = two_bounds(votes[:, 0], votes[:, 1:].max(axis=1), 400, 0.05)
    wrong = np.mean((p_lower > p[0]) | (p_upper < min(p[1], 1 - p[0])))
    assert wrong <= 0.05 + 5 * math.sqrt(0.05 * 0.95 / 20000)
    radii, true = radius_two(p_lower, p_upper, 1.0), radius_two(p[0], p[1], 1.0)
    assert np.mean(radii > true) <= 0.05 + 5 * math.sqrt(0.05 * 0.95 / 20000)


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


def test_the_log_prints_a_radius_it_did_not_certify():
    radius = radius_one(cp_lower(84491, 100000, 0.001), 0.5)
    assert f"{radius:.3}" == "0.5" and radius < 0.5


def test_rounding_down_lowers_every_positive_radius_a_little():
    radii = np.array([0.0, -1.0, 0.5, 1e-300, 5e-324, 3.8])
    rounded = round_down(radii)
    assert rounded[:2].tolist() == [0.0, -1.0]
    assert np.all(rounded[2:] < radii[2:]) and np.all(rounded[2:] >= 0)
    assert np.allclose(rounded, radii, rtol=2e-12, atol=5e-324)


@pytest.mark.parametrize(
    ("differ", "pairs", "zeta", "radii"),
    [
        (0, 1000, 0.0075720887, (1.2226602797, 2.0824649876, 2.4252893565)),
        (3, 1000, 0.0138580693, (1.1900417158, 1.9610603870, 2.1991374434)),
        (0, 10000, 0.0007598015, (1.2595452390, 2.2623555747, 3.1431126105)),
        (10, 10000, 0.0025236300, (1.2498314689, 2.2085910204, 2.7944211207)),
    ],
)
def test_incremental_certification(differ, pairs, zeta, radii):
    assert cp_upper(differ, pairs, 0.0005) == pytest.approx(zeta, abs=TOLERANCE)
    votes = np.array([90000, 99000, 100000])
    reached = incremental_radius(votes, 100000, differ, pairs, 1.0, 0.001)
    assert reached == pytest.approx(radii, abs=TOLERANCE)


def test_incremental_certification_abstains_when_the_models_differ_much():
    assert incremental_radius(60000, 100000, 200, 1000, 0.5, 0.001) == 0.0
    assert incremental_radius(100, 1000, 900, 1000, 0.5, 0.001) == 0.0
    with pytest.raises(CertbenchError, match="part of alpha"):
        incremental_radius(90, 100, 0, 100, 0.5, 0.001, alpha_disagreement=0.001)


def test_other_norms():
    assert radius_linf_from_l2(1.0, 3072) == pytest.approx(1 / 55.42562584, rel=1e-9)
    assert radius_linf_from_l2(1.0, 150528) == pytest.approx(1 / 387.9793809, rel=1e-9)
    assert radius_linf_from_l2(0.4347, 3072) == pytest.approx(2 / 255, abs=1e-5)
    for width, votes, radius in (
        (0.5, 90000, 0.3970364962),
        (1.0, 99000, 0.9779786808),
        (2.0, 100000, 1.9997236993),
    ):
        p_lower = cp_lower(votes, 100000, 0.001)
        assert radius_l1_uniform(p_lower, width) == pytest.approx(radius, abs=TOLERANCE)
    # In one dimension the uniform linf and l1 radii are the same quantity.
    p = np.array([0.2, 0.5, 0.6, 0.9, 0.999])
    assert radius_linf_uniform(p, 0.7, 1) == pytest.approx(radius_l1_uniform(p, 0.7), abs=1e-15)
    assert radius_linf_uniform(0.9, 0.5, 3072) == pytest.approx(1 - 0.6 ** (1 / 3072), rel=1e-9)
    # Laplace noise in one dimension and a threshold at distance r: pA = 1 - exp(-r / b) / 2.
    assert radius_l1_laplace(1 - 0.5 * math.exp(-1.3 / 0.4), 0.4) == pytest.approx(1.3, abs=1e-12)
    assert radius_l1_laplace(0.4, 1.0) == 0.0 and radius_l1_uniform(0.4, 1.0) == 0.0


def test_median_smoothing_places():
    assert median_smoothing_indices(10000, 0.5, 0.25, 0.25, 0.001) == (1467, 8534)
    assert median_smoothing_indices(10, 0.5, 1.0, 0.25, 0.001) == (None, None)
    # The defining inequalities, at the place and one further.
    for n, p, epsilon in ((500, 0.5, 0.1), (300, 0.2, 0.05), (2000, 0.9, 0.2)):
        lower, upper = median_smoothing_indices(n, p, epsilon, 0.5, 0.02)
        low_p, high_p = ndtr(ndtri(p) - epsilon / 0.5), ndtr(ndtri(p) + epsilon / 0.5)
        assert stats.binom.sf(lower - 1, n, low_p) >= 0.99 > stats.binom.sf(lower, n, low_p)
        assert stats.binom.cdf(upper - 1, n, high_p) >= 0.99 > stats.binom.cdf(upper - 2, n, high_p)


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


def test_merging_shards_by_votes_differs_from_averaging_their_radii():
    merged = radius_one(cp_lower(10 * 9999, 10 * 10000, 0.001), 0.5)
    alone = radius_one(cp_lower(np.full(10, 9999), 10000, 0.001), 0.5)
    assert merged == pytest.approx(1.7451038401, abs=1e-9)
    assert alone.mean() == pytest.approx(1.5569817961, abs=1e-9)


counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
levels = st.floats(1e-6, 0.3)


@settings(max_examples=150, deadline=None)
@given(counts, levels, st.floats(0.05, 2.0))
def test_limits_and_radii_are_monotone_and_scale(count, alpha, sigma):
    k, n = count
    low = cp_lower(k, n, alpha)
    assert 0 <= low <= k / n <= cp_upper(k, n, alpha) <= 1
    assert low <= cp_lower(k, n, alpha * 1.5)
    assert low <= cp_lower_randomised(k, n, alpha, 0.5) + 1e-15
    assert low <= cp_lower(10 * k, 10 * n, alpha) or k == 0
    if k < n:
        assert low < cp_lower(k + 1, n, alpha)
    assert radius_one(low, 2 * sigma) == pytest.approx(2 * radius_one(low, sigma), rel=1e-14)
    p_lower, p_upper = two_bounds(k, n - k, n, alpha)
    # With two classes both are one number, computed in two ways: equal up to rounding.
    one = radius_one(cp_lower(k, n, alpha / 2), sigma)
    assert radius_two(p_lower, p_upper, sigma) >= one * (1 - 1e-13)
    few, _ = two_bounds(k, (n - k) // 2, n, alpha)
    assert few == p_lower


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cp_lower(11, 10, 0.001), "more successes"),
        (lambda: cp_lower(-1, 10, 0.001), "negative"),
        (lambda: cp_lower(9.0, 10, 0.001), "whole numbers"),
        (lambda: cp_lower(np.array([0.9]) * 10, 10, 0.001), "whole numbers"),
        (lambda: cp_lower(5, 10, 0.0), "between 0 and 1"),
        (lambda: cp_lower(5, 10, 1.0), "between 0 and 1"),
        (lambda: cp_lower(5, 10, math.nan), "NaN"),
        (lambda: cp_lower(5, 10, "small"), "not a number"),
        (lambda: radius_one(0.9, 0.0), "positive"),
        (lambda: radius_one(0.9, -0.25), "positive"),
        (lambda: radius_one(0.9, math.inf), "positive"),
        (lambda: radius_one(1.0, 0.25), "no finite sample"),
        (lambda: radius_one(math.nan, 0.25), "NaN"),
        (lambda: radius_two(0.9, 0.0, 0.25), r"\(0, 1\]"),
        (lambda: two_bounds(60, 41, 100, 0.001), "exceed"),
        (lambda: vote_threshold(0, 0.001, 0.5, 0.5), ">= 1"),
        (lambda: vote_threshold(100.0, 0.001, 0.5, 0.5), "whole numbers"),
        (lambda: vote_threshold(100, 0.001, -0.5, 0.5), "not negative"),
        (lambda: cp_lower_randomised(5, 10, 0.01, 0.0), r"\(0, 1\]"),
        (lambda: binomial_interval(5, 10, 0.95, method="wald"), "unknown interval"),
        (lambda: predict_pvalue(5, -1), "negative"),
    ],
)
def test_bad_input_is_refused_with_the_reason(call, message):
    with pytest.raises(CertbenchError, match=message):
        call()


def test_importing_the_statistics_loads_no_torch():
    code = "import sys, certbench.certify.statistics; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
