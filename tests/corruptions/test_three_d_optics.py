import numpy as np
import pytest

from certbench.corruptions import three_d_optics as o
from certbench.corruptions.three_d import corrupt_3d


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("severity", range(1, 6))
def test_fog_on_a_plane_mixes_in_the_mean_of_the_image(severity):
    image = noise(40, 40)
    out = corrupt_3d(image, np.full((40, 40), 0.1, np.float32), "fog_3d", severity, 0)
    t = np.exp(-o.FOG[severity - 1] * 0.1)
    exact = t * image + (1 - t) * image.mean()
    assert np.abs(out - exact).max() <= 1.0
    assert abs(out.mean() - image.mean()) <= 1.0


def test_fog_passes_a_known_share_and_less_with_distance():
    assert np.exp(-o.FOG[2] * 0.1) == pytest.approx(0.301194, abs=1e-6)
    image = noise(60, 80)
    depth = np.broadcast_to(np.linspace(0.05, 0.5, 80, dtype=np.float32), (60, 80))
    out = corrupt_3d(image, depth, "fog_3d", 2, 0).astype(float)
    contrast = [out[:, i : i + 10].std() for i in range(0, 80, 10)]
    assert (np.diff(contrast) < 0).all()


def test_the_airlight_is_the_images_own():
    dark, bright = noise(32, 32) // 4, 192 + noise(32, 32) // 4
    depth = np.full((32, 32), 0.9, np.float32)
    assert corrupt_3d(dark, depth, "fog_3d", 5, 0).mean() < 40
    assert corrupt_3d(bright, depth, "fog_3d", 5, 0).mean() > 190


@pytest.mark.parametrize("name", ["near_focus", "far_focus"])
@pytest.mark.parametrize("severity", [1, 5])
def test_a_plane_is_in_focus(name, severity):
    image = noise(40, 40)
    out = corrupt_3d(image, np.full((40, 40), 0.3, np.float32), name, severity, 0)
    assert np.abs(out.astype(int) - image).max() <= 1


def two_planes(height=48, width=96):
    depth = np.full((height, width), 0.2, np.float32)
    depth[:, width // 2 :] = 0.6
    return depth


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_each_focus_keeps_its_own_plane_sharp(severity):
    image, depth = noise(48, 96), two_planes()
    for name, sharp, soft in (
        ("near_focus", slice(0, 48), slice(48, 96)),
        ("far_focus", slice(48, 96), slice(0, 48)),
    ):
        out = corrupt_3d(image, depth, name, severity, 0)
        assert np.abs(out[:, sharp].astype(int) - image[:, sharp]).max() <= 1
        assert out[:, soft].astype(float).std() < 0.5 * image[:, soft].std()


def test_blur_radii_follow_the_circle_of_confusion():
    depth = np.linspace(0.05, 0.5, 64, dtype=np.float32)[None]
    borders, radii = o.focus_radii(depth, True, 1)
    assert radii[0] == 0
    assert radii[[1, 4, 8]] == pytest.approx([1.59106, 2.45564, 2.70066], abs=1e-4)
    borders, radii = o.focus_radii(depth, False, 5)
    assert radii[[0, 1, 6, 7, 8]] == pytest.approx(
        [43.4103, 17.4706, 0.79839, 0, 0.61973], abs=2e-3
    )
    assert len(borders) == 9
    _, double = o.focus_radii(depth, False, 5, scale=2.0)
    assert double == pytest.approx(2 * radii)


def test_radii_scale_with_the_width_where_asked():
    small, large = noise(32, 64), noise(32, 64).repeat(2, 0).repeat(2, 1)
    depth = two_planes(32, 64)
    wide = depth.repeat(2, 0).repeat(2, 1)
    one = corrupt_3d(small, depth, "near_focus", 5, 0, radius_width=64).astype(float)
    two = corrupt_3d(large, wide, "near_focus", 5, 0, radius_width=64).astype(float)
    shrunk = two.reshape(32, 2, 64, 2, 3).mean((1, 3))
    away = np.s_[8:-8, 42:-8]
    assert np.abs(shrunk[away] - one[away]).mean() < 6
    pixels = corrupt_3d(large, wide, "near_focus", 5, 0).astype(float)
    assert pixels[:, 64:].std() > 1.3 * two[:, 64:].std()


def test_a_largest_radius_limits_the_blur():
    image, depth = noise(40, 64), two_planes(40, 64)
    free = corrupt_3d(image, depth, "far_focus", 5, 0)[:, :32].astype(float).std()
    held = corrupt_3d(image, depth, "far_focus", 5, 0, max_radius=1.0)[:, :32].astype(float).std()
    assert held > 1.5 * free


@pytest.mark.parametrize(
    ("radius", "taps"), [(0.05, 1), (0.5, 1), (1, 3), (2, 7), (3, 9), (4, 13), (5, 15), (7, 21)]
)
def test_the_blur_has_an_odd_number_of_taps_cut_at_one_and_a_half_radii(radius, taps):
    point = np.zeros((1, 61, 3), np.float32)
    point[0, 30] = 1
    spread = o._blurred(point, radius)[0, :, 0]
    assert np.count_nonzero(spread) == taps
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    at = np.arange(61) - 30
    if taps > 1:
        share = spread[31] / spread[30]
        assert share == pytest.approx(np.exp(-1 / (2 * radius**2)), rel=1e-4)
        assert (spread * at).sum() == pytest.approx(0, abs=1e-5)


def test_the_reshading_of_planes_is_the_cosine_of_their_tilt():
    focal, half = 60.0, 0.4
    height, width = 40, 60
    x = (np.arange(width) + 0.5 - width / 2) / focal
    y = (np.arange(height) + 0.5 - height / 2) / focal
    ray = np.stack([*np.meshgrid(x, y), np.ones((height, width))], -1)
    for normal in ([0, 0, -1], [0.5, 0, -0.9], [0.2, -0.6, -0.8]):
        normal = np.array(normal) / np.linalg.norm(normal)
        depth = -0.3 / (ray @ normal)
        cosine = -(ray @ normal) / np.linalg.norm(ray, axis=-1)
        exact = cosine * half**2 / (half**2 + depth**2)
        found = o.reshading_from_depth(depth.astype(np.float32), focal, half)
        assert np.abs(found - exact)[1:-1, 1:-1].max() < 2e-3


def test_the_reshading_of_a_sphere_is_the_cosine_at_each_point():
    focal, centre, radius = 200.0, 2.0, 0.7
    at = (np.arange(161) - 80) / focal
    ray = np.stack([*np.meshgrid(at, at), np.ones((161, 161))], -1)
    a, b, c = (ray**2).sum(-1), -centre * ray[..., 2], centre**2 - radius**2
    inside = b * b - a * c > 0.02
    t = np.where(inside, (-b - np.sqrt(np.maximum(b * b - a * c, 0))) / a, 3.0)
    normal = (ray * t[..., None] - [0, 0, centre]) / radius
    cosine = -(ray * normal).sum(-1) / np.linalg.norm(ray, axis=-1)
    found = o.reshading_from_depth(t.astype(np.float32), focal, 1.0) * (1 + t**2)
    kept = inside & (cosine > 0.3)
    kept &= np.roll(kept, 2, 0) & np.roll(kept, -2, 0) & np.roll(kept, 2, 1) & np.roll(kept, -2, 1)
    assert kept.sum() > 3000
    assert np.abs(found - cosine)[kept].max() < 0.02


def test_a_flash_never_darkens_and_brightens_more_with_severity():
    image = noise(32, 48)
    depth = np.broadcast_to(np.linspace(0.1, 1, 48, dtype=np.float32), (32, 48))
    means = []
    for severity in range(1, 6):
        out = corrupt_3d(image, depth, "flash_geometric", severity, 0)
        assert (out.astype(int) >= image.astype(int) - 1).all()
        means.append(out.mean())
        gain = out[:, :8].mean() / image[:, :8].mean(), out[:, -8:].mean() / image[:, -8:].mean()
        assert gain[0] > gain[1]
    assert (np.diff(means) > 0).all()
