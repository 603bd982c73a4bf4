import numpy as np
import pytest
from PIL import Image

from certbench.corruptions import three_d_depth as d
from certbench.corruptions.three_d import CORRUPTIONS, FAMILIES, NEEDS_DEPTH, corrupt_3d
from certbench.errors import CertbenchError

SHAPES = tuple(sorted(NEEDS_DEPTH - set(FAMILIES["video"])))


def test_sixteen_bit_depth_round_trips(tmp_path):
    raw = np.array([[0, 1000, 40000, 65535]], np.uint16)
    Image.fromarray(raw).save(tmp_path / "depth.png")
    read = d.read_depth(tmp_path / "depth.png")
    assert read.dtype == np.uint16 and np.array_equal(read, raw)


def test_sixteen_bit_depth_keeps_far_values_far_and_marks_the_unknown():
    raw = np.array([[0, 1000, 7999, 40000, 65535]], np.uint16)
    depth = d.from_sixteen_bit(raw)[0]
    assert np.isnan(depth[[0, 4]]).all()
    assert depth[1:4] == pytest.approx([0.125, 7999 / 8000, 7999 / 8000])
    with pytest.raises(CertbenchError, match="int16"):
        d.from_sixteen_bit(raw.astype(np.int16))


def test_only_sixteen_bit_one_channel_files_are_depth(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "colour.png")
    with pytest.raises(CertbenchError, match="mode RGB"):
        d.read_depth(tmp_path / "colour.png")
    with pytest.raises(CertbenchError, match="cannot be read"):
        d.read_depth(tmp_path / "missing.png")


def test_metric_depth_is_scaled_and_the_sky_is_far():
    depth = d.from_metres(np.array([[15.0, 300.0, np.inf, 0.0, np.nan, -1.0]]), full_scale=150)
    assert depth[0, :3].tolist() == pytest.approx([0.1, 1.0, 1.0])
    assert np.isnan(depth[0, 3:]).all()


def test_inverse_depth_is_inverted_and_cut_at_a_half():
    depth = d.from_inverse(np.array([[5120.0, 2048.0, 1024.0, 0.0, np.nan]]))
    assert depth[0, :4].tolist() == pytest.approx([0.1, 0.25, 0.5, 0.5], rel=1e-4)
    assert np.isnan(depth[0, 4])


def test_invalid_pixels_take_the_depth_of_the_nearest_valid_one():
    depth = np.full((5, 9), 0.2, np.float32)
    depth[:, 5:] = 0.8
    holed = depth.copy()
    holed[2, 1], holed[2, 7], holed[0, 0], holed[4, 8] = np.nan, np.inf, 0.0, -3.0
    assert np.array_equal(d.prepared(holed, (5, 9), "fog_3d"), depth)
    assert d.invalid_share(holed) == pytest.approx(4 / 45)


def test_tiny_depth_is_raised_so_that_blur_radii_stay_finite():
    assert d.prepared(np.full((2, 2), 1e-6), (2, 2), "far_focus").min() == np.float32(0.02)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("fault", ["zero", "nan", "inf", "one pixel", "all equal"])
def test_odd_depth_gives_a_defined_image(name, fault):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 48, 3)).astype(np.uint8)
    depth = np.linspace(0.05, 0.9, 32 * 48).reshape(32, 48).astype(np.float32)
    if fault == "all equal":
        depth[:] = 0.3
    elif fault == "one pixel":
        depth[:] = 0.5
        depth[10, 10] = 0.05
    else:
        depth[::3] = {"zero": 0.0, "nan": np.nan, "inf": np.inf}[fault]
    out = corrupt_3d(image, depth, name, 4, 1)
    assert out.shape == image.shape and out.dtype == np.uint8
    assert 20 < out.mean() < 235


def test_unusable_depth_is_refused():
    image = np.zeros((32, 32, 3), np.uint8)
    depth = np.full((32, 32), 0.5, np.float32)
    mostly = depth.copy()
    mostly[:17] = np.nan
    with pytest.raises(CertbenchError, match="53% of the depth map is invalid"):
        corrupt_3d(image, mostly, "fog_3d", 1, 0)
    with pytest.raises(CertbenchError, match="the depth map is"):
        corrupt_3d(image, depth[:16], "fog_3d", 1, 0)
    with pytest.raises(CertbenchError, match="has type uint16"):
        corrupt_3d(image, (depth * 100).astype(np.uint16), "fog_3d", 1, 0)
    assert set(SHAPES) < set(CORRUPTIONS)
