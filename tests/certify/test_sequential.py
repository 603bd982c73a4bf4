"""Sequential bounds: exact error probabilities by dynamic programming, and the stopping rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtr, ndtri

from certbench.certify.intervals import LIMIT_ERROR, cp_lower
from certbench.certify.radii import radius_one
from certbench.certify.sequential import (
    StoppingRule,
    cumulative_votes,
    doubling_looks,
    mixture_log_e,
    mixture_lower,
    mixture_upper,
    split_alpha,
)
from certbench.errors import CertbenchError

SIX = (100, 200, 400, 800, 1600, 3200)


def probability_of_ever(p, looks, wrong):
    """Exact P[wrong(S, look) at some look] for S ~ cumulative Bin(n, p), by carrying the rest."""
    rest = np.array([1.0])
    before = 0
    for look, size in enumerate(looks):
        step = stats.binom.pmf(np.arange(size - before + 1), size - before, p)
        rest = np.convolve(rest, step)
        rest[wrong(np.arange(size + 1), size, look)] = 0.0
        before = size
    return 1 - rest.sum()


def limits_over(p, levels):
    return lambda s, n, look: cp_lower(s, n, levels[look]) > p


@pytest.mark.parametrize(
    ("p", "alpha", "naive", "valid"),
    [(0.8, 0.05, 0.167, 0.029), (0.8, 0.01, 0.037, 0.007), (0.98, 0.05, 0.118, 0.015)],
)
def test_splitting_alpha_over_the_looks_is_valid_and_plain_peeking_is_not(p, alpha, naive, valid):
    split = probability_of_ever(p, SIX, limits_over(p, split_alpha(alpha, 6)))
    assert split <= alpha
    assert split == pytest.approx(valid, abs=0.004)  # the recorded value is a simulated one
    for unequal in ("telescoping", "last"):
        shares = split_alpha(alpha, 6, unequal)
        assert probability_of_ever(p, SIX, limits_over(p, shares)) <= alpha
    peeking = probability_of_ever(p, SIX, limits_over(p, (alpha,) * 6))
    assert peeking > alpha
    assert peeking == pytest.approx(naive, abs=0.008)


@pytest.mark.parametrize(("p", "alpha"), [(0.5, 0.05), (0.9, 0.05), (0.98, 0.01)])
def test_the_mixture_is_valid_at_every_single_sample(p, alpha):
    def lower_wrong(s, n, look):
        return (s > p * n) & (mixture_log_e(s, n, p) > -np.log(alpha))

    every = range(1, 1501)
    ever = probability_of_ever(p, every, lower_wrong)
    assert 0 < ever <= alpha

    # Plain limits looked at as often are wrong far more than alpha: the test can tell.
    def plain_wrong(s, n, look):
        return stats.binom.sf(s - 1, n, p) < alpha

    assert probability_of_ever(p, every, plain_wrong) > 2 * alpha


def test_mixture_values():
    for s, n, p, value in (
        (95, 100, 0.8, 6.8563401048),
        (100, 100, 0.9, 7.6598515351),
        (990, 1000, 0.97, 5.5347013715),
    ):
        assert mixture_log_e(s, n, p) == pytest.approx(value, abs=1e-9)
    lower = mixture_lower([95, 990, 1000, 99000], [100, 1000, 1000, 100000], 0.001)
    assert lower == pytest.approx(
        [0.7994520091, 0.9680350760, 0.9891254374, 0.9883172377], abs=1e-9
    )


def test_mixture_limits_solve_their_equation_and_mirror_each_other():
    s, n = np.array([1, 40, 77, 99]), 100
    low, high = mixture_lower(s, n, 0.01), mixture_upper(s, n, 0.01)
    assert mixture_log_e(s, n, low) == pytest.approx(np.log(100), rel=1e-9)
    assert mixture_log_e(s, n, high) == pytest.approx(np.log(100), rel=1e-9)
    assert np.all((low < s / n) & (s / n < high))
    assert high == pytest.approx(1 - mixture_lower(n - s, n, 0.01))
    assert mixture_lower(0, 10, 0.01) == 0.0 and mixture_upper(10, 10, 0.01) == 1.0
    assert mixture_lower(0, 0, 0.01) == 0.0 and mixture_upper(0, 0, 0.01) == 1.0


def test_the_mixture_is_a_martingale_of_mean_one():
    for n, p in ((1, 0.3), (7, 0.5), (60, 0.9)):
        s = np.arange(n + 1)
        mean = np.sum(stats.binom.pmf(s, n, p) * np.exp(mixture_log_e(s, n, p)))
        assert mean == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(
    ("n", "s", "fixed", "third", "fifth", "telescoping", "mixture"),
    [
        (1000, 1000, 2.4633, 2.4101, 2.3875, 2.3168, 2.2947),
        (1000, 990, 1.9780, 1.9482, 1.9353, 1.8938, 1.8527),
        (10000, 9900, 2.2124, 2.2015, 2.1968, 2.1744, 2.1542),
        (100000, 100000, 3.8115, 3.7748, 3.7594, 3.6772, 3.6476),
        (100000, 99000, 2.2900, 2.2864, 2.2848, 2.2758, 2.2674),
        (100000, 60000, 0.2409, 0.2397, 0.2391, 0.2360, 0.2330),
    ],
)
def test_the_schemes_compare_as_published(n, s, fixed, third, fifth, telescoping, mixture):
    last = split_alpha(0.001, len(doubling_looks(n)), "telescoping")[-1]
    levels = np.array([0.001, 0.001 / 3, 0.001 / 5, last])
    z = ndtri(np.append(cp_lower(s, n, levels), mixture_lower(s, n, 0.001)))
    assert z == pytest.approx([fixed, third, fifth, telescoping, mixture], abs=6e-5)


def test_default_looks_double_up_to_the_budget():
    looks = doubling_looks(100000)
    assert looks == (100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 100000)
    assert doubling_looks(100) == (100,) and doubling_looks(50) == (50,)
    assert doubling_looks(400, first=100) == (100, 200, 400)
    for split in ("equal", "last"):
        for count in (1, 2, 11):
            shares = split_alpha(0.001, count, split)
            assert len(shares) == count and sum(shares) == pytest.approx(0.001)
    assert split_alpha(0.001, 11, "last")[-1] == 0.0005
    assert sum(split_alpha(0.001, 1000, "telescoping")) < 0.001


# --- the stopping rule ---------------------------------------------------------------------------


def simulated(p, looks, images, seed):
    generator = np.random.default_rng(seed)
    steps = np.diff(np.concatenate([[0], looks]))
    p = np.broadcast_to(p, images)[:, None]
    return np.cumsum(generator.binomial(steps[None, :], p), axis=1)


RULES = {
    "radii": {"radii": (0.25, 0.5)},
    "tolerance": {"tolerance": 0.05},
    "mixture": {"radii": (0.4,), "method": "mixture"},
    "telescoping": {"radii": (0.4,), "split": "telescoping"},
    "equal": {"radii": (0.4,), "split": "equal"},
}


@pytest.mark.parametrize("options", RULES.values(), ids=RULES)
def test_certificates_of_every_rule_hold_with_probability_one_minus_alpha(options):
    # Stopping is chosen by the data. 8000 paths; the true error is at most 0.05, so the test
    # fails by chance with probability below 3e-7 (5 standard errors).
    images, p = 8000, 0.8
    rule = StoppingRule(sigma=0.5, alpha=0.05, looks=SIX, **options)
    bounds = rule.replay(simulated(p, SIX, images, 7), np.zeros(images, int))
    wrong = np.mean(rule.certificates(bounds)["radius"] > radius_one(p, 0.5))
    assert wrong <= 0.05 + 5 * np.sqrt(0.05 * 0.95 / images)
    assert bounds.n_used.min() < 3200  # some did stop early


def test_the_same_test_detects_a_rule_that_peeks():
    rule = StoppingRule(sigma=0.5, alpha=0.05, looks=SIX, tolerance=1e-6)
    object.__setattr__(rule, "alphas", (0.05,) * 6)  # plain limits at every look
    bounds = rule.replay(simulated(0.8, SIX, 20000, 7), np.zeros(20000, int))
    wrong = np.mean(rule.certificates(bounds)["radius"] > radius_one(0.8, 0.5))
    assert wrong > 0.05 + 5 * np.sqrt(0.05 * 0.95 / 20000)


def test_single_stage_needs_half_of_alpha_by_exact_probabilities():
    looks = (20, 40, 80, 160)
    halved = StoppingRule(sigma=1.0, alpha=0.05, looks=looks, radii=(0.0,), single_stage=True)

    def certifies_either(levels):
        def wrong(s, n, look):
            return cp_lower(np.maximum(s, n - s), n, levels[look]) > 0.5

        return wrong

    # Two equally likely classes: any certificate at all is wrong about one of them.
    assert probability_of_ever(0.5, looks, certifies_either(halved.alphas)) <= 0.05
    single = (0.001,) * 1
    for n, error in ((100, 0.001790), (1000, 0.001731)):
        ever = probability_of_ever(0.5, (n,), certifies_either(single))
        assert ever == pytest.approx(error, abs=1e-6)
        ever = probability_of_ever(0.5, (n,), certifies_either((0.0005,)))
        assert ever <= 0.001


def test_single_stage_reports_the_class_that_its_bound_is_about():
    rule = StoppingRule(sigma=1.0, alpha=0.05, looks=(20, 200), radii=(1.0,), single_stage=True)
    bounds = rule.update(rule.start(2), 0, [20, 12], [3, 3])
    assert not bounds.decided.any()
    bounds = rule.update(bounds, 1, [110, 190], [7, 7])
    assert bounds.label.tolist() == [3, 7]
    fixed = StoppingRule(sigma=1.0, alpha=0.05, looks=(20, 200), radii=(1.0,))
    with pytest.raises(CertbenchError, match="changed between looks"):
        fixed.update(fixed.update(fixed.start(1), 0, [20], [3]), 1, [150], [7])


def test_an_image_is_decided_when_no_radius_is_open():
    looks = (100, 1000, 10000)
    rule = StoppingRule(sigma=0.5, alpha=0.001, looks=looks, radii=(0.5,))
    #        certified at once, hopeless at once, close to the radius (p = Phi(1) = 0.841)
    votes = np.array([[100, 1000, 10000], [10, 100, 1000], [85, 841, 8414]])
    bounds = rule.replay(votes, np.array([4, 5, 6]))
    assert bounds.n_used.tolist() == [100, 100, 10000]
    made = rule.certificates(bounds)
    assert (made["radius"] >= 0.5).tolist() == [True, False, False]
    assert made["predict"].tolist() == [4, -1, 6]
    assert made["conclusive"].tolist() == [True, True, False]
    # The first kept the bound of the look that decided it.
    assert bounds.p_lower[0] == cp_lower(100, 100, 0.001 / 4) - LIMIT_ERROR


def test_images_are_given_up_when_the_budget_cannot_change_the_answer():
    # 60 of the first 100: the upper limit allows 0.7, but 110 samples cannot show it any more.
    rule = StoppingRule(sigma=1.0, alpha=0.001, looks=(100, 110), radii=(0.5,))
    bounds = rule.update(rule.start(1), 0, [60], [0])
    assert bounds.decided[0] and bounds.p_upper[0] > ndtr(0.5)
    assert cp_lower(70, 110, 0.0005) < ndtr(0.5)


def test_radius_zero_asks_whether_to_abstain():
    rule = StoppingRule(sigma=1.0, alpha=0.001, looks=doubling_looks(10000), radii=(0.0,))
    votes = np.outer([0.9, 0.1, 0.501], rule.looks).astype(int)
    bounds = rule.replay(votes, np.zeros(3, int))
    assert bounds.n_used.tolist() == [100, 100, 10000]
    assert rule.certificates(bounds)["abstain"].tolist() == [False, True, True]


def test_the_tolerance_leaves_no_more_to_gain_than_it_says():
    looks = doubling_looks(100000)
    rule = StoppingRule(sigma=0.5, alpha=0.001, looks=looks, tolerance=0.05)
    p = np.array([0.55, 0.7, 0.9, 0.99, 0.999, 1.0])
    votes = np.floor(np.outer(p, looks)).astype(int)
    bounds = rule.replay(votes, np.zeros(p.size, int))
    radius = rule.certificates(bounds)["radius"]
    at_the_end = radius_one(cp_lower(votes[:, -1], looks[-1], rule.alphas[-1]), 0.5)
    assert np.all(at_the_end - radius <= 0.05)
    assert np.all(bounds.n_used[:3] < 100000)
    # All votes agree: only the budget limits the radius, so the budget is spent to the last look
    # that still adds more than the tolerance.
    assert bounds.n_used[5] > 25600


def test_every_look_is_below_the_plain_limit_and_the_bound_never_falls():
    looks = doubling_looks(6400)
    votes = simulated(np.linspace(0.3, 1.0, 200), looks, 200, 3)
    for options in ({}, {"method": "mixture"}, {"split": "telescoping"}):
        rule = StoppingRule(sigma=1.0, alpha=0.01, looks=looks, tolerance=1e-9, **options)
        bounds = rule.start(200)
        for look, n in enumerate(looks):
            after = rule.update(bounds, look, votes[:, look], 0)
            assert np.all(rule._lower(votes[:, look], n, look) <= cp_lower(votes[:, look], n, 0.01))
            assert np.all(after.p_lower >= bounds.p_lower)
            assert np.all(after.p_best <= bounds.p_best)
            bounds = after


def test_decided_images_keep_their_state_whatever_is_fed():
    rule = StoppingRule(sigma=0.5, alpha=0.001, looks=(100, 200, 400), radii=(0.3,))
    bounds = rule.update(rule.start(2), 0, [100, 70], [1, 1])
    assert bounds.decided.tolist() == [True, False]
    after = rule.update(bounds, 1, [0, 150], [9, 1])
    assert (after.p_lower[0], after.label[0], after.n_used[0]) == (bounds.p_lower[0], 1, 100)
    assert after.n_used[1] == 200


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(RULES)))
def test_images_do_not_influence_each_other(seed, name):
    rule = StoppingRule(sigma=0.5, alpha=0.01, looks=SIX, **RULES[name])
    p = np.random.default_rng(seed).uniform(0.2, 1.0, 12)
    votes = simulated(p, SIX, 12, seed)
    together = rule.certificates(rule.replay(votes, np.arange(12)))
    order = np.random.default_rng(seed).permutation(12)
    permuted = rule.certificates(rule.replay(votes[order], order))
    alone = [rule.certificates(rule.replay(votes[[i]], np.array([i]))) for i in range(12)]
    for key, values in together.items():
        assert np.array_equal(values[order], permuted[key])
        assert np.array_equal(values, np.concatenate([one[key] for one in alone]))


def test_overshooting_a_look_uses_all_samples():
    rule = StoppingRule(sigma=0.5, alpha=0.001, looks=(100, 1000), radii=(0.4,))
    bounds = rule.update(rule.start(1), 0, [110], [0], trials=[128])
    assert bounds.p_lower[0] == cp_lower(110, 128, 0.0005) - LIMIT_ERROR and bounds.n_used[0] == 128


def test_cumulative_votes_count_what_each_look_has_seen():
    votes = np.random.default_rng(0).random((3, 50)) < 0.7
    counted = cumulative_votes(votes, (5, 20, 50))
    assert counted.tolist() == [[v[:n].sum() for n in (5, 20, 50)] for v in votes]
    with pytest.raises(CertbenchError, match="need 60 votes"):
        cumulative_votes(votes, (60,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"looks": (100, 100)}, "ascending"),
        ({"looks": ()}, "ascending"),
        ({"method": "peek"}, "unknown method"),
        ({"split": "even"}, "unknown split"),
        ({"radii": ()}, "nothing to decide"),
        ({"radii": (-0.5,)}, "not be negative"),
        ({"tolerance": 0.0}, "positive"),
        ({"futility": 0.0}, r"\(0, 1\)"),
        ({"alpha": 1.5}, r"\(0, 1\)"),
        ({"sigma": 0.0}, "positive"),
        ({"looks": (5, 9)}, "can never certify"),
        # 200 samples that all agree, at alpha / 2: 0.5 Phi^-1(0.0005 ** (1 / 200)) = 0.8915.
        ({"radii": (0.9, 2.0)}, "are all beyond 0.891511, the most that 200 samples"),
        ({"method": "mixture", "single_stage": True}, "fixed looks only"),
    ],
)
def test_bad_rules_are_refused(options, message):
    good = {"sigma": 0.5, "alpha": 0.001, "looks": (100, 200), "radii": (0.25,)}
    with pytest.raises(CertbenchError, match=message):
        StoppingRule(**(good | options))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rule, state: rule.update(state, 0, [50], [0]), "go through them in order"),
        (lambda rule, state: rule.update(state, 3, [50], [0]), "in order"),
        (lambda rule, state: rule.update(state, 1, [150], [0], trials=[150]), "fewer samples"),
        (lambda rule, state: rule.update(state, 1, [250], [0]), "more successes"),
        (lambda rule, state: rule.replay([[1, 2]], [0]), "one column per look"),
    ],
)
def test_looks_out_of_order_and_impossible_counts_are_refused(call, message):
    rule = StoppingRule(sigma=0.5, alpha=0.001, looks=(100, 200, 400), radii=(0.3,))
    state = rule.update(rule.start(1), 0, [70], [0])
    with pytest.raises(CertbenchError, match=message):
        call(rule, state)


def test_no_rounding_overstates_the_radius_of_a_mixture():
    # 45-digit arithmetic gives 0.1089529432072314615; float64 without a margin 1e-12 more.
    rule = StoppingRule(1.0, 0.01, (695_295,), (0.1,), method="mixture")
    bounds = rule.update(rule.start(1), 0, np.array([379_806]), np.array([0]))
    radius = rule.certificates(bounds)["radius"][0]
    assert 0.1089529432072314 - 1e-11 < radius < 0.1089529432072314
