import io
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from certbench.datasets import image_folder, views
from certbench.datasets.access import Items
from certbench.errors import CertbenchError


def write_image(path, value=0, mode="RGB", size=(6, 5), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path, **options)


def prepared(root, wanted, seed=0, **params):
    made = image_folder.Params(root=str(root), **params)
    table, card = image_folder.prepare(made, wanted, seed, lambda done, total: None)
    return table.to_pylist(), card


@pytest.fixture
def tree(tmp_path):
    """train and val with classes cat and dog; numbers in files tell their places when sorted."""
    for split, n in (("train", 8), ("val", 3)):
        for name in ("dog", "cat"):
            for i in range(n):
                write_image(tmp_path / "root" / split / name / f"{i}.png", (i, 0, 0))
    return tmp_path / "root"


def test_labels_follow_the_sorted_class_folders(tree):
    rows, card = prepared(tree, ["train", "val"])
    assert card.class_names == ("cat", "dog")
    assert {(row["label"], row["item_id"].split("/")[1]) for row in rows} == {
        (0, "cat"),
        (1, "dog"),
    }
    assert sum(row["split"] == "train" for row in rows) == 16
    assert sum(row["split"] == "val" for row in rows) == 6


def test_ids_are_paths_and_indices_are_places_among_the_sorted_files(tree):
    rows, _ = prepared(tree, ["val"])
    expected = sorted(str(p.relative_to(tree).as_posix()) for p in (tree / "val").rglob("*.png"))
    assert [row["item_id"] for row in rows] == [row["path"] for row in rows] == expected
    assert [row["item_index"] for row in rows] == list(range(6))


def test_a_split_is_the_same_whichever_splits_are_prepared(tree):
    both, _ = prepared(tree, ["train", "val"])
    assert [row for row in both if row["split"] == "val"] == prepared(tree, ["val"])[0]


def test_one_split_can_lie_in_the_root(tree):
    rows, card = prepared(tree / "train", ["test"], splits={"test": "."})
    assert (
        len(rows) == 16 and rows[0]["item_id"] == "cat/0.png" and card.class_names == ("cat", "dog")
    )


def test_a_split_may_have_a_folder_of_another_name_or_elsewhere(tree):
    rows, _ = prepared(tree / "train", ["test"], splits={"test": "../val"})
    assert rows[0]["path"] == "../val/cat/0.png"
    images = image_folder.read(
        image_folder.Params(root=str(tree / "train"), splits={"test": "../val"}),
        _as_table(rows),
    )
    assert len(images) == 6


def _as_table(rows):
    from certbench.datasets import index

    return index.table(
        [row["item_id"] for row in rows],
        [row["item_index"] for row in rows],
        [row["split"] for row in rows],
        [row["label"] for row in rows],
        path=[row["path"] for row in rows],
    )


def test_every_kind_of_image_file_counts_and_nothing_else(tmp_path):
    root = tmp_path / "root"
    names = ["a.jpg", "b.JPEG", "c.PNG", "d.Bmp", "e.webp", "f.tif", "g.ppm", "deep/er/h.jpg"]
    for name in names:
        write_image(root / "x" / name)
    for name in [".hidden.jpg", "notes.txt", "list.csv", ".cache/i.jpg"]:
        (root / "x" / name).parent.mkdir(exist_ok=True)
        (root / "x" / name).write_bytes(b"-")
    (root / ".git").mkdir()
    rows, card = prepared(root, ["test"], splits={"test": "."})
    assert [row["item_id"] for row in rows] == sorted(f"x/{name}" for name in names)
    assert card.class_names == ("x",)
    images = image_folder.read(image_folder.Params(root=str(root)), _as_table(rows))
    assert all(image.mode == "RGB" and image.size == (6, 5) for image in images)


def test_the_order_does_not_depend_on_the_file_system(tree, monkeypatch):
    before, _ = prepared(tree, ["train"])
    scandir = os.scandir

    class Backwards:
        def __init__(self, place):
            self.entries = sorted(scandir(place), key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert prepared(tree, ["train"])[0] == before


def test_links_are_followed_and_a_loop_is_refused(tree, tmp_path):
    (tmp_path / "linked" / "val").mkdir(parents=True)
    for name in ("cat", "dog"):
        (tmp_path / "linked" / "val" / name).symlink_to(tree / "val" / name)
    rows, _ = prepared(tmp_path / "linked", ["val"], splits={"val": "val"})
    assert len(rows) == 6
    (tree / "val" / "cat" / "again").symlink_to(tree / "val" / "cat")
    with pytest.raises(CertbenchError, match="is a link to a folder that it is in"):
        prepared(tree, ["val"])


def test_holdouts_are_carved_from_train_and_keep_their_index(tree):
    whole, _ = prepared(tree, ["train"])
    rows, _ = prepared(tree, ["train", "calibration"], holdout={"calibration": 6})
    assert sum(row["split"] == "calibration" and row["label"] == 0 for row in rows) == 3
    assert sum(row["split"] == "calibration" for row in rows) == 6
    assert {(r["item_id"], r["item_index"]) for r in rows} == {
        (r["item_id"], r["item_index"]) for r in whole
    }
    alone, _ = prepared(tree, ["calibration"], holdout={"calibration": 6})
    assert alone == [row for row in rows if row["split"] == "calibration"]
    params = image_folder.Params(root="x", holdout={"calibration": 6})
    assert image_folder.splits(params) == {
        "train": None,
        "val": None,
        "test": None,
        "calibration": 6,
    }


def test_grey_transparent_and_cmyk_images_become_rgb(tmp_path):
    root = tmp_path / "x" / "a"
    write_image(root / "1.png", 100, "L")
    write_image(root / "2.png", (10, 20, 30, 0), "RGBA")
    write_image(root / "3.jpg", (0, 0, 0, 0), "CMYK")
    write_image(root / "4.png", 1, "1")
    rows, _ = prepared(root.parent, ["test"], splits={"test": "."})
    params = image_folder.Params(root=str(root.parent))
    images = image_folder.read(params, _as_table(rows))
    corner = [tuple(np.asarray(image)[0, 0].tolist()) for image in images]
    assert corner == [(100,) * 3, (10, 20, 30), (255,) * 3, (255,) * 3]


def test_sixteen_bit_images_are_refused_and_not_clipped(tmp_path):
    root = tmp_path / "x"
    (root / "a").mkdir(parents=True)
    deep = Image.fromarray(np.full((5, 5), 3000, np.uint16))
    deep.save(root / "a" / "1.png")
    rows, _ = prepared(root, ["test"], splits={"test": "."})
    with pytest.raises(CertbenchError, match=r"a/1.png: has more than 8 bits a channel"):
        image_folder.read(image_folder.Params(root=str(root)), _as_table(rows))


def test_a_missing_split_folder_is_refused_with_its_key(tree):
    with pytest.raises(CertbenchError, match=r"^splits\.test: there is no folder .*root/test"):
        prepared(tree, ["test"])


def test_an_empty_class_folder_is_refused(tree):
    (tree / "train" / "emu").mkdir()
    (tree / "val" / "emu").mkdir()
    with pytest.raises(CertbenchError, match=r"train/emu: has no images"):
        prepared(tree, ["train"])


def test_a_folder_without_classes_is_refused(tmp_path):
    write_image(tmp_path / "root" / "1.png")
    with pytest.raises(CertbenchError, match="root: there are no class folders"):
        prepared(tmp_path / "root", ["test"], splits={"test": "."})


def test_a_class_that_one_split_lacks_is_refused_unless_classes_are_named(tree):
    write_image(tree / "train" / "ant" / "0.png")
    with pytest.raises(CertbenchError, match=r"splits\.val: split 'val' has no folder for 1 .*ant"):
        prepared(tree, ["val"])
    rows, card = prepared(tree, ["val"], classes=("ant", "cat", "dog"))
    assert card.class_names == ("ant", "cat", "dog")
    assert {row["label"] for row in rows} == {1, 2}


def test_named_classes_set_the_order_of_labels_and_refuse_others(tree):
    rows, card = prepared(tree, ["val"], classes=("dog", "cat"))
    assert card.class_names == ("dog", "cat")
    assert {(row["label"], row["item_id"].split("/")[1]) for row in rows} == {
        (0, "dog"),
        (1, "cat"),
    }
    with pytest.raises(CertbenchError, match="folder 'cat' is not one of the classes"):
        prepared(tree, ["val"], classes=("dog", "cow"))


def test_a_wrong_number_of_classes_is_refused(tree):
    with pytest.raises(CertbenchError, match="num_classes: there are 2 classes, not 10: cat, dog"):
        prepared(tree, ["val"], num_classes=10)
    prepared(tree, ["val"], num_classes=2)


@pytest.mark.parametrize(
    "splits",
    [{"train": "a", "test": "a"}, {"train": "a", "test": "./a/b"}, {"train": ".", "test": "a"}],
)
def test_splits_that_share_files_are_refused(splits):
    with pytest.raises(CertbenchError, match="share files"):
        image_folder.Params(root="x", splits=splits)


def test_splits_with_like_names_are_not_taken_for_one():
    image_folder.Params(root="x", splits={"train": "a/b", "test": "a/bc", "val": "a/c"})


def test_names_beyond_ascii_are_kept(tmp_path):
    write_image(tmp_path / "root" / "Möwe" / "Flügel 1.png")
    rows, card = prepared(tmp_path / "root", ["test"], splits={"test": "."})
    assert rows[0]["item_id"] == "Möwe/Flügel 1.png" and card.class_names == ("Möwe",)


def test_a_name_that_is_no_text_is_refused(tmp_path):
    folder = tmp_path / "root" / "a"
    folder.mkdir(parents=True)
    with open(os.path.join(os.fsencode(folder), b"\xff.png"), "wb"):
        pass
    with pytest.raises(CertbenchError, match="is not UTF-8"):
        prepared(tmp_path / "root", ["test"], splits={"test": "."})


@pytest.mark.data
def test_real_photographs_go_through_unchanged(prepare, real_images, tmp_path):
    """Photographs written as files come out of the loader as Pillow decodes them."""
    column = pq.ParquetFile(real_images / "imagenet-sample" / "val.parquet").read_row_group(0)
    expected = {}
    for i, row in enumerate(column.slice(0, 24).to_pylist()):
        file = tmp_path / "photos" / f"class{row['label']:03d}" / f"{i}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(row["image"]["bytes"])
        expected[f"{file.parent.name}/{file.name}"] = Image.open(io.BytesIO(row["image"]["bytes"]))
    params = {"root": str(tmp_path / "photos"), "splits": {"test": "."}}
    code, said, path = prepare("image_folder", params, ["test"])
    assert code == 0, said
    items = Items(path, "test", "resize64_crop64", image_folder, image_folder.Params(**params))
    batch = items.load(0, 24)
    for name, pixels in zip(batch.item_ids, batch.images, strict=True):
        oracle = views.parse("resize64_crop64").apply(expected[name].convert("RGB"))
        np.testing.assert_array_equal(pixels, oracle)
