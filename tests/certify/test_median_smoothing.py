"""Median smoothing: exact quantiles, coverage over repetitions, and edge cases."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import ndtr, ndtri

from certbench.certify import noise as noises
from certbench.certify.median_smoothing import MedianSmooth, median_smoothing_indices
from certbench.certify.sampling import Noise
from certbench.errors import CertbenchError

SIGMA, EPSILON = 0.25, 0.1
WEIGHT = torch.tensor([0.6, -0.8, 0.0, 0.0], dtype=torch.float64)


def linear(z):
    """N(w.x, sigma^2) under noise, and a monotone function of it."""
    value = z.flatten(1).double() @ WEIGHT
    return torch.stack([value, value**3], 1)


def smoothed(model=linear, **options):
    return MedianSmooth(model, SIGMA, noise=Noise(2, "eager"), **options)


X = np.full((1, 2, 2), 0.5)
CENTRE = -0.1


def test_bounds_of_a_linear_function_enclose_it_tightly_under_every_shift():
    made = smoothed().bounds(X, EPSILON, 10_000, 0.001)
    # The smoothed value of w.x is w.x, and a shift of size epsilon along w moves it by epsilon.
    assert made.lower[0] < CENTRE - EPSILON < CENTRE + EPSILON < made.upper[0]
    # The order statistics lie within 5 standard errors of the quantiles they stand for.
    for bound, sign in ((made.lower[0], -1), (made.upper[0], 1)):
        assert bound == pytest.approx(CENTRE + sign * EPSILON, abs=0.03)
    # Percentiles commute with monotone functions.
    np.testing.assert_allclose(
        [made.lower[1], made.value[1], made.upper[1]],
        np.array([made.lower[0], made.value[0], made.upper[0]]) ** 3,
        rtol=1e-12,
    )


def test_the_bounds_are_the_order_statistics_of_the_formula():
    g = smoothed()
    made = MedianSmooth(linear, EPSILON, noise=Noise(2, "eager")).bounds(X, EPSILON, 10_000, 0.001)
    drawn = np.sort(MedianSmooth(linear, EPSILON, noise=Noise(2, "eager")).sample(X, 10_000)[:, 0])
    assert made.lower[0] == drawn[1467 - 1]
    assert made.upper[0] == drawn[8534 - 1]
    z = noises.philox_normal(2, noises.ESTIMATION, 0, np.arange(50), 4)
    np.testing.assert_allclose(g.sample(X, 50)[:, 0], (0.5 + SIGMA * z) @ WEIGHT.numpy(), atol=1e-5)


@pytest.mark.parametrize("percentile", [0.5, 0.8])
def test_ranges_are_wrong_no_more_often_than_alpha(percentile):
    # 600 images of their own noise, n = 150, alpha 0.1, judged against the exact quantiles at the
    # two extreme shifts: more than 0.1 + 3 standard errors has probability below 0.002.
    g = MedianSmooth(linear, SIGMA, percentile, Noise(2, "eager"), numerics="fast", batch_size=150)
    quantile = CENTRE + SIGMA * ndtri(percentile)
    wrong = loose = 0
    for item in range(600):
        made = g.bounds(X, EPSILON, 150, 0.1, item_index=item)
        wrong += made.lower[0] > quantile - EPSILON or made.upper[0] < quantile + EPSILON
        loose += made.upper[0] - made.lower[0] > 4 * (EPSILON + SIGMA)
    assert wrong / 600 <= 0.1 + 3 * np.sqrt(0.09 / 600)
    assert wrong > 0
    assert loose == 0


def test_the_shifted_percentiles_bound_the_shifted_output_exactly():
    # h_p(x + delta) for f = w.x is w.(x + delta) + sigma Phi^-1(p): the percentile p+ at x.
    p_plus = ndtr(ndtri(0.5) + EPSILON / SIGMA)
    assert SIGMA * ndtri(p_plus) == pytest.approx(EPSILON)


def test_too_few_samples_give_no_bound_instead_of_a_wrong_one():
    made = smoothed().bounds(X, EPSILON, 5, 0.001)
    assert made.lower[0] == -np.inf
    assert made.upper[0] == np.inf
    assert np.isfinite(made.value[0])


def test_outputs_that_are_nan_count_against_both_bounds():
    def sometimes(z):
        made = linear(z)
        made[made[:, 0] > CENTRE + 0.3, 0] = float("nan")
        return made

    plain, holes = (
        smoothed().bounds(X, 0.0, 2000, 0.01),
        smoothed(sometimes).bounds(X, 0.0, 2000, 0.01),
    )
    assert holes.lower[0] < plain.lower[0]
    assert holes.upper[0] == plain.upper[0]  # the large values are the ones that are gone


def test_one_output_per_image_may_be_a_vector_without_columns():
    made = smoothed(lambda z: linear(z)[:, 0]).bounds(X, EPSILON, 500, 0.01)
    assert made.lower.shape == (1,)


def test_samples_do_not_depend_on_the_batch():
    a = smoothed().sample(X, 300)
    b = smoothed(numerics="fast", batch_size=7).sample(X, 300)
    np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: MedianSmooth(linear, 0.0), "above 0"),
        (lambda: MedianSmooth(linear, 0.5, 1.0), "0.5 for the median"),
        (lambda: MedianSmooth(linear, 0.5, noise=Noise(kind="uniform")), "Gaussian"),
        (lambda: MedianSmooth(torch.nn.Dropout().train(), 0.5), "train mode"),
        (lambda: smoothed().bounds(2 * X + 1, 0.1, 50, 0.01), r"not in \[0, 1\]"),
        (lambda: smoothed().bounds(X, -0.1, 50, 0.01), "epsilon"),
        (lambda: smoothed().bounds(X[None], 0.1, 50, 0.01), "one image"),
        (lambda: smoothed().bounds(X[0], 0.1, 50, 0.01), "one image"),
        (lambda: smoothed().sample(X, 50.0), "n: must be one integer"),
        (lambda: smoothed(numerics="exat"), "did you mean 'exact'"),
        (lambda: smoothed(batch_size=0), "batch_size"),
        (
            lambda: smoothed(lambda z: linear(z)[:1]).bounds(X, 0.1, 50, 0.01),
            "1 outputs for [0-9]+ images",
        ),
    ],
)
def test_mistakes_are_refused(call, match):
    with pytest.raises(CertbenchError, match=match):
        call()


def test_a_module_that_was_trained_on_since_is_refused():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5)).eval()
    g = smoothed(model)
    model.train()
    with pytest.raises(CertbenchError, match="train mode"):
        g.bounds(X, 0.1, 50, 0.01)


def test_noise_that_is_not_quite_normal_moves_the_places_outwards():
    lower, upper = median_smoothing_indices(10000, 0.5, 0.25, 0.25, 0.001, slack=0.01)
    # The defining inequalities at p- = 0.1587 - 0.01, at the place and one further.
    law = stats.binom(10000, ndtr(-1) - 0.01)
    assert law.cdf(lower - 1) <= 0.0005 < law.cdf(lower)
    assert upper == 10001 - lower
    assert lower < median_smoothing_indices(10000, 0.5, 0.25, 0.25, 0.001)[0] - 90
    # A slack as large as p- leaves no lower place.
    assert median_smoothing_indices(10000, 0.5, 0.25, 0.25, 0.001, slack=0.2) == (None, None)


def test_median_smoothing_places():
    assert median_smoothing_indices(10000, 0.5, 0.25, 0.25, 0.001) == (1467, 8534)
    assert median_smoothing_indices(10, 0.5, 1.0, 0.25, 0.001) == (None, None)
    # The defining inequalities, at the place and one further.
    for n, p, epsilon in ((500, 0.5, 0.1), (300, 0.2, 0.05), (2000, 0.9, 0.2)):
        lower, upper = median_smoothing_indices(n, p, epsilon, 0.5, 0.02)
        low_p, high_p = ndtr(ndtri(p) - epsilon / 0.5), ndtr(ndtri(p) + epsilon / 0.5)
        assert stats.binom.sf(lower - 1, n, low_p) >= 0.99 > stats.binom.sf(lower, n, low_p)
        assert stats.binom.cdf(upper - 1, n, high_p) >= 0.99 > stats.binom.cdf(upper - 2, n, high_p)
