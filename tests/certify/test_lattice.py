"""Lattice noise: thresholds against 40 digits, the law of the draws, and the refusals."""

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from certbench.certify import lattice, sampling
from certbench.certify import noise as noises
from certbench.certify.smoothing import Noise, Smooth
from certbench.errors import CertbenchError

SEED = 0x0123456789ABCDEF


def exact_cdf(j, sigma):
    with mpmath.workdps(40):
        return mpmath.ncdf((mpmath.mpf(j) + mpmath.mpf(1) / 2) / (255 * mpmath.mpf(sigma)))


def draws(sigma, samples, elements=64, item=3, stream=noises.ESTIMATION):
    table = torch.from_numpy(lattice.thresholds(sigma).copy())
    made = lattice.steps(
        SEED, stream, torch.full((len(samples),), item), torch.as_tensor(samples), elements, table
    )
    return made.numpy()


@pytest.mark.parametrize("sigma", [0.12, 0.25, 1.0])
def test_thresholds_are_the_normal_law_within_the_stated_distance(sigma):
    table = lattice.thresholds(sigma)
    reach = lattice.largest_step(sigma)
    assert len(table) == 2 * reach
    assert (np.diff(table) >= 0).all()
    places = [-reach, -reach + 1, -400, -255, -100, -17, -2, -1, 0, 1, 30, 254, 400, reach - 1]
    # The errors of all thresholds together bound the distance of one value's law.
    one = lattice.distance_from_law(sigma, 1)
    errors = [
        abs(mpmath.mpf(int(table[j + reach])) / 2**lattice.BITS - exact_cdf(j, sigma))
        for j in places
    ]
    assert float(sum(errors)) <= one
    assert one < 1e-12
    assert lattice.distance_from_law(sigma, 3072) == pytest.approx(3072 * one)
    # Too small to be seen in a bound whose last certifiable step is 7e-5 away from 1.
    assert lattice.distance_from_law(sigma, 150_528) < 1e-7


def test_drawn_steps_follow_the_rounded_normal_law():
    # Chi-square over 61 cells, 128,000 draws: a false alarm has probability 1e-4.
    sigma = 0.05
    counts = np.bincount(np.clip(draws(sigma, np.arange(2000)).ravel(), -30, 30) + 30, minlength=61)
    edges = (np.arange(-30, 30) + 0.5) / (255 * sigma)
    p = np.diff(np.concatenate([[0.0], stats.norm.cdf(edges), [1.0]]))
    assert stats.chisquare(counts, p * counts.sum()).pvalue > 1e-4
    # The same test sees noise that is 3 % too wide.
    wrong = np.diff(np.concatenate([[0.0], stats.norm.cdf(edges * 1.03), [1.0]]))
    assert stats.chisquare(counts, wrong * counts.sum()).pvalue < 1e-6


def test_a_step_is_the_number_of_thresholds_below_one_62_bit_word():
    sigma, elements = 0.25, 7
    made = draws(sigma, np.array([42, 7]), elements)
    reach = lattice.largest_step(sigma)
    table = [int(t) for t in lattice.thresholds(sigma)]
    for row, sample in enumerate((42, 7)):
        for element in range(elements):
            counter = [element // 2, sample, 3, noises.ESTIMATION]
            words = noises.philox4x32(counter, (SEED & 0xFFFFFFFF, SEED >> 32)).tolist()
            high, low = words[2 * (element % 2)], words[2 * (element % 2) + 1]
            uniform = (high >> 2) << 32 | low
            assert made[row, element] == sum(t <= uniform for t in table) - reach


def test_draws_belong_to_image_sample_and_stream():
    many = draws(0.25, np.arange(50))
    assert np.array_equal(draws(0.25, np.arange(20, 30)), many[20:30])
    assert not np.array_equal(draws(0.25, np.arange(50), item=4), many)
    assert not np.array_equal(draws(0.25, np.arange(50), stream=noises.SELECTION), many)
    assert np.array_equal(draws(0.25, np.arange(50), elements=9), many[:, :9])
    # Neighbours are independent: 5 standard errors of a correlation over 3200 values.
    assert abs(np.corrcoef(many[:, ::2].ravel(), many[:, 1::2].ravel())[0, 1]) < 5 / np.sqrt(1600)


@pytest.mark.parametrize(
    "sigma, expected",
    [(0.1, (-255, 510)), (0.25, (-255, 510)), (0.5, (-765, 1020)), (1.0, (-1530, 1785))],
)
def test_values_far_outside_the_pixel_range_are_clipped(sigma, expected):
    assert lattice.clip_range(sigma) == expected


def test_network_inputs_are_levels_over_255_and_clipped():
    images = torch.arange(0, 192).view(1, 3, 8, 8).float() / 255
    perturb = lattice.perturbation(SEED, 1.0, noises.ESTIMATION, images, "cpu")
    out = torch.empty(100, 3, 8, 8).to(memory_format=torch.channels_last)
    perturb(torch.zeros(100, dtype=torch.long), torch.full((100,), 3), torch.arange(100), out)
    levels = out.double() * 255
    assert (levels - levels.round()).abs().max() < 1e-4
    expected = images.flatten(1).double().mul(255).round().numpy() + draws(1.0, np.arange(100), 192)
    assert np.array_equal(
        levels.round().flatten(1).numpy(), np.clip(expected, *lattice.clip_range(1.0))
    )


def test_images_between_levels_are_refused():
    good = torch.arange(256).view(1, 1, 16, 16).float() / 255
    assert torch.equal(lattice.levels_of(good).flatten(), torch.arange(256))
    with pytest.raises(CertbenchError, match="multiples of 1/255"):
        lattice.levels_of(good + 1e-4)


def test_rounding_in_the_classifier_equals_noise_on_the_lattice_in_law():
    # f(Q(x + e)) with Gaussian e against lattice noise: the same class probability. 2 x 20000
    # votes; 5 standard errors of their difference.
    def model(z):
        score = torch.frac(z.flatten(1).double().sum(1) * 255 / 3 + 0.01) - 0.4
        return torch.stack([-score, score], 1)

    x = np.full((1, 1, 2), 100 / 255)
    on_lattice = Smooth(model, 0.01, 2, Noise(5, "eager", "lattice"))
    rounded = Smooth(lattice.Rounded(model, 0.01), 0.01, 2, Noise(6, "eager"), device="cpu")
    plain = Smooth(model, 0.01, 2, Noise(6, "eager"))
    n = 20_000
    a, b, c = (g.counts(x, noises.ESTIMATION, 0, n)[0] / n for g in (on_lattice, rounded, plain))
    assert abs(a - b) < 5 * np.sqrt(0.5 / n)
    # Without Q the probability is another one, so the comparison can fail.
    assert abs(c - b) > 0.02


def test_lattice_certificates_hold_and_pay_for_the_distance_of_their_law():
    weight = np.array([0.6, 0.8])

    def model(z):
        score = z.flatten(1).double() @ torch.as_tensor(weight) - 0.6
        return torch.stack([-score, score], 1)

    x = np.full((1, 1, 2), 128 / 255)
    distance = abs(weight.sum() * 128 / 255 - 0.6)
    g = Smooth(model, 0.25, 2, Noise(5, "eager", "lattice"))
    made = g.certify(x, 100, 5000, 0.001)
    assert made.label == 1
    # Rounding moves the boundary by at most half a level per pixel.
    assert distance - 0.17 * 0.25 < made.radius < distance + 0.5 / 255 * weight.sum()
    gaussian = Smooth(model, 0.25, 2, Noise(5, "eager"))
    assert gaussian.certify(x, 100, 5000, 0.001).radius == pytest.approx(made.radius, abs=0.04)


def test_identity_names_the_integer_scheme_on_every_device():
    noise = sampling.Noise(1, "triton", "lattice")
    assert (noise.scheme, noise.resolved_backend("cpu")) == ("lattice-v1", "integer")
