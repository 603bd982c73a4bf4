import hashlib

import numpy as np
import pytest
from scipy import ndimage

from certbench.corruptions import corrupt
from certbench.corruptions import two_d_blur as blur
from certbench.corruptions.imagecorruptions_adapter import gaussian, package
from certbench.corruptions.severity import SEVERITIES, entry


def photograph(shape, seed=0):
    """A smooth image with noise on it, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    waves = ndimage.gaussian_filter(rng.normal(size=(*shape, 3)), (4, 4, 0)) * 900
    return np.clip(128 + waves + rng.normal(0, 8, (*shape, 3)), 0, 255).astype(np.uint8)


def literal_glass(image, sigma, delta, iterations, rng):
    """The published loop, swap and all."""
    x = np.uint8(gaussian(image / 255.0, sigma, multichannel=True) * 255)
    for _ in range(iterations):
        for h in range(x.shape[0] - delta, delta, -1):
            for w in range(x.shape[1] - delta, delta, -1):
                dx, dy = rng.randint(-delta, delta, size=(2,))
                there = h + dy, w + dx
                x[h, w], x[there] = x[there], x[h, w]
    return np.uint8(np.clip(gaussian(x / 255.0, sigma, multichannel=True), 0, 1) * 255)


@pytest.mark.parametrize("delta", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(33, 40), (41, 32)])
def test_glass_blur_by_links_equals_the_literal_loop(delta, shape):
    image = photograph(shape, seed=delta)
    out = blur.glass_blur(image, (0.7, delta, 2), np.random.RandomState(delta))
    expected = literal_glass(image, 0.7, delta, 2, np.random.RandomState(delta))
    assert np.array_equal(out, expected)


def test_glass_blur_leaves_the_generator_where_the_literal_loop_does():
    first, second = np.random.RandomState(2), np.random.RandomState(2)
    blur.glass_blur(photograph((36, 36)), (0.7, 3, 2), first)
    literal_glass(photograph((36, 36)), 0.7, 3, 2, second)
    assert first.randint(2**31) == second.randint(2**31)


@pytest.mark.parametrize("shape", [(32, 32), (37, 91), (64, 48), (225, 101), (299, 33)])
def test_zoom_blur_equals_scipy_zoom(shape):
    image = photograph(shape)
    for table in ("imagenet", "tiny64"):
        for severity in SEVERITIES:
            stop, step = entry("zoom_blur", severity, table)
            x = (image / 255.0).astype(np.float32)
            total = np.zeros_like(x)
            factors = np.arange(1, stop, step)
            for factor in factors:
                layer = package().clipped_zoom(x, factor)
                total += layer[: shape[0], : shape[1]]
            expected = np.uint8(np.clip((x + total) / (len(factors) + 1), 0, 1) * 255)
            assert np.array_equal(blur.zoom_blur(image, (stop, step)), expected)


MOTION = """
1 -30 127.4448 64.6236 89ebf2d6dbe4
1 0 127.3294 52.6002 84a05388a2ce
1 20 127.2175 41.7498 1ea34c137f0a
1 45 127.192 39.2006 e4f9d2a57c4e
4 -30 128.5977 50.916 9d4457a3bcb3
4 0 126.9224 29.04 15979177a662
4 20 125.8894 12.8759 e3ba42c473c9
4 45 125.5747 12.6558 f1db04ccadb7
"""


@pytest.mark.parametrize("row", [line.split() for line in MOTION.strip().splitlines()])
def test_motion_blur_along_a_given_angle_reproduces_the_golden_bytes(golden_image, row):
    severity, angle, mean, std, digits = row
    parameters = entry("motion_blur", int(severity), "imagenet")
    out = blur.motion_blur(golden_image(64), parameters, angle=float(angle))
    assert hashlib.sha256(out.tobytes()).hexdigest()[:12] == digits, (mean, std)


def test_motion_blur_equals_the_package_at_every_angle():
    image = photograph((50, 77))
    for angle in np.linspace(-180, 180, 25):
        out = blur.motion_blur(image, (10, 3), angle=float(angle))
        expected = package()._motion_blur(image, radius=10, sigma=3, angle=angle)
        assert np.array_equal(out, np.clip(expected, 0, 255).astype(np.uint8)), angle


def test_motion_blur_of_a_small_image_loses_the_weight_beyond_it():
    image = np.full((32, 32, 3), 200, np.uint8)
    taps = blur.motion_taps(32, 32, 20, 15, 0.0)
    assert 200 * sum(weight for weight, _, _ in taps) == pytest.approx(194.4, abs=0.05)
    out = blur.motion_blur(image, entry("motion_blur", 5, "imagenet"), angle=0.0)
    assert (out == 194).all()


def test_motion_blur_wants_an_angle_or_a_generator():
    with pytest.raises(TypeError, match="angle or a generator"):
        blur.motion_blur(np.zeros((32, 32, 3), np.uint8), (10, 3))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_blur_brightens_by_the_sum_of_its_kernel(severity):
    gain = {4: 1.01298, 5: 1.01079}.get(severity, 1.0)
    radius, alias_sigma = entry("defocus_blur", severity, "imagenet")
    kernel = package().disk(radius=radius, alias_blur=alias_sigma)
    assert kernel.astype(float).sum() == pytest.approx(gain, abs=1e-5)
    out = corrupt(np.full((64, 64, 3), 200, np.uint8), "defocus_blur", severity, "imagenet", 0)
    assert np.abs(out.astype(float) - 200 * gain).max() <= 1


@pytest.mark.parametrize("table", ["imagenet", "imagenet299", "tiny64", "cifar32"])
@pytest.mark.parametrize("corruption", ["gaussian_blur", "glass_blur", "motion_blur", "zoom_blur"])
def test_blurs_keep_a_constant_image(corruption, table):
    for severity in SEVERITIES:
        for value in (0, 3, 128, 255):
            image = np.full((64, 72, 3), value, np.uint8)
            out = corrupt(image, corruption, severity, table, seed=severity).astype(int)
            # One level is lost where a weighted sum ends just below an integer; glass blurs twice.
            assert out.max() <= value
            assert out.min() >= value - (2 if corruption == "glass_blur" else 1)
