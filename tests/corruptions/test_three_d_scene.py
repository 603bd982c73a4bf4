import numpy as np
import pytest

from certbench.corruptions import three_d_scene as s
from certbench.corruptions.three_d import corrupt_3d
from certbench.corruptions.three_d_depth import from_metres
from certbench.datasets.streets_classes import CAR, PERSON, SKY
from certbench.datasets.streets_layout import describe
from certbench.datasets.streets_scene import render_description
from certbench.errors import CertbenchError

SIZE = (64, 128)


@pytest.fixture(scope="module")
def street():
    description = describe(7)
    camera = description.camera(*SIZE)
    return description, camera, render_description(description, camera)


def same(one, two) -> bool:
    return all(
        np.array_equal(getattr(one, part), getattr(two, part))
        for part in ("rgb", "labels", "depth", "instance")
    )


@pytest.mark.parametrize(
    "name", [*s.VIEW, *s.SEMANTIC, "fog_3d", "flash", "near_focus", "iso_noise"]
)
def test_equal_seeds_give_equal_scenes(street, name):
    description, camera, clean = street
    one = s.corrupt_scene(description, camera, name, 4, 3)
    assert same(one, s.corrupt_scene(description, camera, name, 4, 3))
    assert not np.array_equal(one.rgb, clean.rgb)


@pytest.mark.parametrize("name", ["fog_3d", "z_motion_blur", "color_quant"])
def test_image_types_keep_labels_and_use_the_true_depth(street, name):
    description, camera, clean = street
    out = s.corrupt_scene(description, camera, name, 2, 8)
    assert np.array_equal(out.labels, clean.labels) and np.array_equal(out.depth, clean.depth)
    assert np.array_equal(out.rgb, corrupt_3d(clean.rgb, from_metres(clean.depth), name, 2, 8))


def homography_agreement(clean, changed, first, second):
    """Share of pixels whose label is found where a turn or zoom about the eye moves them."""
    x, y = np.meshgrid(first.columns(), first.rows())
    far = first.position + np.stack([x, y, np.ones_like(x)], -1) @ first.rotation
    column, row, depth = second.project(far)
    inside = (depth > 0) & (column >= 0) & (column < 128) & (row >= 0) & (row < 64)
    found = changed.labels[row[inside].astype(int), column[inside].astype(int)]
    return (found == clean.labels[inside]).mean(), inside.mean()


@pytest.mark.parametrize("name", s.VIEW[:3])
@pytest.mark.parametrize("severity", [1, 5])
def test_turns_and_zooms_move_labels_by_a_homography(street, name, severity):
    description, camera, clean = street
    moved = s.moved_camera(camera, name, severity, 5)
    changed = s.corrupt_scene(description, camera, name, severity, 5)
    agree, inside = homography_agreement(clean, changed, camera, moved)
    assert agree > 0.88
    assert inside > 0.5


def test_view_changes_grow_with_severity_and_stay_in_their_limits(street):
    _, camera, _ = street
    for name, attribute in (
        ("field_of_view_streets", "field_of_view"),
        ("camera_roll_streets", "roll"),
        ("camera_pitch_streets", "pitch"),
    ):
        change = [
            abs(getattr(s.moved_camera(camera, name, i, 2), attribute) - getattr(camera, attribute))
            for i in range(1, 6)
        ]
        assert (np.diff(change) > 0).all()
    assert s.moved_camera(camera, "camera_roll_streets", 5, 0).roll != camera.roll
    wide = s.moved_camera(camera.moved(field_of_view=110), "field_of_view_streets", 5, 0)
    assert wide.field_of_view == s.WIDEST
    signs = {
        np.sign(s.moved_camera(camera, "camera_pitch_streets", 1, seed).pitch - camera.pitch)
        for seed in range(30)
    }
    assert signs == {-1, 1}
    for severity in range(1, 6):
        for seed in range(20):
            jittered = s.moved_camera(camera, "view_jitter_streets", severity, seed)
            shift = np.subtract(jittered.position, camera.position)
            limit = s.JITTER_M[severity - 1]
            assert np.linalg.norm(shift) <= limit * np.sqrt(3) + 1e-9
            assert abs(jittered.yaw - camera.yaw) <= s.JITTER_DEGREES[severity - 1]


@pytest.mark.parametrize("seed", range(4))
def test_the_occluder_covers_about_its_share_and_is_in_front(street, seed):
    description, camera, clean = street
    for severity in (1, 3, 5):
        out = s.corrupt_scene(description, camera, "occlusion_streets", severity, seed)
        last = out.instance == out.instance.max()
        assert (out.labels[last] == CAR).all()
        # The back alone has the stated share; sides show, and wheels and the picture's edge cut.
        assert 0.6 < last.mean() / s.OCCLUSION[severity - 1] < 1.5
        known = np.isfinite(clean.depth) & last
        assert (out.depth[known] <= clean.depth[known] + 3).mean() > 0.9


def test_smaller_things_cover_fewer_pixels_and_stay_on_the_ground(street):
    description, camera, clean = street
    counts = [np.isin(clean.labels, (CAR, PERSON)).sum()]
    for severity in range(1, 6):
        out = s.corrupt_scene(description, camera, "scale_streets", severity, 0)
        counts.append(np.isin(out.labels, (CAR, PERSON)).sum())
    assert (np.diff(counts) < 0).all()
    small = s.rescaled(description, 0.5)
    assert np.array_equal(small.placed.position, description.placed.position)
    things = description.things
    assert np.allclose(small.placed.frame[things], 0.5 * description.placed.frame[things])
    assert np.array_equal(small.placed.frame[~things], description.placed.frame[~things])


def test_shadow_takes_darker_lamps_with_severity():
    image = np.full((4, 4, 3), 200, np.uint8)
    lights = np.linspace(0.1, 1.0, 10, dtype=np.float32)[:, None, None].repeat(4, 1).repeat(4, 2)
    levels = []
    for severity in range(1, 6):
        out = s.relit(image, lights, "shadow", severity, 6)
        assert len(np.unique(out)) == 1
        share = out[0, 0, 0] / 200
        near = lights[:, 0, 0][np.argmin(np.abs(lights[:, 0, 0] * 1.05 - share))]
        assert near * 0.99 - 0.01 <= share <= min(1.1 * near, 1.275) + 0.01
        levels.append(share)
    # Lamps are a tenth apart and the gain is at most a tenth, so the order shows.
    assert levels == sorted(levels, reverse=True)
    assert levels[0] > levels[-1]


@pytest.mark.parametrize("severity", range(1, 6))
def test_multi_illumination_adds_six_less_severity_lamps(severity):
    image = np.full((3, 3, 3), 100, np.uint8)
    lights = np.full((10, 3, 3), 0.6, np.float32)
    count = 6 - severity
    out = s.relit(image, lights, "multi_illumination", severity, 2)
    low, high = 0.6 * count * s.MULTI_BASE[count - 1], 0.6 * count * (s.MULTI_BASE[count - 1] + 0.1)
    assert 100 * low - 1 <= out[0, 0, 0] <= 100 * high


def test_relit_streets_keep_their_sky_and_labels(street):
    description, camera, _ = street
    out = s.corrupt_scene(description, camera.moved(height=32, width=64), "shadow", 3, 1)
    small = render_description(description, camera.moved(height=32, width=64))
    assert np.array_equal(out.labels, small.labels)
    sky = small.labels == SKY
    ratio = out.rgb[sky].mean() / small.rgb[sky].mean()
    assert 0.99 < ratio <= 1.1
    assert out.rgb[~sky].mean() < small.rgb[~sky].mean()


def test_mistakes_are_refused(street):
    description, camera, _ = street
    with pytest.raises(CertbenchError, match="did you mean 'camera_roll_streets'"):
        s.corrupt_scene(description, camera, "camera_roll", 1, 0)
    with pytest.raises(CertbenchError, match="severity is 6"):
        s.corrupt_scene(description, camera, "shadow", 6, 0)
    with pytest.raises(CertbenchError, match="unknown condition"):
        s.corrupt_scene(description, camera, "shadow", 1, 0, condition="hail")
