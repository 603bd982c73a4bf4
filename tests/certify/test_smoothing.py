"""Smoothing on classifiers whose smoothed version is known in closed form."""

import copy
import itertools
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import ndtr, ndtri

from certbench.certify import noise as noises
from certbench.certify import smoothing
from certbench.certify.attainable import radius_cap
from certbench.certify.sequential import StoppingRule, doubling_looks
from certbench.certify.smoothing import Noise, Smooth, certify_counts, predict_counts
from certbench.errors import CertbenchError

EAGER = Noise(seed=1, backend="eager")


def two_classes(score):
    """Class 1 where the score is positive."""
    return torch.stack([-score, score], 1)


def linear(weight, offset):
    weight = torch.as_tensor(weight, dtype=torch.float64)
    return lambda z: two_classes(z.flatten(1).double() @ weight + offset)


def ball(centre, radius):
    return lambda z: two_classes(radius - (z.flatten(1) - centre).norm(dim=1))


def slab(centre, half_width):
    """Class 1 inside, 0 below, 2 above."""

    def logits(z):
        place = (z.flatten(1)[:, 0] - centre) / half_width
        return torch.stack([-place - 1, torch.zeros_like(place), place - 1], 1)

    return logits


def constant(z):
    return torch.tensor([0.0, 1.0, 0.0]).expand(len(z), 3)


def scattered(classes):
    """A class that has nothing to do with the image: equally likely, decided by the noise."""

    def logits(z):
        place = torch.frac(z.flatten(1).double().sum(1).abs() * 1e4) * classes
        return torch.nn.functional.one_hot(place.long().clamp(0, classes - 1), classes).float()

    return logits


def votes_of(model, images, stream, n, classes, sigma, kind="gaussian"):
    return smoothing.count_votes(
        model,
        images,
        np.arange(len(images)),
        stream,
        0,
        n,
        sigma=sigma,
        num_classes=classes,
        noise=Noise(7, "eager", kind),
        batch_size=20_000,
        numerics="fast",
        device="cpu",
    )


# --- certify and predict on known classifiers --------------------------------------------------


@pytest.mark.parametrize(
    "sigma, n_top, n, radius",
    [(2.0, 97725, 100_000, 3.9461199428), (2.0, 977, 1000, 3.4643926533)],
)
def test_the_linear_certificate_of_known_counts_stays_below_the_true_distance(
    sigma, n_top, n, radius
):
    made = certify_counts(np.array([[0, 1, 0]]), np.array([[n - n_top, n_top, 0]]), sigma, 0.001)
    assert made["predict"][0] == 1
    assert made["radius"][0] == pytest.approx(radius, abs=1e-9)
    assert made["radius"][0] < 4


@pytest.mark.parametrize(
    "n_top, n, alpha, radius",
    [
        (50521, 100_000, 0.0005, "0.000005672742964466366352577351"),
        (50261, 100_000, 0.05, "0.00001068270159397373996324904"),
        (10_000_000, 10_000_000, 0.001, "4.82764793027708652252292"),
        (9_999_999, 10_000_000, 0.001, "4.769516962698981320954529"),
    ],
)
def test_no_rounding_overstates_a_radius(n_top, n, alpha, radius):
    # Radii at sigma 1 from 45-digit arithmetic; a plain float64 evaluation exceeds the first two.
    counts = np.array([[n_top, n - n_top, 0]])
    exact = Fraction(radius)
    for options in ({}, {"kind": "lattice"}):
        made = Fraction(float(certify_counts(counts, counts, 1.0, alpha, **options)["radius"][0]))
        assert made < exact
        assert exact - made < 1e-7


@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.4])
def test_a_linear_classifier_is_certified_to_just_below_its_distance(sigma):
    # w.x + b = 0.2 at x = 0.5 and |w| = 1: the distance to the hyperplane is 0.2 for every sigma.
    weight = np.array([0.6, 0.8])
    g = Smooth(linear(weight, 0.2 - 0.5 * weight.sum()), sigma, 2, EAGER)
    label, radius = g.certify(np.full((1, 1, 2), 0.5), 100, 5000, 0.001)
    # A lower limit at n = 5000 lies at most 0.17 sigma (7 standard errors) below what it bounds.
    assert label == 1
    assert 0.2 - 0.17 * sigma < radius < 0.2
    assert g.predict(np.full((1, 1, 2), 0.5), 500, 0.001) == 1


@pytest.mark.parametrize("d, r0", [(2, 0.4), (10, 0.8)])
def test_inside_a_ball_the_certificate_stays_below_the_true_radius(d, r0):
    sigma = 0.2
    p = stats.chi2.cdf((r0 / sigma) ** 2, d)
    exact = sigma * ndtri(p)
    true = {2: 0.8571481399 * 0.4, 10: 1.3097650249 * 0.4}[d]
    shifted = stats.ncx2.cdf((r0 / sigma) ** 2, d, (true / sigma) ** 2)
    assert shifted == pytest.approx(0.5, abs=1e-7)
    g = Smooth(ball(0.5, r0), sigma, 2, EAGER)
    label, radius = g.certify(np.full((1, 1, d), 0.5), 100, 10_000, 0.001)
    assert label == 1
    assert exact - 0.1 * sigma < radius < exact + 0.05 * sigma
    assert radius < true


def test_in_a_slab_two_bounds_certify_more_than_one_and_less_than_the_truth():
    counts = np.array([[15866, 68269, 15865, 0]])
    one = certify_counts(np.array([[0, 1, 0, 0]]), counts, 1.0, 0.001)
    two = certify_counts(np.array([[0, 1, 0, 0]]), counts, 1.0, 0.001, bound="two")
    assert one["radius"][0] == pytest.approx(0.4624609443, abs=1e-9)
    assert two["radius"][0] == pytest.approx(0.7229499315, abs=1e-9)
    g = Smooth(slab(0.5, 0.2), 0.2, 3, EAGER)
    x = np.full((1, 1, 1), 0.5)
    radii = [g.certify(x, 100, 5000, 0.001, bound=bound).radius for bound in ("one", "two")]
    assert 0 < radii[0] < radii[1] < 0.2 * 0.9693430780


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_a_constant_classifier_is_certified_to_the_cap(n):
    g = Smooth(constant, 0.5, 3, EAGER)
    made = g.certify(np.zeros((3, 4, 4)), 10, n, 0.001)
    assert made.label == 1
    assert made.radius == pytest.approx(float(radius_cap(n, 0.001, 0.5)), abs=1e-9)
    assert made.radius < radius_cap(n, 0.001, 0.5)
    assert made.counts.tolist() == [0, n, 0, 0]


def test_votes_that_say_nothing_about_the_image_are_not_certified():
    # 400 images, alpha 0.05: more than 45 certificates have probability 1.4e-6 if two-bound is
    # valid; the one-bound form needs a class with more than half of the votes (4 classes, n 200).
    images = torch.full((400, 1, 1, 4), 0.5)
    model = scattered(4)
    selected = votes_of(model, images, noises.SELECTION, 20, 4, 0.5)
    counts = votes_of(model, images, noises.ESTIMATION, 200, 4, 0.5)
    assert counts[:, :4].mean() == pytest.approx(50, abs=0.01)
    assert counts[:, :4].std() == pytest.approx(np.sqrt(200 * 3 / 16), rel=0.1)
    assert certify_counts(selected, counts, 0.5, 0.05)["abstain"].all()
    assert (~certify_counts(selected, counts, 0.5, 0.05, bound="two")["abstain"]).sum() <= 45


@pytest.fixture(scope="module")
def repetitions():
    """2000 repetitions on a linear classifier, d = 8, whose distance is sigma."""
    sigma, weight = 0.25, np.full(8, 8**-0.5)
    model = linear(weight, sigma - 0.5 * weight.sum())
    images = torch.full((2000, 2, 2, 2), 0.5)
    selected = votes_of(model, images, noises.SELECTION, 20, 2, sigma)
    return sigma, selected, votes_of(model, images, noises.ESTIMATION, 500, 2, sigma)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bound": "two"},
        {"selection": "single_stage"},
        {"interval": "cp_randomised"},
        {"selection": "label"},
    ],
    ids=str,
)
def test_certificates_are_wrong_no_more_often_than_alpha(repetitions, options):
    # If the rate is at most 0.05, more than 0.0646 of 2000 has probability below 0.002 (3 standard
    # errors); the rates of all options come from the same votes.
    sigma, selected, counts = repetitions
    coins = noises.uniform_coin(3, np.arange(2000))
    made = certify_counts(
        selected, counts, sigma, 0.05, coins=coins, labels=np.ones(2000, int), **options
    )
    wrong = np.mean((made["radius"] > sigma) | (made["predict"] == 0))
    assert wrong <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)
    # The bound is not loose for its own sake: certificates are given, and some are wrong.
    assert np.mean(made["predict"] == 1) > 0.99
    assert wrong > 0.005
    if options == {"interval": "cp_randomised"}:  # exact coverage: 4 standard errors
        assert wrong == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 2000))


def test_the_vote_shares_are_those_of_the_normal_law(repetitions):
    # 10^6 votes: 5 standard errors.
    _, _, counts = repetitions
    p = ndtr(1.0)
    assert counts[:, 1].sum() / 1e6 == pytest.approx(p, abs=5 * np.sqrt(p * (1 - p) / 1e6))


def test_uniform_noise_certifies_half_spaces_along_an_axis_exactly():
    # f = [z_0 > 0.4] at x_0 = 0.5: under noise on [-0.2, 0.2] pA = 3/4, and g changes at an l1
    # distance of 0.1 = 2 lambda (pA - 1/2): the certificate is tight.
    g = Smooth(linear([1.0, 0.0], -0.4), 0.2, 2, Noise(1, "eager", "uniform"))
    label, radius = g.certify(np.full((1, 1, 2), 0.5), 100, 10_000, 0.001)
    assert label == 1
    assert 0.09 < radius < 0.1


@pytest.mark.parametrize(
    "half_width, n_top, radius",
    [(0.5, 90000, 0.3970364962), (1.0, 99000, 0.9779786808), (2.0, 100_000, 1.9997236993)],
)
def test_uniform_radii(half_width, n_top, radius):
    counts = np.array([[100_000 - n_top, n_top, 0]])
    made = certify_counts(np.array([[0, 1, 0]]), counts, half_width, 0.001, kind="uniform")
    assert made["radius"][0] == pytest.approx(radius, abs=1e-9)


def test_two_bounds_of_uniform_noise_see_a_weak_runner_up():
    counts = np.array([[5000, 60_000, 5000, 30_000, 0]])
    one, two = (
        certify_counts(
            np.array([[0, 1, 0, 0, 0]]), counts, 0.5, 0.001, kind="uniform", bound=bound
        )["radius"][0]
        for bound in ("one", "two")
    )
    # lambda (pA - pB) at the exact shares is 0.15, 2 lambda (pA - 1/2) is 0.1.
    assert 0.09 < one < 0.1
    assert 0.14 < two < 0.15


def test_stopping_early_keeps_class_and_validity_and_saves_samples():
    weight = np.array([0.6, 0.8])
    g = Smooth(linear(weight, 0.4 - 0.5 * weight.sum()), 0.2, 2, EAGER)
    x = np.full((1, 1, 2), 0.5)
    rule = StoppingRule(0.2, 0.001, doubling_looks(20_000), radii=(0.2,))
    made = g.certify_sequential(x, rule)
    assert made.label == 1
    assert 0.2 <= made.radius < 0.4
    assert made.counts.sum() <= 400
    with pytest.raises(CertbenchError, match="rule for this classifier"):
        Smooth(constant, 0.5, 3, EAGER).certify_sequential(x, rule)


# --- votes and their edge cases -----------------------------------------------------------------


def test_invalid_logits_vote_for_class_k():
    def sometimes(z):
        logits = constant(z).clone()
        logits[z.flatten(1)[:, 0] > 0.5, 0] = float("nan")
        logits[z.flatten(1)[:, 0] < 0.1, 2] = float("inf")
        return logits

    g = Smooth(sometimes, 0.25, 3, EAGER)
    counts = g.counts(np.full((1, 2, 2), 0.5), noises.ESTIMATION, 0, 400)
    assert counts.sum() == 400
    assert counts[0] == counts[2] == 0
    z = noises.philox_normal(1, noises.ESTIMATION, 0, np.arange(400), 4)[:, 0] * 0.25 + 0.5
    assert counts[3] == ((z > 0.5) | (z < 0.1)).sum()
    # Invalid votes belong to n, and rival the class they are compared with.
    prediction = g.predict(np.full((1, 2, 2), 0.5), 400, 0.001)
    assert (prediction.n1, prediction.n2) == tuple(sorted(
        g.counts(np.full((1, 2, 2), 0.5), noises.PREDICTION, 0, 400)[[1, 3]], reverse=True
    ))  # fmt: skip


def test_a_majority_of_invalid_votes_is_no_class():
    labels, p = predict_counts(np.array([[2, 3, 95]]), 0.001)
    assert labels[0] == -1
    assert p[0] < 1e-9
    made = certify_counts(np.array([[0, 9, 0]]), np.array([[2, 3, 95]]), 0.5, 0.001, bound="two")
    assert made["abstain"].all()
    assert made["n_invalid"][0] == 95


def test_equal_logits_and_equal_selection_votes_go_to_the_lowest_class():
    g = Smooth(lambda z: torch.zeros(len(z), 4), 0.5, 4, EAGER)
    assert g.counts(np.zeros((1, 2, 2)), 0, 0, 50).tolist() == [50, 0, 0, 0, 0]
    made = certify_counts(np.array([[0, 5, 5, 0]]), np.array([[0, 90, 10, 0]]), 1.0, 0.001)
    assert made["top"][0] == 1


@pytest.mark.parametrize(
    "n1, n2, label",
    [(10, 0, -1), (11, 0, 0), (67, 33, 0), (66, 34, -1), (0, 0, -1), (50521, 49479, 0)],
)
def test_predict_decides_by_the_exact_binomial_test(n1, n2, label):
    assert predict_counts(np.array([[n1, n2, 0]]), 0.001)[0][0] == label


def test_the_result_unpacks_like_the_published_code():
    made = Smooth(constant, 0.5, 3, EAGER).certify(np.zeros((1, 2, 2)), 10, 100, 0.001)
    label, radius = made
    assert (label, radius) == (made.label, made.radius)
    assert made.p_lower == pytest.approx(0.9332543008, abs=1e-9)
    assert made.p_upper is None


def test_linf_and_l1_equivalents():
    made = smoothing.l2_equivalents(np.array([0.0, 1.7388]), 3072)
    assert made["radius_l1_equivalent"].tolist() == [0.0, 1.7388]
    assert made["radius_linf_equivalent"][1] == pytest.approx(8 / 255, rel=1e-4)
    assert made["radius_linf_equivalent"][1] * np.sqrt(3072) < 1.7388


# --- refusals -------------------------------------------------------------------------------------


def refused(match, call):
    with pytest.raises(CertbenchError, match=match):
        call()


def test_mistakes_are_refused_before_the_model_runs():
    def never(z):
        raise AssertionError("the model ran")

    g = Smooth(never, 0.5, 3, EAGER)
    x = np.zeros((1, 2, 2))
    refused("noise level above 0", lambda: Smooth(never, 0.0, 3))
    refused("noise level above 0", lambda: Smooth(never, -0.25, 3))
    refused("use n >= 10", lambda: g.certify(x, 100, 9, 0.001))
    refused("use n >= 11", lambda: g.certify(x, 100, 10, 0.001, bound="two"))
    refused("use n >= 11", lambda: g.certify(x, 100, 10, 0.001, selection="single_stage"))
    refused("use n >= 11", lambda: g.predict(x, 10, 0.001))
    refused("n0 >= 1", lambda: g.certify(x, 0, 100, 0.001))
    refused("two_stage with bound: two",
            lambda: g.certify(x, 9, 99, 0.001, bound="two", selection="single_stage"))  # fmt: skip
    refused(r"values lie in \[0, 255\]", lambda: g.certify(255.0 * np.eye(2)[None], 9, 99, 0.001))
    refused("not in", lambda: g.certify(np.full((1, 2, 2), np.nan), 9, 99, 0.001))
    refused("one image", lambda: g.certify(np.zeros((1, 1, 2, 2)), 9, 99, 0.001))
    refused("unknown kind of noise", lambda: Noise(kind="gausian"))


def test_a_module_in_train_mode_is_refused():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))
    refused("train mode", lambda: Smooth(model.train(), 0.5, 2))
    model.eval()[1].train()
    refused("train mode", lambda: Smooth(model, 0.5, 2))
    Smooth(model.eval(), 0.5, 2)


def test_a_model_for_other_classes_is_refused():
    refused(
        r"not \[N, 4\]",
        lambda: Smooth(constant, 0.5, 4, EAGER).certify(np.zeros((1, 2, 2)), 9, 99, 0.001),
    )


def test_options_that_need_more_are_refused():
    counts = np.array([[1, 99, 0]])
    refused("selection votes", lambda: certify_counts(None, counts, 1.0, 0.01))
    refused("needs the labels", lambda: certify_counts(None, counts, 1.0, 0.01, selection="label"))
    refused("labels go from -1",
            lambda: certify_counts(None, counts, 1.0, 0.01, selection="label",
                                   labels=np.array([-1])))  # fmt: skip
    for bound in ("one", "two"):
        options = {"interval": "cp_randomised", "bound": bound}
        refused(
            "one coin", lambda options=options: certify_counts(counts, counts, 1, 0.01, **options)
        )


def test_an_answer_called_decided_stands_whatever_votes_follow():
    total, alpha = 12, 0.2
    decided = 0
    for top, second, invalid in itertools.product(range(total + 1), repeat=3):
        left = total - top - second - invalid
        if left < 0:
            continue
        counts = np.array([[top, second, invalid]])
        answers = {
            int(smoothing.predict_counts(counts + np.array([i, j, left - i - j]), alpha)[0][0])
            for i in range(left + 1)
            for j in range(left + 1 - i)
        }
        if smoothing.predict_decided(counts, left, alpha)[0]:
            decided += left > 0
            assert answers == {int(smoothing.predict_counts(counts, alpha)[0][0])}
        elif left == 0:
            pytest.fail("nothing is left to change the answer")
    assert decided > 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection": "single-stage"}, "selection: unknown value 'single-stage'"),
        ({"bound": "tow"}, "did you mean 'two'"),
        ({"interval": "wald"}, "interval: unknown value"),
        ({"kind": "laplace"}, "kind: unknown value"),
        ({"bound": "two", "selection": "single_stage"}, "two_stage with bound: two"),
    ],
    ids=str,
)
def test_a_misspelt_option_is_no_other_option(options, message):
    # All votes agree: any option that fell through to another would give a certificate.
    counts = np.array([[0, 100, 0, 0]])
    refused(message, lambda: certify_counts(counts, counts, 0.5, 0.001, **options))
    if "kind" not in options and "interval" not in options:
        g = Smooth(constant, 0.5, 3, EAGER)
        refused(message, lambda: g.certify(np.zeros((1, 2, 2)), 10, 100, 0.001, **options))


def test_votes_that_do_not_fit_each_other_are_refused():
    counts = np.array([[0, 100, 0, 0]])
    refused("has shape", lambda: certify_counts(counts[:, 1:], counts, 0.5, 0.001))
    refused("has shape", lambda: certify_counts(np.repeat(counts, 2, 0), counts, 0.5, 0.001))
    refused("negative", lambda: certify_counts(counts, np.array([[-1, 101, 0, 0]]), 0.5, 0.001))
    refused("whole numbers", lambda: certify_counts(counts, counts / 100, 0.5, 0.001))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: Smooth(f, float("inf"), 3), "above 0"),
        (lambda f: Smooth(f, float("nan"), 3), "sigma: holds NaN"),
        (lambda f: Smooth(f, None, 3), "sigma: is None"),
        (lambda f: Smooth(f, "0.25", 3), "sigma: is '0.25', not a number"),
        (lambda f: Smooth(f, [0.25, 0.5], 3), "one noise level above 0 for all images"),
        (lambda f: Smooth(f, 64, 3), "for noise of 64 levels of 255 give 0.251"),
        (lambda f: Smooth(f, 0.5, 0), "num_classes: must be one integer >= 1"),
        (lambda f: Smooth(f, 0.5, 3.5), "num_classes"),
        (lambda f: Smooth(f, 0.5, 3, batch_size=0, numerics="fast"), "batch_size"),
        (lambda f: Smooth(f, 0.5, 3, numerics="exat"), "did you mean 'exact'"),
        (lambda f: Smooth(f, 0.5, 3, {"seed": 1}), "Noise"),
        (lambda f: Smooth(None, 0.5, 3), "model: is None"),
        (lambda f: Smooth(f, 0.5, 3, device="gpu"), "device: is 'gpu'"),
    ],
)
def test_a_smoothed_classifier_that_cannot_be_is_refused(call, message):
    refused(message, lambda: call(constant))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, x: g.certify(x, 10, 1e3, 0.001), "n: must be one integer >= 0, is 1000.0"),
        # A sample is a 32-bit word of the noise's counter: beyond, the noise would repeat.
        (lambda g, x: g.certify(x, 10, 2**32 + 1, 0.001), "4,294,967,296 samples"),
        (lambda g, x: g.predict(x, 2**32 + 1, 0.001), "4,294,967,296 samples"),
        (lambda g, x: g.certify(x, 10.0, 100, 0.001), "n0: must be one integer"),
        (lambda g, x: g.certify(x, 10, 100, "0.001"), "alpha: is '0.001', not a number"),
        (lambda g, x: g.certify(x, 10, 100, 0.001, selection="label"), "label of an image"),
        (lambda g, x: g.certify(x, 10, 100, 0.001, item_index=1.5), "item_index"),
        (lambda g, x: g.predict(x, 100.0, 0.001), "n: must be one integer"),
        (lambda g, x: g.certify("cat.png", 10, 100, 0.001), "x: is a str"),
        (lambda g, x: g.certify(np.zeros((3, 0, 2)), 10, 100, 0.001), "one image"),
        # Levels 0 and 1 of 255 are no image in [0, 1], though their values are.
        (lambda g, x: g.certify(np.ones((3, 2, 2), np.uint8), 10, 100, 0.001), "pixels / 255"),
    ],
)
def test_calls_that_mean_nothing_are_refused_before_the_model_runs(call, message):
    def never(z):
        raise AssertionError("the model ran")

    refused(message, lambda: call(Smooth(never, 0.5, 3, EAGER), np.zeros((1, 2, 2))))


@pytest.mark.parametrize("n0", [0, -1, 10.0])
def test_sequential_certification_without_selection_samples_is_refused(n0):
    # Without them class 0 would be tested, whatever the image shows.
    rule = StoppingRule(sigma=0.5, alpha=0.001, looks=(100, 200), radii=(0.25,))
    g = Smooth(constant, 0.5, 3, EAGER)
    refused("n0", lambda: g.certify_sequential(np.zeros((1, 2, 2)), rule, n0))


def test_a_module_that_was_trained_on_since_is_refused():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))
    g = Smooth(model.eval(), 0.5, 2, EAGER)
    model.train()
    refused("train mode", lambda: g.certify(np.zeros((1, 2, 2)), 10, 100, 0.001))
    refused("train mode", lambda: g.predict(np.zeros((1, 2, 2)), 100, 0.001))


def test_answers_survive_a_copy_and_a_pickle_and_can_be_compared():
    g = Smooth(constant, 0.5, 3, EAGER)
    prediction = pickle.loads(pickle.dumps(copy.copy(g.predict(np.zeros((1, 2, 2)), 50, 0.001))))
    assert (prediction, prediction.n1, prediction.n2) == (1, 50, 0)
    assert prediction.p_value == 2.0**-49
    made = g.certify(np.zeros((1, 2, 2)), 10, 100, 0.001)
    again = pickle.loads(pickle.dumps(made))
    assert made == again
    assert len({made, again}) == 1
    assert made != g.certify(np.zeros((1, 2, 2)), 10, 101, 0.001)
