"""Rendered scenes under another camera, light or weather, with the labels that belong to them."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from certbench.corruptions import three_d_scene
from certbench.datasets import index, streets
from certbench.datasets.access import Items
from certbench.datasets.streets_classes import CONDITIONS, SKY
from certbench.datasets.streets_layout import describe
from certbench.datasets.streets_scene import render
from certbench.plugins import load
from certbench.variants import applying, materialising, scene_3d

SMALL = streets.Params(height=48, width=96, train=5, calibration=5, val=5, test=10)


def step(corruption, severity=3, **more):
    params = {"corruption": corruption, "severity": severity, **more}
    return {"name": "scene_3d", "version": 1, "params": params}


def condition(name):
    return {"name": "condition", "version": 1, "params": {"condition": name}}


@pytest.fixture(scope="module")
def street_index(tmp_path_factory):
    table, card = streets.prepare(SMALL, ["test"], 0, lambda done, total: None)
    path = tmp_path_factory.mktemp("streets") / "index.parquet"
    index.write(path, index.order(table, 0), card, {})
    return path


def shown(street_index, *steps, view="native", start=0, stop=10):
    """The clean batch, and images and label maps after the steps."""
    items = Items(street_index, "test", view, streets, SMALL)
    batch = items.load(start, stop, masks=True)
    named = (batch.item_ids, 0, "streets", load)
    context = applying.context_of(batch, items, start)
    images = applying.apply_steps(steps, batch.images, *named, **context)
    return batch, images, applying.apply_label_maps(steps, batch.masks, *named, **context)


def scene_by_hand(item_id, item, corruption, severity):
    """The corruption called without the step, and its seed spelled out."""
    description = describe(30_000_000 + item)
    text = f"0|streets|{item_id}|{corruption}"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return three_d_scene.corrupt_scene(
        description,
        description.camera(48, 96),
        corruption,
        severity,
        seed,
        CONDITIONS[item % len(CONDITIONS)],
    )


@pytest.mark.parametrize("corruption", [*scene_3d.MOVING, *scene_3d.LIGHTING])
def test_images_and_labels_are_those_of_the_corrupted_scene(street_index, corruption):
    batch, images, maps = shown(street_index, step(corruption), start=2, stop=5)
    for i, item_id in enumerate(batch.item_ids):
        scene = scene_by_hand(item_id, int(batch.item_index[i]), corruption, 3)
        assert np.array_equal(images[i], scene.rgb)
        assert np.array_equal(maps[i], scene.labels)
    assert (images != batch.images).any((1, 2, 3)).all()
    assert (maps != batch.masks).any() == (corruption in scene_3d.MOVING)


@pytest.mark.parametrize("corruption", ["camera_roll_streets", "camera_pitch_streets"])
def test_moved_labels_fit_the_moved_image_and_the_old_ones_do_not(street_index, corruption):
    """Where the labels say sky or not, the image must have its edge."""
    batch, images, maps = shown(street_index, step(corruption, 5))
    clear = [i for i, label in enumerate(batch.labels) if CONDITIONS[label] == "clear"]
    assert clear

    def contrast(labels):
        edges = []
        for i in clear:
            sky = labels[i] == SKY
            border = sky[:-1] & ~sky[1:]
            grey = images[i].astype(float).mean(2)
            edges.append(np.abs(grey[:-1] - grey[1:])[border])
        return np.concatenate(edges).mean()

    assert contrast(maps) > 1.3 * contrast(batch.masks)


def test_rendered_images_take_the_view_of_the_dataset(street_index):
    view = "squash32x40"
    batch, images, maps = shown(street_index, step("scale_streets", 5), view=view, start=1, stop=3)
    assert images.shape == batch.images.shape == (2, 32, 40, 3)
    scene = scene_by_hand(batch.item_ids[0], int(batch.item_index[0]), "scale_streets", 5)
    resized = Image.fromarray(scene.rgb).resize((40, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(images[0], np.asarray(resized))
    rows = ((np.arange(32) + 0.5) * 1.5).astype(int)
    columns = ((np.arange(40) + 0.5) * 2.4).astype(int)
    assert np.array_equal(maps[0], scene.labels[rows[:, None], columns])


def test_a_scene_does_not_depend_on_its_company_and_severities_share_its_draw(street_index):
    _, together, _ = shown(street_index, step("camera_roll_streets"))
    _, alone, _ = shown(street_index, step("camera_roll_streets"), start=7, stop=8)
    assert np.array_equal(alone[0], together[7])
    sides = []
    for severity in (1, 5):
        scenes = [step("camera_roll_streets", severity)]
        _, _, maps = shown(street_index, *scenes)
        # The side to which the horizon tips: more sky on the left or on the right.
        sky = (maps == SKY).astype(float)
        sides.append(np.sign(sky[:, :, :48].mean((1, 2)) - sky[:, :, 48:].mean((1, 2))))
    assert (sides[0] == sides[1]).mean() >= 0.7


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_shows_the_same_scene_and_its_labels_stay(street_index, name):
    batch, images, maps = shown(street_index, condition(name), stop=5)
    for i, item in enumerate(batch.item_index):
        assert np.array_equal(images[i], render(30_000_000 + int(item), 48, 96, name).rgb)
    assert np.array_equal(maps, batch.masks)
    own = np.array([CONDITIONS[label] == name for label in batch.labels])
    assert own.any() and not own.all()
    equal = (images == batch.images).all((1, 2, 3))
    assert np.array_equal(equal, own)


def test_a_scene_may_be_changed_in_another_condition(street_index):
    night = step("camera_roll_streets", 2, condition="night")
    batch, images, maps = shown(street_index, night, stop=5)
    _, day, moved = shown(street_index, step("camera_roll_streets", 2), stop=5)
    assert np.array_equal(maps, moved)
    dark = np.array([CONDITIONS[label] == "night" for label in batch.labels])
    assert np.array_equal((images == day).all((1, 2, 3)), dark)
    assert images[~dark].mean() < 0.6 * day[~dark].mean()


def test_other_steps_may_follow(street_index):
    fog = {
        "name": "corruption_3d",
        "version": 1,
        "params": {"corruption": "iso_noise", "severity": 1},
    }
    _, images, maps = shown(street_index, step("scale_streets"), fog, stop=2)
    _, plain, moved = shown(street_index, step("scale_streets"), stop=2)
    assert (images != plain).any() and np.array_equal(maps, moved)


def test_stored_scenes_keep_their_label_maps(street_index, make_job):
    block = {
        "id": "streets",
        "plugin": "streets",
        "version": 2,
        "params": {"height": 48, "width": 96, "train": 5, "calibration": 5, "val": 5, "test": 10},
        "split": "test",
        "view": "native",
    }
    variant = {"variant_id": "roll", "steps": [step("camera_roll_streets", 4)]}

    def job(**more):
        return make_job(variant, items=(0, 10), dataset=block, index=street_index, **more)

    made = job()
    materialising.run(made)
    fly, stored = job(), job(stored=made.output("images"))
    for start, stop in ((0, 10), (3, 8)):
        found = [
            applying.load_images(one, applying.open_items(one, block), start, stop, masks=True)
            for one in (fly, stored)
        ]
        assert np.array_equal(found[0].images, found[1].images)
        assert np.array_equal(found[0].masks, found[1].masks)


def test_the_lists_of_types_are_those_of_the_scenes():
    assert (*three_d_scene.VIEW, *three_d_scene.SEMANTIC) == scene_3d.MOVING
    assert (*three_d_scene.RELIT, "flash") == scene_3d.LIGHTING
