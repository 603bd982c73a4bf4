"""Where the depth of 3D corruptions comes from: the dataset, a folder, a network."""

import hashlib
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from certbench.corruptions import three_d
from certbench.corruptions.three_d_depth import from_inverse, from_metres
from certbench.datasets import index, streets
from certbench.datasets.access import Items
from certbench.datasets.streets_scene import render
from certbench.errors import CertbenchError
from certbench.params import build
from certbench.plugins import load
from certbench.variants import applying, corruption_3d
from certbench.variants.protocol import Source

SMALL = streets.Params(height=48, width=96, train=5, calibration=5, val=5, test=6)


def step(**params):
    return {"name": "corruption_3d", "version": 1, "params": {"severity": 3, **params}}


@pytest.fixture(scope="module")
def street_index(tmp_path_factory):
    table, card = streets.prepare(SMALL, ["test"], 0, lambda done, total: None)
    path = tmp_path_factory.mktemp("streets") / "index.parquet"
    index.write(path, index.order(table, 0), card, {})
    return path


def shown(street_index, view, *steps, start=0, stop=6):
    items = Items(street_index, "test", view, streets, SMALL)
    batch = items.load(start, stop)
    context = applying.context_of(batch, items, start)
    return batch, applying.apply_steps(
        steps, batch.images, batch.item_ids, 0, "streets", load, **context
    )


@pytest.mark.parametrize("name", ["fog_3d", "near_focus", "xy_motion_blur"])
def test_a_dataset_that_knows_its_depth_gives_it(street_index, name):
    """Against the corruption called by hand with the depth of the rendered scene."""
    batch, images = shown(street_index, "native", step(corruption=name, depth="dataset"))
    for i in (0, 4):
        scene = render(30_000_000 + int(batch.item_index[i]), 48, 96)
        text = f"0|streets|{batch.item_ids[i]}|{name}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
        wanted = three_d.corrupt_3d(batch.images[i], from_metres(scene.depth), name, 3, seed)
        assert np.array_equal(images[i], wanted)
    assert (images != batch.images).any()


@pytest.mark.parametrize("view", ["squash32x40", "resize48_crop32"])
def test_depth_goes_through_the_view_of_the_images(street_index, view):
    """Fog in closed form, with the depth of the scene looked up pixel by pixel."""
    fog = step(corruption="fog_3d", depth="dataset")
    batch, images = shown(street_index, view, fog)
    height, width = batch.images.shape[1:3]
    scene = render(30_000_000 + int(batch.item_index[1]), 48, 96)
    offset = 0 if view.startswith("squash") else (96 - 32) // 2
    scale = (48 / height, 96 / width) if view.startswith("squash") else (1, 1)
    top = 0 if view.startswith("squash") else (48 - 32) // 2
    for row, column in ((0, 0), (5, 30), (17, 11), (31, 31)):
        at = int((row + 0.5) * scale[0] + top), int((column + 0.5) * scale[1] + offset)
        depth = min(scene.depth[at] / 150, 1)
        through = np.exp(-12 * max(depth, 0.02))
        x = batch.images[1].astype(np.float64) / 255
        wanted = 255 * (through * x[row, column] + (1 - through) * x.mean())
        assert np.abs(images[1, row, column] - wanted).max() <= 1.01
    _, part = shown(street_index, view, fog, start=2, stop=4)
    assert np.array_equal(part, images[2:4])


def test_a_folder_of_the_true_depth_gives_nearly_the_same(street_index, tmp_path):
    """Two ways to one number: 16-bit steps of 1/8000 are all that lies between them."""
    items = Items(street_index, "test", "native", streets, SMALL)
    for row in range(6):
        rows = items.rows(row, row + 1)
        (depth,) = streets.read_depth(SMALL, rows)
        path = (tmp_path / rows.column("item_id")[0].as_py()).with_suffix(".png")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.rint(depth * 8000).clip(1, 65534).astype(np.uint16)).save(path)
    folder = step(corruption="fog_3d", depth_root=str(tmp_path))
    _, stored = shown(street_index, "native", folder)
    _, true = shown(street_index, "native", step(corruption="fog_3d", depth="dataset"))
    difference = np.abs(stored.astype(int) - true)
    assert difference.max() <= 1


class Dark(torch.nn.Module):
    """The darker, the nearer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x.mean(1)


@pytest.fixture
def network(tmp_path):
    path = tmp_path / "dark.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(Dark()).save(str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"depth_model": str(path), "depth_sha256": digest, "depth_size": None}


def test_a_network_predicts_the_depth_of_any_image(network):
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 64, 3), np.uint8)
    ids = ["a", "b", "c"]
    fog = step(corruption="fog_3d", **network)
    made = applying.apply_steps([fog], images, ids, 0, "photos", load)
    for image, corrupted in zip(images, made, strict=True):
        inverse = -(image.astype(np.float32) / 255 - 0.5).mean(2) / 0.5
        inverse = (inverse - inverse.min()) / (inverse.max() - inverse.min()) * 65535
        wanted = three_d.corrupt_3d(image, from_inverse(inverse), "fog_3d", 3, 0)
        assert np.abs(corrupted.astype(int) - wanted).max() <= 1
    alone = applying.apply_steps([fog], images[[2]], ["c"], 0, "photos", load)
    assert np.array_equal(alone[0], made[2])


def test_the_choice_is_explicit_where_there_is_one(network, tmp_path):
    def params(**values):
        values = {"corruption": "fog_3d", "severity": 3, **values}
        return build(corruption_3d.Params, values, "variants.fog")

    both = {**network, "depth_root": str(tmp_path)}
    with pytest.raises(
        CertbenchError, match=r"variants\.fog\.depth: .*both depth_root and depth_model"
    ):
        params(**both)
    assert params(**both, depth="model").depth_source == "model"
    assert params(**both, depth="folder").depth_source == "folder"
    assert params(**both, depth="dataset").depth_source == "dataset"
    assert params(**network).depth_source == "model"
    assert params(depth_root="x").depth_source == "folder"
    assert params(corruption="iso_noise").depth_source == "none"
    slugs = {corruption_3d.slug(params(**both, depth=d)) for d in ("model", "folder", "dataset")}
    assert slugs == {"fog_3d-3-3d_model", "fog_3d-3-3d", "fog_3d-3-3d_dataset"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, r"variants\.fog\.depth_root: is required: 'fog_3d' needs depth"),
        ({"depth": "none"}, r"variants\.fog\.depth: is required"),
        ({"depth": "folder"}, r"variants\.fog\.depth_root: is required by depth: folder"),
        ({"depth": "model"}, r"variants\.fog\.depth_model: is required by depth: model"),
        ({"depth_model": "a.pt"}, r"variants\.fog\.depth_sha256: is required by depth: model"),
        (
            {"depth_model": "a.pt", "depth_sha256": "12"},
            r"variants\.fog\.depth_sha256: '12' is no sha256",
        ),
        (
            {"depth_model": "a.pt", "depth_sha256": "0" * 64, "depth_std": [1.0]},
            r"variants\.fog\.depth_std: needs three values",
        ),
        ({"depth": "datset"}, "did you mean 'dataset'"),
    ],
)
def test_a_mistake_about_depth_is_refused_while_planning(values, words):
    with pytest.raises(CertbenchError, match=words):
        build(
            corruption_3d.Params, {"corruption": "fog_3d", "severity": 3, **values}, "variants.fog"
        )


def test_missing_depth_images_are_all_named_before_any_model_runs(street_index, tmp_path):
    items = Items(street_index, "test", "native", streets, SMALL)
    source = Source(streets, SMALL, items.rows(0, 6), items.view)
    values = {"corruption": "fog_3d", "severity": 3, "depth_root": str(tmp_path)}
    params = build(corruption_3d.Params, values, "variants.fog")
    with pytest.raises(CertbenchError, match=r"6 of 6 items .*test/00000\d\.png"):
        corruption_3d.check(params, source)


def test_another_network_is_refused_before_any_model_runs(street_index, network):
    values = {"corruption": "fog_3d", "severity": 3, **network, "depth_sha256": "0" * 64}
    with pytest.raises(CertbenchError, match=r"variant step corruption_3d: depth_sha256"):
        shown(street_index, "native", {"name": "corruption_3d", "params": values})
