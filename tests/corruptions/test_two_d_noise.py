"""On a constant image the law of every noise is known in closed form.

Chi-square tests at a false-alarm probability of 1e-5 each (seeds are fixed, so a pass stays one).
"""

import numpy as np
import pytest

from certbench.corruptions import corrupt
from certbench.corruptions.severity import SEVERITIES, entry
from certbench.corruptions.two_d_noise import impulse_noise

LEVELS = (0, 40, 128, 230, 255)
ALPHA = 1e-5


def constant(value):
    return np.full((96, 96, 3), value, np.uint8)


@pytest.mark.parametrize("table", ["imagenet", "cifar32"])
@pytest.mark.parametrize("value", LEVELS)
def test_gaussian_noise_on_a_constant_is_a_clipped_truncated_normal(laws, value, table):
    for severity in SEVERITIES:
        out = corrupt(constant(value), "gaussian_noise", severity, table, seed=severity)
        law = laws.normal(value, entry("gaussian_noise", severity, table))
        assert laws.fits(np.bincount(out.ravel(), minlength=256), law) > ALPHA


@pytest.mark.parametrize("table", ["imagenet", "tiny64"])
@pytest.mark.parametrize("value", LEVELS)
def test_shot_noise_on_a_constant_is_a_scaled_poisson_count(laws, value, table):
    for severity in SEVERITIES:
        out = corrupt(constant(value), "shot_noise", severity, table, seed=severity)
        law = laws.poisson(value, entry("shot_noise", severity, table))
        assert laws.fits(np.bincount(out.ravel(), minlength=256), law) > ALPHA


@pytest.mark.parametrize("value", LEVELS[1:])
def test_speckle_noise_on_a_constant_is_normal_with_a_deviation_in_proportion(laws, value):
    for severity in SEVERITIES:
        out = corrupt(constant(value), "speckle_noise", severity, "imagenet", seed=severity)
        law = laws.normal(value, entry("speckle_noise", severity, "imagenet") * value / 255)
        assert laws.fits(np.bincount(out.ravel(), minlength=256), law) > ALPHA


def test_speckle_noise_leaves_black_alone():
    assert not corrupt(constant(0), "speckle_noise", 5, "imagenet", seed=1).any()


@pytest.mark.parametrize("value", LEVELS)
@pytest.mark.parametrize("table", ["imagenet", "imagenet299", "cifar32"])
def test_impulse_noise_replaces_its_share_by_black_and_white_alike(laws, value, table):
    for severity in SEVERITIES:
        share = entry("impulse_noise", severity, table)
        out = corrupt(constant(value), "impulse_noise", severity, table, seed=severity)
        law = np.zeros(256)
        law[value] += 1 - share
        law[0] += share / 2
        law[255] += share / 2
        assert laws.fits(np.bincount(out.ravel(), minlength=256), law) > ALPHA


def test_impulse_noise_strikes_values_not_pixels():
    out = corrupt(constant(128), "impulse_noise", 5, "imagenet", seed=3)
    struck = out != 128
    together = struck.all(axis=2).mean()
    # Independent channels: all three with probability 0.27^3 = 0.0197; 9216 pixels, 5 sigma.
    assert abs(together - 0.27**3) < 5 * np.sqrt(0.27**3 / 9216)


def test_impulse_noise_draws_from_its_generator_alone():
    first, second = (impulse_noise(constant(9), 0.2, np.random.RandomState(4)) for _ in range(2))
    assert np.array_equal(first, second)
