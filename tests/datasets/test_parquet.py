import io
import json
import random
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from certbench.datasets import parquet
from certbench.datasets.access import Items
from certbench.errors import CertbenchError
from certbench.params import build

CIFAR = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def png(value):
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), (value % 256, value // 256, 5)).save(stream, "PNG")
    return stream.getvalue()


def value_of(image):
    red, green, _ = np.asarray(image)[0, 0].tolist()
    return red + 256 * green


def write(path, values, labels, group=7, plain=False, names=None, image="image", label="label"):
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [png(v) for v in values]
    images = (
        cells if plain else [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(cells)]
    )
    table = pa.table(
        {image: images, label: pa.array(labels, pa.int64()), "other": ["x"] * len(labels)}
    )
    if names:
        features = {label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    pq.write_table(table, path, row_group_size=group)


def prepared(folder, splits, seed=0, **params):
    made = build(parquet.Params, {"root": str(folder), **params}, "here")
    table, card = parquet.prepare(made, splits, seed, lambda done, total: None)
    return table, card, made


@pytest.fixture
def shards(tmp_path):
    """Two shards of train (values 0..49, row groups of 7), one of test, named as on the Hub."""
    names = ["zero", "one", "two"]
    data = tmp_path / "root" / "data"
    write(data / "train-00000-of-00002.parquet", range(30), [i % 3 for i in range(30)], names=names)
    write(data / "train-00001-of-00002.parquet", range(30, 50), [0] * 20, names=names)
    write(data / "test-00000-of-00001.parquet", range(900, 912), [2] * 12, names=names)
    return tmp_path / "root"


def test_items_count_over_the_shards_of_their_split(shards):
    table, card, _ = prepared(shards, ["train", "test"])
    rows = table.to_pylist()
    assert card.class_names == ("zero", "one", "two")
    assert [r["item_id"] for r in rows if r["split"] == "train"] == [
        f"train/{i:06d}" for i in range(50)
    ]
    assert [r["item_index"] for r in rows if r["split"] == "train"] == list(range(50))
    assert rows[30]["path"] == "data/train-00001-of-00002.parquet" and rows[30]["row"] == 0
    assert Counter(r["split"] for r in rows) == {"train": 50, "test": 12}


@pytest.mark.parametrize("held", [1 << 28, 2000, 1])
def test_any_rows_in_any_order_are_read_from_their_row_groups(shards, monkeypatch, held):
    """With all row groups held, with a few held, and with every group streamed."""
    monkeypatch.setattr(parquet, "HELD_BYTES", held)
    parquet._held.clear()
    table, _, params = prepared(shards, ["train"])
    order = [*range(50), 3, 3]
    random.Random(0).shuffle(order)
    for start in range(0, 52, 13):
        part = order[start : start + 13]
        assert [value_of(image) for image in parquet.read(params, table.take(part))] == part
    assert sum(held_.nbytes for held_ in list(parquet._held.values())[1:]) <= held


def test_only_the_row_groups_of_the_items_are_read(shards, monkeypatch):
    table, _, params = prepared(shards, ["train"])
    parquet._held.clear()
    read = []
    original = pq.ParquetFile.read_row_group

    def recording(self, group, **options):
        read.append((group, options["columns"]))
        return original(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", recording)
    parquet.read(params, table.take([8, 9, 29, 8]))
    parquet.read(params, table.take([13]))
    assert read == [(1, ["image"]), (4, ["image"])]


def test_plain_bytes_and_other_column_names_are_understood(tmp_path):
    write(tmp_path / "a" / "test.parquet", range(9), [0] * 9, plain=True, image="img", label="fine")
    table, card, params = prepared(
        tmp_path / "a", ["test"], image="img", label="fine", num_classes=4
    )
    assert card.class_names == ("0", "1", "2", "3")
    assert [value_of(image) for image in parquet.read(params, table)] == list(range(9))


def test_an_image_can_be_a_path_beside_the_file(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").write_bytes(png(77))
    cells = pa.array([{"bytes": None, "path": "pictures/1.png"}], parquet_image())
    pq.write_table(pa.table({"image": cells, "label": [0]}), tmp_path / "test.parquet")
    table, _, params = prepared(tmp_path, ["test"], num_classes=1)
    assert [value_of(image) for image in parquet.read(params, table)] == [77]


def parquet_image():
    return pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_an_empty_cell_is_refused_with_its_row(tmp_path):
    cells = pa.array([{"bytes": png(1), "path": None}, None], parquet_image())
    pq.write_table(pa.table({"image": cells, "label": [0, 0]}), tmp_path / "test.parquet")
    table, _, params = prepared(tmp_path, ["test"], num_classes=1)
    with pytest.raises(CertbenchError, match=r"test.parquet, row 1 \(test/000001\): has no image"):
        parquet.read(params, table)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_truncated_image_among_good_ones_is_refused_or_left_out(prepare, tmp_path, threads):
    cells = [{"bytes": png(i), "path": None} for i in range(30)]
    cells[11]["bytes"] = cells[11]["bytes"][:-25]
    table = pa.table({"image": pa.array(cells, parquet_image()), "label": [0] * 30})
    pq.write_table(table, tmp_path / "test.parquet", row_group_size=4)
    params = {"root": str(tmp_path), "num_classes": 1}
    code, said, _ = prepare("parquet", params, ["test"])
    assert (
        code == 2 and "1 of 30 images" in said and "test.parquet, row 11: cannot be decoded" in said
    )
    code, said, path = prepare("parquet", {**params, "on_bad": "skip"}, ["test"], threads=threads)
    assert code == 0
    kept = pq.read_table(path).column("row").to_pylist()
    assert sorted(kept) == [i for i in range(30) if i != 11]


def test_holdouts_are_carved_stratified(shards):
    table, _, _ = prepared(shards, ["train", "calibration"], holdout={"calibration": 10})
    held = [r for r in table.to_pylist() if r["split"] == "calibration"]
    assert Counter(r["label"] for r in held) == {0: 6, 1: 2, 2: 2}
    alone, _, params = prepared(shards, ["calibration"], holdout={"calibration": 10})
    assert alone.to_pylist() == held
    assert parquet.splits(params) == {"train": None, "val": None, "test": None, "calibration": 10}
    assert [value_of(i) for i in parquet.read(params, alone)] == [r["item_index"] for r in held]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"files": {"test": "data/tset*.parquet"}}, r"files\.test: no file matches"),
        ({"image": "img"}, r"image: .* has no column 'img'\n.*'image'"),
        ({"label": "labels"}, r"label: .* has no column 'labels'\n.*'label'"),
        ({"label": "other"}, r"label: column 'other' of .* is string"),
        ({"image": "label"}, r"image: column 'label' of .* is int64"),
        ({"num_classes": 4}, r"num_classes: the files name 3 classes, not 4"),
        ({"root": "/nowhere"}, r"root: there is no folder /nowhere"),
        ({"files": {"test": "data/*.parquet", "train": "**/train*"}}, r"is also a file of split"),
        ({"files": {"test": "/etc/*.parquet"}}, r"files\.test: is '/etc"),
        ({"class_names": ["a"], "num_classes": 2}, r"1 names for 2 classes"),
    ],
)  # fmt: skip
def test_a_wrong_parameter_is_refused_with_its_key(shards, params, message):
    with pytest.raises(CertbenchError, match=message):
        prepared(shards, ["test"], **params)


def test_the_number_of_classes_is_never_guessed(tmp_path):
    write(tmp_path / "test.parquet", range(9), [0, 1, 2] * 3)
    with pytest.raises(CertbenchError, match="do not tell the number of classes"):
        prepared(tmp_path, ["test"])


def test_unlabelled_rows_are_refused(prepare, tmp_path):
    write(tmp_path / "test.parquet", range(3), [0, None, 1])
    code, said, _ = prepare("parquet", {"root": str(tmp_path), "num_classes": 2}, ["test"])
    assert code == 2 and "config: datasets.mine.label: 1 labels" in said and "are null" in said
    write(tmp_path / "test.parquet", range(3), [0, -1, 1])
    code, said, _ = prepare("parquet", {"root": str(tmp_path), "num_classes": 2}, ["test"])
    assert code == 2 and "labels -1 are outside 0..1" in said


def test_a_torn_file_is_refused(shards):
    file = shards / "data" / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CertbenchError, match="is no Parquet file, or torn"):
        prepared(shards, ["test"])


def test_a_file_that_shrank_since_it_was_prepared_is_refused(shards):
    table, _, params = prepared(shards, ["test"])
    file = shards / "data" / "test-00000-of-00001.parquet"
    write(file, [1], [0])
    with pytest.raises(CertbenchError, match="has 1 rows, the index refers to row 1"):
        parquet.read(params, table)
    file.unlink()
    with pytest.raises(CertbenchError, match="does not exist any more"):
        parquet.read(params, table)


def write_maps(path, maps, struct=True, size=(4, 3)):
    """Images of width x height ``size`` beside label maps."""

    def encoded(pixels):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        return {"bytes": stream.getvalue(), "path": None} if struct else stream.getvalue()

    image = np.zeros((size[1], size[0], 3), np.uint8)
    columns = {"image": [encoded(image + i) for i in range(len(maps))]}
    pq.write_table(pa.table({**columns, "mask": [encoded(m) for m in maps]}), path)


@pytest.mark.parametrize("struct", [True, False])
def test_label_maps_come_from_a_column_of_their_own(prepare, tmp_path, struct):
    maps = [np.full((3, 4), i, np.uint8) for i in (0, 2, 255, 1)]
    write_maps(tmp_path / "test.parquet", maps, struct)
    params = {
        "root": str(tmp_path),
        "label": None,
        "mask": "mask",
        "mask_class_names": ["road", "sky", "car"],
        "files": {"test": "test.parquet"},
    }
    code, said, path = prepare("parquet", params, ["test"])
    assert code == 0, said
    items = Items(path, "test", "native", parquet, build(parquet.Params, params, "here"))
    batch = items.load(0, 4, masks=True)
    assert items.mask_class_names == ("road", "sky", "car") and items.class_names == ()
    assert batch.labels.tolist() == [-1] * 4
    np.testing.assert_array_equal(batch.masks, np.stack([maps[i] for i in batch.item_index]))


def test_label_maps_that_do_not_fit_are_refused_while_preparing(prepare, tmp_path):
    params = {"root": str(tmp_path), "label": None, "mask": "mask", "num_mask_classes": 3}
    params["files"] = {"test": "test.parquet"}
    write_maps(tmp_path / "test.parquet", [np.zeros((3, 4), np.uint8), np.zeros((4, 4), np.uint8)])
    code, said, _ = prepare("parquet", params, ["test"])
    assert code == 2 and "1 of 2 images cannot be used" in said
    assert "test/000001: its label map is 4x4, its image 3x4" in said
    write_maps(tmp_path / "test.parquet", [np.full((3, 4), 7, np.uint8)])
    code, said, _ = prepare("parquet", params, ["test"], name="other")
    assert code == 2 and "its label map has values 7 outside 0..2" in said
    code, said, _ = prepare("parquet", {**params, "mask": "labels"}, ["test"], name="third")
    assert code == 2 and "config: datasets.third.mask" in said


def test_label_maps_need_a_stated_number_of_classes():
    with pytest.raises(CertbenchError, match="number of classes of the label maps is not stated"):
        parquet.Params(root=".", mask="mask")
    with pytest.raises(CertbenchError, match="neither labels nor label maps"):
        parquet.Params(root=".", label=None)


@pytest.mark.data
def test_cifar_photographs_come_out_as_pillow_decodes_them(prepare, real_images):
    root = real_images / "cifar10-jpeg"
    params = {"root": str(root), "files": {"test": "test.parquet"}, "class_names": list(CIFAR)}
    code, said, path = prepare("parquet", params, ["test"], {"test": 500})
    assert code == 0, said
    items = Items(path, "test", "native32", parquet, build(parquet.Params, params, "here"))
    batch = items.load(0, 500)
    assert np.bincount(batch.labels).tolist() == [50] * 10
    source = pd.read_parquet(root / "test.parquet")
    for k in range(0, 500, 7):
        row = source.iloc[int(batch.item_index[k])]
        assert batch.labels[k] == row["label"]
        expected = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        np.testing.assert_array_equal(batch.images[k], np.asarray(expected))
    assert items.class_names == CIFAR


@pytest.mark.data
def test_imagenet_photographs_of_any_shape_go_through_a_crop(prepare, real_images):
    params = {
        "root": str(real_images / "imagenet-sample"),
        "files": {"val": "val.parquet"},
        "num_classes": 1000,
    }
    code, said, path = prepare("parquet", params, ["val"], {"val": 48})
    assert code == 0, said
    made = build(parquet.Params, params, "here")
    items = Items(path, "val", "resize256_crop224", parquet, made)
    assert len(items.class_names) == 1000
    parts = list(items.chunks(0, 48, 32))
    assert [part.images.shape for part in parts] == [(32, 224, 224, 3), (16, 224, 224, 3)]
    with pytest.raises(CertbenchError, match="differ in shape under view 'native'"):
        Items(path, "val", "native", parquet, made).load(0, 48)
