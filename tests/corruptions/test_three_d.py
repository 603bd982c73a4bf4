import hashlib

import numpy as np
import pytest

from certbench.corruptions import three_d_motion, three_d_sensor
from certbench.corruptions.three_d import (
    CORRUPTIONS,
    FAMILIES,
    IMAGENET_3DCC,
    NEEDS_DEPTH,
    STOCHASTIC,
    corrupt_3d,
    corrupt_3d_severities,
)
from certbench.errors import CertbenchError

STILL = tuple(name for name in CORRUPTIONS if name not in FAMILIES["video"])


def wavy(height=64, width=64):
    """A deterministic image with detail at all scales."""
    row, column, channel = np.ogrid[:height, :width, :3]
    return ((7 * column + 13 * row + 29 * channel + column * row // 5) % 256).astype(np.uint8)


def ramp(height=64, width=64):
    row = (0.05 + 0.45 * np.arange(width) / (width - 1)).astype(np.float32)
    return np.broadcast_to(row, (height, width)).copy()


GOLDEN = """
fog_3d 1 127.2196 31.3939 23,46,70 93,107,120 150,106,112 111,115,119 65332c8742ae
fog_3d 3 127.2143 12.565 57,73,89 120,123,126 128,126,127 127,127,127 27127575e5c5
fog_3d 5 127.0993 6.7137 80,91,102 126,126,127 127,127,127 127,127,127 88443aee23ba
flash 1 150.2919 82.9324 0,30,60 62,96,129 255,25,64 7,48,89 0c7a4f41c903
flash 3 172.8846 85.1779 0,32,64 77,118,160 255,36,91 10,71,133 38ea35f62585
flash 5 196.2334 81.0367 0,36,72 106,163,220 255,57,145 17,119,220 b9db772c31a5
color_quant 1 124.2324 73.6906 0,24,56 48,80,112 240,16,48 0,32,56 3b1b65b1d89f
color_quant 3 112.2083 73.1628 0,0,32 32,64,96 224,0,32 0,32,32 6c0c21e9c3fb
color_quant 5 64.125 63.9999 0,0,0 0,0,0 128,0,0 0,0,0 0b275b1861d2
near_focus 1 127.2264 38.6266 0,29,58 64,82,111 139,112,91 135,118,91 592942335faa
near_focus 3 127.1594 25.2356 0,29,58 94,98,113 129,127,125 122,122,110 3a4cc7e54dc9
near_focus 5 127.0834 19.9314 0,29,58 117,119,120 127,127,127 109,114,111 59f9a2bc4047
far_focus 1 127.1119 56.8496 67,91,110 60,82,111 245,19,48 5,34,63 -
far_focus 3 126.3997 47.6251 86,99,110 108,111,118 245,19,48 5,34,63 -
far_focus 5 125.7578 41.1556 89,100,111 125,127,125 198,47,47 5,34,63 -
"""


@pytest.mark.parametrize("line", GOLDEN.split("\n")[1:-1])
def test_published_formulas_give_known_values(line):
    """Values computed from the published formulas in single precision, output truncated."""
    name, severity, mean, std, *pixels, sha = line.split()
    depth = ramp()
    out = corrupt_3d(wavy(), depth, name, int(severity), 0, reshading=depth / depth.max())
    if sha != "-" and hashlib.sha256(out.tobytes()).hexdigest().startswith(sha):
        return
    # Other hardware or libraries: at most 1 % of the values may differ, by one level.
    assert out.mean() == pytest.approx(float(mean), abs=0.01)
    assert out.std() == pytest.approx(float(std), abs=0.01)
    for place, values in zip(((0, 0), (10, 20), (40, 50), (63, 63)), pixels, strict=True):
        assert np.abs(out[place].astype(int) - [int(v) for v in values.split(",")]).max() <= 1


def test_the_released_types_are_all_here():
    assert len(IMAGENET_3DCC) == 12 and set(IMAGENET_3DCC) <= set(CORRUPTIONS)
    assert set(CORRUPTIONS) - set(IMAGENET_3DCC) == {"flash_geometric"}


@pytest.mark.parametrize("name", STILL)
def test_equal_seeds_give_equal_bytes_and_inputs_stay_as_they_were(name):
    image, depth = wavy(40, 56), ramp(40, 56)
    kept = image.copy(), depth.copy()
    one = corrupt_3d(image, depth, name, 3, 11, reshading=depth)
    corrupt_3d(wavy(33, 47), ramp(33, 47), name, 5, 12, reshading=ramp(33, 47))
    assert np.array_equal(one, corrupt_3d(image, depth, name, 3, 11, reshading=depth))
    other = corrupt_3d(image, depth, name, 3, 12, reshading=depth)
    assert np.array_equal(one, other) != (name in STOCHASTIC)
    assert np.array_equal(image, kept[0]) and np.array_equal(depth, kept[1])


@pytest.mark.parametrize("name", STILL)
def test_one_pass_over_all_severities_equals_five_calls(name):
    image, depth = wavy(32, 48), ramp(32, 48)
    together = corrupt_3d_severities(image, depth, name, 5, reshading=depth)
    for severity, out in enumerate(together, start=1):
        assert np.array_equal(out, corrupt_3d(image, depth, name, severity, 5, reshading=depth))
    assert len({out.tobytes() for out in together}) == 5


@pytest.mark.parametrize("size", [(32, 32), (224, 224), (300, 512), (35, 61), (1, 7)])
def test_still_types_run_at_all_sizes(size):
    image, depth = wavy(*size), ramp(*size)
    for name in STILL:
        if "motion" in name and size[0] > 200:
            # A whole motion takes seconds at these sizes; its views are the same code.
            motion = three_d_motion.draw_motion(name.split("_")[0], np.random.default_rng(0))
            out = list(three_d_motion.frames(image, depth, motion, 3))[-1].astype(np.uint8)
        else:
            out = corrupt_3d(image, depth, name, 1, 3, reshading=depth)
        assert out.shape == (*size, 3) and out.dtype == np.uint8


@pytest.mark.parametrize("severity", range(1, 6))
def test_quantisation_keeps_the_highest_bits(severity):
    every = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
    out = corrupt_3d(every, None, "color_quant", severity, 0)
    assert len(np.unique(out)) == 2 ** (6 - severity)
    step = 2 ** (2 + severity)
    assert np.array_equal(out, every // step * step)


@pytest.mark.parametrize("severity", [1, 2])
def test_iso_noise_has_the_variance_of_photons_and_readout(severity):
    value = 102 / 255
    image = np.full((200, 200, 3), 102, np.uint8)
    noisy = three_d_sensor.iso_noise(image, severity, np.random.default_rng(5))
    variance = value / 25 + (0.7 * three_d_sensor.ISO_NOISE[severity - 1]) ** 2
    n = noisy.size
    # Five standard errors of mean and variance of 120,000 near-normal values: false alarm 1e-6;
    # clipping at 0 and 1 takes less than 2 % off the variance.
    assert noisy.mean() == pytest.approx(value, abs=5 * np.sqrt(variance / n) + 2e-3)
    assert noisy.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / n) + 0.02)


def test_low_light_darkens_by_the_square_and_defines_constant_images():
    for severity, mean, std in ((1, 0.200866, 0.17935), (3, 0.133911, 0.119567)):
        dark = three_d_sensor.darkened(wavy(), severity)
        assert dark.mean() == pytest.approx(mean, abs=1e-6)
        assert dark.std() == pytest.approx(std, abs=1e-6)
    flat = three_d_sensor.darkened(np.full((8, 8, 3), 51, np.uint8), 1)
    assert np.allclose(flat, 0.6 * 0.2**2)
    noisy = three_d_sensor.low_light(
        np.full((200, 200, 3), 204, np.uint8), 1, np.random.default_rng(1)
    )
    level = 0.6 * 0.8**2
    variance = level / 120 + 0.018**2
    # 120,000 values: five standard errors, false alarm 1e-6.
    assert noisy.mean() == pytest.approx(level, abs=5 * np.sqrt(variance / noisy.size))
    assert noisy.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / noisy.size) + 0.005)


def test_severities_share_the_noise():
    flat = np.full((64, 64, 3), 128, np.uint8)
    one, two = (
        three_d_sensor.iso_noise(flat, s, np.random.default_rng(3)) - 128 / 255 for s in (1, 3)
    )
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.8


@pytest.mark.parametrize("name", sorted(NEEDS_DEPTH))
def test_types_that_need_depth_say_so(name):
    with pytest.raises(CertbenchError, match=f"'{name}' needs a depth map"):
        corrupt_3d(wavy(), None, name, 1, 0)


def test_mistakes_are_refused():
    image, depth = wavy(), ramp()
    with pytest.raises(CertbenchError, match="did you mean 'fog_3d'"):
        corrupt_3d(image, depth, "fog3d", 1, 0)
    for severity in (0, 6, True, 2.5):
        with pytest.raises(CertbenchError, match="severity is"):
            corrupt_3d(image, depth, "fog_3d", severity, 0)
    for seed in (-1, 0.5, None):
        with pytest.raises(CertbenchError, match="seed is"):
            corrupt_3d(image, depth, "fog_3d", 1, seed)
    for wrong in (image[..., 0], image.astype(np.float32), image.transpose(2, 0, 1)):
        with pytest.raises(CertbenchError, match="expected uint8"):
            corrupt_3d(wrong, depth, "fog_3d", 1, 0)
    with pytest.raises(CertbenchError, match="flash_geometric"):
        corrupt_3d(image, depth, "flash", 1, 0)
    with pytest.raises(CertbenchError, match="reshading is"):
        corrupt_3d(image, depth, "flash", 1, 0, reshading=depth[:5])
