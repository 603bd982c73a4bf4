import hashlib
import subprocess
import sys

import numpy as np
import pytest

from certbench.datasets.streets_classes import (
    BICYCLE,
    CAR,
    CLASSES,
    CONDITIONS,
    HIERARCHY,
    LEAF_PARENTS,
    PALETTE,
    PERSON,
    ROAD,
    SIGN,
    SKY,
)
from certbench.datasets.streets_layout import describe
from certbench.datasets.streets_light import atmosphere
from certbench.datasets.streets_scene import render, render_description
from certbench.datasets.streets_weather import haze
from certbench.errors import CertbenchError


def digest(scene) -> str:
    parts = (scene.rgb, scene.labels, scene.depth, scene.instance)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


@pytest.fixture(scope="module")
def sample():
    """Thirty clear scenes at 64 x 128."""
    return [render(seed, 64, 128) for seed in range(30)]


def test_a_scene_depends_on_its_seed_alone_and_not_on_what_was_rendered_before(sample):
    again = [digest(render(seed, 64, 128)) for seed in (9, 3, 6)]
    assert again == [digest(sample[seed]) for seed in (9, 3, 6)]
    assert len({digest(scene) for scene in sample}) == len(sample)


def test_another_process_renders_the_same_bytes():
    code = (
        "import hashlib; from certbench.datasets.streets_scene import render;"
        "s = render(11, 48, 96, 'rain');"
        "print(hashlib.sha256(s.rgb.tobytes() + s.labels.tobytes()).hexdigest())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    scene = render(11, 48, 96, "rain")
    here = hashlib.sha256(scene.rgb.tobytes() + scene.labels.tobytes()).hexdigest()
    assert ran.stdout.strip() == here


@pytest.mark.parametrize("seed", [0, 4, 8])
def test_labels_depth_and_instances_are_the_same_in_all_conditions(seed):
    scenes = {condition: render(seed, 64, 128, condition) for condition in CONDITIONS}
    clear = scenes["clear"]
    for condition, scene in scenes.items():
        assert np.array_equal(scene.labels, clear.labels)
        assert np.array_equal(scene.depth, clear.depth)
        assert np.array_equal(scene.instance, clear.instance)
        assert scene.tags == (condition, *clear.tags[1:])
        if condition != "clear":
            assert np.abs(scene.rgb.astype(int) - clear.rgb).mean() > 8


@pytest.mark.parametrize("size", [(16, 16), (17, 45), (64, 128), (96, 192), (120, 90)])
@pytest.mark.parametrize("condition", ["night", "snow"])
def test_all_sizes_render(size, condition):
    scene = render(2, *size, condition)
    assert scene.rgb.shape == (*size, 3) and scene.rgb.dtype == np.uint8
    assert scene.labels.shape == size and scene.labels.dtype == np.uint8
    assert scene.depth.shape == size and scene.depth.dtype == np.float32
    assert scene.instance.shape == size and scene.instance.dtype == np.int32
    assert scene.labels.max() < len(CLASSES)
    assert (scene.depth > 0).all()


def test_large_images_render_the_same_scene_as_small_ones():
    large, small = render(2, 512, 1024), render(2, 64, 128)
    assert large.rgb.shape == (512, 1024, 3)
    # Pixel centres of the small image lie on corners of the large one's pixels.
    picked = large.labels[4::8, 4::8]
    assert (picked == small.labels).mean() > 0.93


def test_the_sky_alone_is_infinitely_far(sample):
    for scene in sample:
        assert np.array_equal(np.isinf(scene.depth), scene.labels == SKY)
        assert scene.depth[np.isfinite(scene.depth)].min() > 0.5


def test_instances_are_objects_of_one_kind(sample):
    for scene in sample:
        assert (scene.instance[(scene.labels == ROAD) | (scene.labels == SKY)] == 0).all()
        for label in (CAR, PERSON, BICYCLE):
            inside = scene.labels == label
            assert (scene.instance[inside] > 0).all()
            for instance in np.unique(scene.instance[inside]):
                assert (scene.labels[scene.instance == instance] == label).all()


def test_classes_are_as_unbalanced_as_in_driving_data(sample):
    counts = np.bincount(np.concatenate([s.labels.ravel() for s in sample]), minlength=10)
    share = dict(zip(CLASSES, counts / counts.sum(), strict=True))
    assert 0.2 < share["road"] < 0.4
    assert 0.15 < share["building"] < 0.4
    assert 0.06 < share["sky"] < 0.25
    assert 0.05 < share["vegetation"] < 0.3
    assert 0.03 < share["pavement"] < 0.15
    assert 0.03 < share["car"] < 0.15
    for rare in ("pole", "traffic sign", "person", "bicycle"):
        assert 0.001 < share[rare] < 0.04
    assert share["road"] > 20 * share["traffic sign"]


def test_every_class_is_in_many_scenes(sample):
    present = np.mean([np.bincount(s.labels.ravel(), minlength=10) > 0 for s in sample], axis=0)
    assert (present > 0.3).all()


def test_layouts_vary(sample):
    tags = {tag for scene in sample for tag in scene.tags}
    assert {"straight", "curved", "narrow", "wide", "urban", "suburban", "junction"} <= tags


def test_classes_differ_in_colour_enough_to_be_learned(sample):
    """Nearest class mean of pixel colours beats the majority class on other scenes."""
    pixels = np.concatenate([s.rgb.reshape(-1, 3) for s in sample[:20]]).astype(float)
    labels = np.concatenate([s.labels.ravel() for s in sample[:20]])
    means = np.stack([pixels[labels == c].mean(0) for c in range(10)])
    test = np.concatenate([s.rgb.reshape(-1, 3) for s in sample[20:]]).astype(float)
    truth = np.concatenate([s.labels.ravel() for s in sample[20:]])
    guess = ((test[:, None] - means) ** 2).sum(-1).argmin(1)
    balanced = np.mean([(guess[truth == c] == c).mean() for c in range(10)])
    assert balanced > 0.2  # chance is 0.1


def test_the_conditions_look_as_they_are_called():
    clear, fog, night, rain, snow = (
        [render(seed, 64, 128, condition) for seed in range(6)] for condition in CONDITIONS
    )
    brightness = [np.mean([s.rgb.mean() for s in group]) for group in (clear, night)]
    assert brightness[1] < 0.5 * brightness[0]
    for bright, white in zip(clear, snow, strict=True):
        ground = bright.labels == 1
        assert white.rgb[ground].mean() > bright.rgb[ground].mean()
    for dry, dull in zip(clear, fog, strict=True):
        far = (dry.depth > 60) & np.isfinite(dry.depth)
        near = dry.depth < 8
        assert dull.rgb[far].std() < 0.5 * dry.rgb[far].std()
        assert dull.rgb[far].std() < dull.rgb[near].std()
    saturation = [
        np.mean([np.ptp(s.rgb.astype(float), axis=-1).mean() for s in group])
        for group in (clear, rain)
    ]
    assert saturation[1] < saturation[0]


def test_haze_mixes_in_the_airlight_with_depth():
    air = atmosphere(describe(0), "fog")
    radiance = np.full((1, 4, 3), 0.2, np.float32)
    depth = np.array([[0.0, 10.0, 40.0, np.inf]], np.float32)
    through = np.exp(-air.extinction * depth)[..., None]
    exact = 0.2 * through + (1 - through) * np.array(air.airlight)
    assert np.allclose(haze(radiance, depth, air), exact, atol=1e-6)


@pytest.mark.parametrize("seed", [1, 6])
def test_more_samples_per_pixel_change_colours_and_not_labels(seed):
    description = describe(seed)
    camera = description.camera(60, 120)
    plain = render_description(description, camera)
    fine = render_description(description, camera, supersample=3)
    # The centre ray is the same; rounding may move a silhouette by a pixel somewhere.
    assert (plain.labels == fine.labels).mean() > 0.999
    assert np.isclose(plain.depth, fine.depth, rtol=1e-5).mean() > 0.999
    assert 0 < np.abs(plain.rgb.astype(int) - fine.rgb).mean() < 12


def test_mistakes_are_refused():
    with pytest.raises(CertbenchError, match="seed is -1"):
        render(-1, 64, 128)
    with pytest.raises(CertbenchError, match=r"seed is 1\.5"):
        render(1.5, 64, 128)
    with pytest.raises(CertbenchError, match="too small"):
        render(1, 8, 128)
    with pytest.raises(CertbenchError, match="did you mean 'night'"):
        render(1, 64, 128, "nihgt")
    with pytest.raises(CertbenchError, match="odd number"):
        render_description(describe(0), describe(0).camera(32, 64), supersample=2)


def test_the_class_tables_fit_together():
    assert len(CLASSES) == len(PALETTE) == len(LEAF_PARENTS) == len(set(PALETTE)) == 10
    inner = {node: (level, parent) for node, _, level, parent in HIERARCHY}
    assert sorted(inner) == list(range(10, 16))
    for leaf, parent in enumerate(LEAF_PARENTS):
        levels = [0]
        while parent is not None:
            level, parent = inner[parent]
            levels.append(level)
        assert levels == sorted(set(levels)) and levels[-1] == 4, CLASSES[leaf]
    assert CLASSES[SIGN] == "traffic sign"
