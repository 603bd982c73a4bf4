"""Published corrupted copies in place of the images: small copies on disk, made by our own code."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from certbench.corruptions import corrupt_batch, three_d
from certbench.corruptions.severity import NAMES
from certbench.datasets import imagenet, index, parquet
from certbench.datasets.access import Items
from certbench.errors import CertbenchError
from certbench.params import build
from certbench.plugins import load
from certbench.variants import applying, cifar10_c, imagenet_3dcc, imagenet_c, stored

WNIDS = ("n01440764", "n01443537", "n02102040")
SIDE = 48


def step(name, **params):
    return {"name": name, "version": 1, "params": params}


def items_of(plugin, params, split, view, folder):
    """The items of a dataset, prepared as the workflow does it."""
    table, card = plugin.prepare(params, [split], 0, lambda done, total: None)
    index.write(folder / "index.parquet", index.order(table, 0), card, {})
    return Items(folder / "index.parquet", split, view, plugin, params)


def shown(items, variant_step, start=0, stop=None):
    batch = items.load(start, len(items) if stop is None else stop)
    context = applying.context_of(batch, items, start)
    ids, steps = batch.item_ids, [variant_step]
    return batch, applying.apply_steps(steps, batch.images, ids, 0, "d", load, **context)


def check(items, variant_step):
    """As a job does when it opens its items."""
    from certbench.variants.protocol import Source

    module = load("variant", variant_step["name"])
    params = build(module.Params, variant_step["params"], "variants.v")
    rows = items.rows(0, len(items))
    module.check(params, Source(items.module, items.params, rows, items.view))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Real digits as ImageNet validation files, and their copies under contrast 3 as JPEG 85."""
    from sklearn.datasets import load_digits

    root = tmp_path_factory.mktemp("imagenet")
    digits = load_digits()
    clean, corrupted = root / "val", root / "c"
    for number in range(1, 31):
        label = int(number % 3)
        pixels = digits.images[digits.target == label][number] * 255 / 16
        image = Image.fromarray(pixels.astype(np.uint8)).convert("RGB").resize((SIDE, SIDE))
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        (clean / WNIDS[label]).mkdir(parents=True, exist_ok=True)
        image.save(clean / WNIDS[label] / name, quality=95)
        pixels = np.asarray(Image.open(clean / WNIDS[label] / name))[None]
        made = corrupt_batch(pixels, ["x"], "contrast", 3, "imagenet", 0, "imagenet")[0]
        place = corrupted / "contrast" / "3" / WNIDS[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(made).save(place / name, quality=85, optimize=True)
    return root


@pytest.fixture
def nested(photographs, tmp_path):
    params = imagenet.Params(root=str(photographs / "val"), num_classes=3)
    return items_of(imagenet, params, "val", f"native{SIDE}", tmp_path)


@pytest.fixture
def flat(photographs, tmp_path):
    place = tmp_path / "flat"
    place.mkdir()
    lines = []
    for path in sorted((photographs / "val").glob("*/*"), key=lambda path: path.name):
        shutil.copy(path, place / path.name)
        lines.append(path.parent.name)
    (tmp_path / "classes.txt").write_text("\n".join(lines))
    params = imagenet.Params(root=str(place), labels=str(tmp_path / "classes.txt"), num_classes=3)
    return items_of(imagenet, params, "val", f"native{SIDE}", tmp_path)


@pytest.mark.parametrize("layout", ["nested", "flat"])
@pytest.mark.parametrize("name", ["imagenet_c", "grouped", "imagenet_3dcc"])
def test_every_item_gets_its_own_published_file(request, photographs, tmp_path, layout, name):
    items = request.getfixturevalue(layout)
    root = photographs / "c"
    if name == "grouped":
        shutil.copytree(root, tmp_path / "archives" / "digital")
        root, name = tmp_path / "archives", "imagenet_c"
    corruption = "contrast"
    if name == "imagenet_3dcc":
        shutil.copytree(root / "contrast", tmp_path / "3d" / "fog_3d")
        root, corruption = tmp_path / "3d", "fog_3d"
    published = step(name, root=str(root), corruption=corruption, severity=3)
    check(items, published)
    batch, images = shown(items, published, 3, 27)
    assert batch.item_ids != sorted(batch.item_ids), "ranks are not the order of the files"
    for item_id, image in zip(batch.item_ids, images, strict=True):
        (path,) = (photographs / "c" / "contrast" / "3").glob(f"*/{item_id.split('/')[1]}.JPEG")
        assert np.array_equal(np.asarray(Image.open(path)), image)


def test_corrupted_on_the_fly_and_coded_as_published_is_the_published_file(nested, photographs):
    dark = step("corruption", corruption="contrast", severity=3, severity_table="imagenet")
    _, corrupted = shown(nested, dark)
    published = step("imagenet_c", root=str(photographs / "c"), corruption="contrast", severity=3)
    _, images = shown(nested, published)
    assert np.array_equal(stored.as_coded(corrupted, "jpeg85", "contrast"), images)
    assert not np.array_equal(corrupted, images)


def test_a_missing_type_severity_or_file_is_named(nested, photographs, tmp_path):
    shutil.copytree(photographs / "c", tmp_path / "c")

    def refusal(**change):
        values = {"root": str(tmp_path / "c"), "corruption": "contrast", "severity": 3, **change}
        with pytest.raises(CertbenchError) as caught:
            check(nested, step("imagenet_c", **values))
        return str(caught.value)

    message = refusal(corruption="fog")
    assert "no folder" in message and "c/fog/3" in message and "has contrast" in message
    assert "c/contrast/2" in refusal(severity=2)
    assert "no folder nowhere" in refusal(root="nowhere")
    gone = [f"ILSVRC2012_val_{number:08d}" for number in (4, 9)]
    for name in gone:
        next((tmp_path / "c").rglob(f"{name}.JPEG")).unlink()
    message = refusal()
    assert "2 of 30 items" in message and all(name in message for name in gone)


def test_the_view_must_give_the_size_of_the_files(photographs, tmp_path):
    params = imagenet.Params(root=str(photographs / "val"), num_classes=3)
    items = items_of(imagenet, params, "val", "squash32", tmp_path)
    published = step("imagenet_c", root=str(photographs / "c"), corruption="contrast", severity=3)
    for attempt in (check, shown):
        with pytest.raises(CertbenchError, match=r"\.JPEG: is 48x48, and the view gives 32x32"):
            attempt(items, published)


def test_files_of_other_classes_than_the_labels_are_refused(flat, photographs, tmp_path):
    shutil.copytree(photographs / "c", tmp_path / "c")
    place = tmp_path / "c" / "contrast" / "3"
    path = next(place.glob(f"{WNIDS[0]}/*"))
    path.rename(place / WNIDS[1] / path.name)
    published = step("imagenet_c", root=str(tmp_path / "c"), corruption="contrast", severity=3)
    with pytest.raises(CertbenchError, match=rf"{path.stem}.* label 0, but .*{WNIDS[1]}"):
        check(flat, published)


def test_items_that_are_not_named_as_in_imagenet_are_refused(photographs, tmp_path):
    from certbench.datasets import digits

    items = items_of(digits, digits.Params(), "test", "squash48", tmp_path)
    published = step("imagenet_c", root=str(photographs / "c"), corruption="contrast", severity=3)
    with pytest.raises(CertbenchError, match="items must be named as in ImageNet"):
        check(items, published)


def test_messages_name_the_step(nested, photographs):
    published = step("imagenet_c", root=str(photographs / "c"), corruption="fog", severity=3)
    with pytest.raises(CertbenchError, match="variant step imagenet_c: root"):
        shown(nested, published)


def test_the_types_are_those_of_the_publications():
    from dataclasses import fields

    (types,) = (f.metadata["choices"] for f in fields(imagenet_c.Params) if f.name == "corruption")
    assert set(types) == set(NAMES) - {"elastic_transform_imagenet_c"} and len(types) == 19
    assert set(imagenet_3dcc.TYPES) == set(three_d.IMAGENET_3DCC)


COUNT = 40


@pytest.fixture(scope="module")
def cifar(real_data, tmp_path_factory):
    """The first real CIFAR-10 test images as a dataset, and their CIFAR-10-C arrays."""
    import pyarrow.parquet as pq

    root = tmp_path_factory.mktemp("cifar")
    file = pq.ParquetFile(real_data / "data" / "cifar10-jpeg" / "test.parquet")
    table = next(file.iter_batches(COUNT))
    pq.write_table(pa.Table.from_batches([table]), root / "test.parquet")
    params = parquet.Params(root=str(root), files={"test": "test.parquet"}, num_classes=10)
    items = items_of(parquet, params, "test", "native32", root)
    rows = sorted(items.rows(0, COUNT).to_pylist(), key=lambda row: row["item_index"])
    clean = np.stack([np.asarray(i) for i in parquet.read(params, pa.Table.from_pylist(rows))])
    arrays = root / "CIFAR-10-C"
    arrays.mkdir()
    ids = [str(i) for i in range(COUNT)]
    for corruption in ("fog", "gaussian_noise"):
        made = [corrupt_batch(clean, ids, corruption, s, "cifar32", 0, "d") for s in range(1, 6)]
        np.save(arrays / f"{corruption}.npy", np.concatenate(made))
    np.save(arrays / "labels.npy", np.tile([row["label"] for row in rows], 5).astype(np.uint8))
    return items, arrays


def cifar_step(arrays, corruption="fog", severity=2, items=COUNT):
    return step(
        "cifar10_c", root=str(arrays), corruption=corruption, severity=severity, items=items
    )


@pytest.mark.data
@pytest.mark.parametrize(
    ("corruption", "severity"), [("fog", 1), ("gaussian_noise", 4), ("fog", 5)]
)
def test_every_item_gets_its_own_row_of_its_severity(cifar, corruption, severity):
    items, arrays = cifar
    check(items, cifar_step(arrays, corruption, severity))
    batch, images = shown(items, cifar_step(arrays, corruption, severity), 5, 30)
    everything = np.load(arrays / f"{corruption}.npy").reshape(5, COUNT, 32, 32, 3)
    assert np.array_equal(images, everything[severity - 1][batch.item_index])
    assert len(set(batch.item_index.tolist()) - set(range(25))) > 0
    assert (images != batch.images).any()


@pytest.mark.data
def test_other_arrays_are_refused_by_name(cifar, tmp_path):
    items, arrays = cifar

    def refusal(variant_step=None):
        with pytest.raises(CertbenchError) as caught:
            check(items, variant_step or cifar_step(tmp_path / "c"))
        return str(caught.value)

    shutil.copytree(arrays, tmp_path / "c")
    message = refusal(cifar_step(tmp_path / "c", "snow"))
    assert "snow.npy" in message and "fog, gaussian_noise" in message
    message = refusal(cifar_step(tmp_path / "c", items=10_000))
    assert "fog.npy" in message and "[50000, height, width, 3]" in message
    labels = np.load(arrays / "labels.npy")
    np.save(tmp_path / "c" / "labels.npy", (labels + (np.arange(5 * COUNT) == COUNT + 7)) % 10)
    message = refusal()
    assert "labels.npy: 1 of 40 labels differ" in message and "test/000007" in message
    np.save(tmp_path / "c" / "labels.npy", np.array([{"a": 1}], object), allow_pickle=True)
    assert "labels.npy" in refusal()
    (tmp_path / "c" / "labels.npy").unlink()
    assert "no file" in refusal() and "labels.npy" in refusal()
    (tmp_path / "c" / "fog.npy").write_bytes((arrays / "fog.npy").read_bytes()[:-9])
    assert "fog.npy: is no NumPy array, or torn" in refusal()


@pytest.mark.data
def test_arrays_of_another_size_than_the_view_are_refused(cifar, tmp_path):
    items, arrays = cifar
    larger = Items(items.path, "test", "squash64", items.module, items.params)
    for attempt in (check, shown):
        with pytest.raises(CertbenchError, match=r"fog\.npy: holds images of 32x32, .* 64x64"):
            attempt(larger, cifar_step(arrays))


@pytest.mark.data
def test_items_of_another_split_are_refused(cifar, tmp_path):
    items, arrays = cifar
    params = parquet.Params(root=items.params.root, files={"train": "test.parquet"}, num_classes=10)
    train = items_of(parquet, params, "train", "native32", tmp_path)
    with pytest.raises(
        CertbenchError, match=r"'train/\d+' of split 'train' is none of the 40 test"
    ):
        check(train, cifar_step(arrays))


def test_pickles_are_not_read(tmp_path):
    np.save(tmp_path / "fog.npy", np.array([{"a": 1}], object), allow_pickle=True)
    params = build(
        cifar10_c.Params, {"root": str(tmp_path), "corruption": "fog", "severity": 1}, "v"
    )
    with pytest.raises(CertbenchError, match=r"fog\.npy: is no NumPy array"):
        cifar10_c.check(params, None)
