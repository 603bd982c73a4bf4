"""Radii against published values, analytic classifiers and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtr

from certbench.certify.intervals import cp_lower, cp_lower_randomised, cp_upper, two_bounds
from certbench.certify.noise import ESTIMATION, philox_normal
from certbench.certify.radii import (
    incremental_radius,
    radius_l1_laplace,
    radius_l1_uniform,
    radius_linf_from_l2,
    radius_linf_uniform,
    radius_one,
    radius_two,
    round_down,
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
    assert isinstance(radius_one(0.9, 0.5), float)


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
