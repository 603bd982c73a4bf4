import numpy as np
import pytest
from scipy.ndimage import shift

from certbench.corruptions import three_d_motion as m
from certbench.corruptions.three_d import corrupt_3d, corrupt_3d_severities, generator


def smooth(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 236, (height // 8 + 2, width // 8 + 2, 3)).astype(float)
    fine = coarse.repeat(8, 0).repeat(8, 1)[:height, :width]
    return np.clip(fine + rng.normal(0, 8, fine.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(2))
def test_on_a_plane_a_sideways_motion_is_the_mean_of_shifted_copies(seed):
    height, width = 96, 128
    image = smooth(height, width, seed)
    depth = np.full((height, width), 0.4, np.float32)
    motion = m.draw_motion("xy", generator(seed, "xy_motion_blur"))
    out = corrupt_3d_severities(image, depth, "xy_motion_blur", seed)
    scale = width / 512
    total = np.zeros(image.shape)
    margin = 24
    for k in range(60):
        t = k / 59
        move = (-motion.down * scale * t, -motion.across * scale * t, 0)
        total += shift(image.astype(float), move, order=1, mode="nearest")
        if k + 1 in m.XY_FRAMES:
            made = out[m.XY_FRAMES.index(k + 1)].astype(float)
            gap = np.abs(made - total / (k + 1))[margin:-margin, margin:-margin]
            assert gap.max() <= 1.0


def test_on_a_plane_a_forward_motion_magnifies_about_the_principal_point():
    height, width = 90, 120
    u = np.arange(width) + 0.5 - width / 2
    v = np.arange(height)[:, None] + 0.5 - height / 2
    image = np.stack([128 + u + 0 * v, 128 + v + 0 * u, 100 + 0.5 * (u + v)], -1).astype(np.uint8)
    depth = np.full((height, width), 0.3, np.float32)
    motion = m.Motion("z", 0, 0, crop=0.5)
    for k, frame in enumerate(m.frames(image, depth, motion, 40)):
        size = 1 / (1 - k / 59 * 0.5)
        exact = np.stack([128 + u / size + 0 * v, 128 + v / size + 0 * u], -1)
        # Half a level for the input's rounding, half a source pixel for splatting.
        assert np.abs(frame[..., :2] - exact).max() <= 1.01
        assert np.abs((frame[..., :2] - exact).mean()) < 0.6


def dots(width=512, height=24):
    """Planes at depth 0.1, 0.2 and 0.4 side by side, each with a bright dot in the middle."""
    depth = np.repeat(np.float32([0.1, 0.2, 0.4]), [192, 160, 160])[None].repeat(height, 0)
    image = np.zeros((height, width, 3), np.uint8)
    for column in (130, 280, 440):
        image[10:14, column : column + 4] = 200
    return image, depth


@pytest.mark.parametrize(("k", "expected"), [(59, (60, 30, 15)), (19, (19.322, 9.661, 4.831))])
def test_displacement_is_inverse_in_depth(k, expected):
    image, depth = dots()
    *_, frame = m.frames(image, depth, m.Motion("xy", 60, 0), k + 1)
    at = np.arange(512)
    for column, moved in zip((130, 280, 440), expected, strict=True):
        window = slice(column - 75, column + 12)
        light = frame[:, window, 0].sum(0)
        centre = (light * at[window]).sum() / light.sum()
        assert column + 1.5 - centre == pytest.approx(moved, abs=0.02)


def test_doubling_the_resolution_doubles_the_displacement():
    image, depth = dots()
    shifts = []
    for step in (1, 2):
        small, near = image[::step, ::step], depth[::step, ::step]
        *_, frame = m.frames(small, near, m.Motion("xy", 60, 0), 60)
        at = np.arange(small.shape[1])
        light, before = frame[:, : 192 // step, 0].sum(0), small[:, : 192 // step, 0].sum(0)
        at = at[: 192 // step]
        shifts.append((before * at).sum() / before.sum() - (light * at).sum() / light.sum())
    assert shifts[0] == pytest.approx(2 * shifts[1], rel=0.01)


def test_uncovered_ground_is_background():
    depth = np.full((60, 120), 0.8, np.float32)
    depth[15:45, 40:70] = 0.1
    image = np.zeros((60, 120, 3), np.uint8)
    image[..., 2] = 200
    image[15:45, 40:70] = (200, 0, 0)
    *_, frame = m.frames(image, depth, m.Motion("xy", -60, 0), 60)
    red = frame[..., 0] > 1
    # The near square moves by 60 px at width 512, here 14.06 px to the right, less its edge pixels.
    rows, columns = np.nonzero(red)
    assert columns.min() >= 40 + 14 and columns.max() <= 70 + 15
    assert rows.min() >= 15 and rows.max() < 45
    uncovered = frame[15:45, 40:53]
    assert (uncovered[..., 2] > 199).all() and (uncovered[..., 0] < 1).all()


def test_the_nearer_surface_hides_the_farther_one():
    depth = np.full((40, 120), 0.8, np.float32)
    depth[:, 60:90] = 0.1
    image = np.full((40, 120, 3), 50, np.uint8)
    image[:, 60:90] = 250
    *_, frame = m.frames(image, depth, m.Motion("xy", 74, 0), 60)
    moved = 74 * 120 / 512
    covered = slice(int(62 - moved) + 1, int(88 - moved) - 1)
    assert (frame[:, covered] > 249).all()


def test_the_first_view_is_the_image_itself():
    image = smooth(40, 60)
    depth = np.random.default_rng(0).uniform(0.05, 1, (40, 60)).astype(np.float32)
    for kind in ("xy", "z"):
        motion = m.draw_motion(kind, np.random.default_rng(1))
        assert np.array_equal(next(m.frames(image, depth, motion)), image)
    still = list(m.frames(image, np.full((40, 60), 0.5), m.Motion("xy", 0, 0), 5))
    assert np.abs(still[-1] - image).max() < 1e-9


def test_motions_are_drawn_from_the_published_ranges():
    rng = np.random.default_rng(0)
    across = np.array([m.draw_motion("xy", rng).across for _ in range(4000)])
    assert set(np.unique(np.abs(across))) == set(range(50, 76))
    # 4,000 fair signs: five standard errors, false alarm 6e-7.
    assert abs((across > 0).mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)
    forward = [m.draw_motion("z", rng) for _ in range(2000)]
    assert {f.across for f in forward} == set(range(-30, 30))
    assert min(f.crop for f in forward) >= 0.5 and max(f.crop for f in forward) <= 0.6


def test_one_wrong_depth_does_not_set_the_scale_of_the_motion():
    image = smooth(48, 64)
    depth = np.full((48, 64), 0.5, np.float32)
    spoiled = depth.copy()
    spoiled[20, 20] = 0.02
    assert m.reference_depth(spoiled) == pytest.approx(0.5)
    one, two = (corrupt_3d(image, d, "xy_motion_blur", 3, 2).astype(int) for d in (depth, spoiled))
    assert np.abs(one - two).mean() < 3


def test_a_hole_is_filled_from_the_farther_side_of_the_narrowest_gap():
    image = np.zeros((5, 7, 3))
    disparity = np.zeros((5, 7))
    filled = np.ones((5, 7), bool)
    image[:, :3], disparity[:, :3] = 10, 20.0
    image[:, 5:], disparity[:, 5:] = 90, 2.0
    filled[:, 3:5] = False
    m.fill_holes(image, disparity, filled)
    assert (image[:, 3:5] == 90).all()


def test_a_hole_at_the_border_takes_the_nearest_pixel():
    image = np.arange(12.0).reshape(1, 4, 3).repeat(3, 0)
    filled = np.ones((3, 4), bool)
    filled[:, 2:] = False
    m.fill_holes(image, np.ones((3, 4)), filled)
    assert (image[:, 2:] == image[:, 1:2]).all()
    lonely = np.zeros((4, 5, 3))
    lonely[1, 1] = 7
    only = np.zeros((4, 5), bool)
    only[1, 1] = True
    m.fill_holes(lonely, only * 1.0, only)
    assert (lonely == 7).all()
