"""Files of a variant's images: lossless or as JPEG, for our own jobs and for other readers."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from certbench.datasets.access import Batch
from certbench.errors import CertbenchError
from certbench.variants import stored

VARIANT = {"variant_id": "noise-1", "steps": []}
WORK = {"dataset": {"id": "d"}, "variant": VARIANT, "seed": 0, "items": [40, 170]}


def batch(count=130):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 6, 5, 3), np.uint8)
    images = np.stack([np.asarray(Image.fromarray(x).resize((20, 24))) for x in coarse])
    ids = [f"test/{i:06d}" for i in range(count)]
    return Batch(
        images, np.arange(count, dtype=np.int32) % 7, ids, np.arange(count, dtype=np.uint32)
    )


def rows(items, start, stop):
    import pyarrow as pa

    return pa.table({"item_id": items.item_ids[start:stop]})


def written(path, items, images, encoding="png", **more):
    made = {"image": stored.encode_all(images, encoding, "noise-1"), **more}
    table = stored.table(items, made, [f"class {i}" for i in range(7)])
    stored.write(path, table, {"work": WORK, "shape": list(images.shape[1:]), "encoding": encoding})
    return path


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 130), (0, 1), (49, 51), (50, 100), (127, 130), (64, 64)]
)
def test_any_range_comes_back_as_it_was(tmp_path, start, stop):
    items = batch()
    path = written(tmp_path / "a.parquet", items, items.images)
    found = stored.Stored(path, WORK, 40 + start, rows(items, start, stop)).images()
    assert found.dtype == np.uint8 and np.array_equal(found, items.images[start:stop])


def test_float_images_come_back_bit_by_bit_and_show_rounded(tmp_path):
    items = batch(9)
    exact = np.random.default_rng(1).random(items.images.shape, np.float32)
    pixels = [image.tobytes() for image in exact]
    path = written(tmp_path / "a.parquet", items, exact, pixels=pixels)
    found = stored.Stored(path, WORK, 40, rows(items, 0, 9)).images()
    assert found.dtype == np.float32 and np.array_equal(found, exact)
    shown = pq.read_table(path).column("image")[3].as_py()["bytes"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown))), np.rint(exact[3] * 255))


def test_jpeg85_is_that_of_the_library_and_changes_pixels(tmp_path):
    """Against Pillow called by hand; what is read equals what the fly gives."""
    items = batch(4)
    path = written(tmp_path / "a.parquet", items, items.images, "jpeg85")
    found = stored.Stored(path, WORK, 40, rows(items, 0, 4)).images()
    for image, made in zip(items.images, found, strict=True):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=85)
        assert np.array_equal(np.asarray(Image.open(stream)), made)
    assert (found != items.images).any()
    assert np.array_equal(stored.as_coded(items.images, "jpeg85", "noise-1"), found)
    assert stored.as_coded(items.images, "png", "noise-1") is items.images


def test_float_images_are_not_made_jpeg():
    with pytest.raises(CertbenchError, match=r"variant adv-1: .*losslessly.*\n.*encoding: png"):
        stored.encode_all(np.zeros((1, 8, 8, 3), np.float32), "jpeg85", "adv-1")


def test_label_maps_lie_beside_the_images(tmp_path):
    from certbench.datasets import masks

    items = batch(60)
    maps = np.random.default_rng(2).integers(0, 9, (60, 24, 20), np.uint8)
    path = written(
        tmp_path / "a.parquet", items, items.images, mask=[masks.png(one) for one in maps]
    )
    file = stored.Stored(path, WORK, 85, rows(items, 45, 55))
    assert np.array_equal(file.masks(), maps[45:55])
    bare = written(tmp_path / "b.parquet", items, items.images)
    with pytest.raises(CertbenchError, match="holds no label maps"):
        stored.Stored(bare, WORK, 40, rows(items, 0, 1)).masks()


@pytest.mark.parametrize(
    ("change", "start", "words"),
    [
        ({"seed": 1}, 40, "another dataset, variant, seed or range"),
        ({"variant": {**VARIANT, "encoding": "jpeg85"}}, 40, "another dataset, variant"),
        ({}, 39, "or range"),
        ({}, 41, "other items than the index"),
    ],
)
def test_a_file_of_other_images_is_refused_by_name(tmp_path, change, start, words):
    items = batch(10)
    path = written(tmp_path / "a.parquet", items, items.images)
    with pytest.raises(CertbenchError, match=words) as caught:
        stored.Stored(path, {**WORK, **change}, start, rows(items, 0, 3))
    assert "a.parquet" in str(caught.value) and "delete it" in str(caught.value)


def test_a_torn_file_is_refused(tmp_path):
    items = batch(10)
    path = written(tmp_path / "a.parquet", items, items.images)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CertbenchError, match="torn"):
        stored.Stored(path, WORK, 40, rows(items, 0, 3))


def test_datasets_of_type_parquet_read_it(tmp_path):
    from certbench.datasets import parquet

    items = batch(60)
    written(tmp_path / "i0000040-0000100.parquet", items, items.images)
    params = parquet.Params(root=str(tmp_path), files={"test": "*.parquet"})
    index, card = parquet.prepare(params, ["test"], 0, lambda done, total: None)
    assert index.column("label").to_pylist() == items.labels.tolist()
    assert card.class_names[:2] == ("class 0", "class 1")
    found = np.stack([np.asarray(image) for image in parquet.read(params, index)])
    assert np.array_equal(found, items.images)


def test_datasets_of_type_parquet_read_its_label_maps(tmp_path):
    from certbench.datasets import masks, parquet

    items = batch(7)
    maps = np.random.default_rng(2).integers(0, 9, (7, 24, 20), np.uint8)
    encoded = [masks.png(one) for one in maps]
    written(tmp_path / "a.parquet", items, items.images, "jpeg85", mask=encoded)
    params = parquet.Params(
        root=str(tmp_path), files={"test": "*.parquet"}, mask="mask", num_mask_classes=9
    )
    index, _ = parquet.prepare(params, ["test"], 0, lambda done, total: None)
    assert np.array_equal(np.stack(parquet.read_masks(params, index)), maps)
    coded = stored.as_coded(items.images, "jpeg85", "noise-1")
    assert np.array_equal(np.stack([np.asarray(i) for i in parquet.read(params, index)]), coded)
