import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import savemat

from certbench.datasets import imagenet, views
from certbench.datasets.access import Items
from certbench.errors import CertbenchError
from certbench.params import build

WNIDS = ["n01440764", "n01443537", "n01484850", "n02119789"]
# As in the development kit: numbers that are not in the order of the WordNet ids.
ILSVRC = ["n02119789", "n01484850", "n01440764", "n01443537"]
TRUTH = {i: WNIDS[(3 * i) % 4] for i in range(1, 13)}


def file_name(number):
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def write_image(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (10 * number, 0, 0)).save(path, "JPEG")


@pytest.fixture
def flat(tmp_path):
    for number in TRUTH:
        write_image(tmp_path / "flat" / file_name(number), number)
    return tmp_path / "flat"


@pytest.fixture
def folders(tmp_path):
    for number, wnid in TRUTH.items():
        write_image(tmp_path / "folders" / wnid / file_name(number), number)
    return tmp_path / "folders"


def prepared(folder, wanted=("val",), seed=0, **params):
    made = build(imagenet.Params, {"root": str(folder), "num_classes": 4, **params}, "here")
    table, card = imagenet.prepare(made, list(wanted), seed, lambda done, total: None)
    return table, card, made


def truth(table):
    rows = table.to_pylist()
    return {row["item_index"] + 1: WNIDS[row["label"]] for row in rows}


def written(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def development_kit(path):
    """The structure of meta.mat: leaves with ids from 1, then inner synsets."""
    fields = [
        ("ILSVRC2012_ID", object),
        ("WNID", object),
        ("words", object),
        ("num_children", object),
    ]
    rows = [(i + 1, wnid, f"word {wnid}", 0) for i, wnid in enumerate(ILSVRC)]
    rows += [(5, "n00001740", "entity", 4)]
    savemat(path, {"synsets": np.array(rows, dtype=fields)})
    return str(path)


def solution():
    """Lines of LOC_val_solution.csv: unsorted, with boxes, some with two."""
    yield "ImageId,PredictionString"
    for i in (7, 1, *range(2, 7), *range(8, 13)):
        boxes = f"{TRUTH[i]} 85 1 499 272" + (f" {TRUTH[i]} 3 3 9 9" if i % 2 else "")
        yield f"{file_name(i)[:-5]},{boxes} "


FORMS = {
    "WordNet ids alone": lambda: [TRUTH[i] for i in sorted(TRUTH)],
    "file names and WordNet ids": lambda: [
        f"{file_name(i)} {TRUTH[i]}" for i in sorted(TRUTH, reverse=True)
    ],
    "solution of the competition": lambda: list(solution()),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_flat_folder_takes_its_classes_from_a_file(flat, tmp_path, form):
    table, card, _ = prepared(flat, labels=written(tmp_path / "labels.txt", FORMS[form]()))
    assert truth(table) == TRUTH
    assert card.class_names == tuple(WNIDS)


def test_ground_truth_numbers_are_read_through_the_development_kit(flat, tmp_path):
    lines = [str(ILSVRC.index(TRUTH[i]) + 1) for i in sorted(TRUTH)]
    labels = written(tmp_path / "ILSVRC2012_validation_ground_truth.txt", lines)
    table, _, _ = prepared(flat, labels=labels, synsets=development_kit(tmp_path / "meta.mat"))
    assert truth(table) == TRUTH
    text = written(tmp_path / "synsets.txt", [f"{wnid} a, b" for wnid in ILSVRC])
    assert truth(prepared(flat, labels=labels, synsets=text)[0]) == TRUTH


def test_labels_beside_file_names_count_in_sorted_order(flat, tmp_path):
    labels = written(
        tmp_path / "val.txt", [f"{file_name(i)} {WNIDS.index(TRUTH[i])}" for i in TRUTH]
    )
    synsets = written(tmp_path / "synsets.txt", WNIDS)
    assert truth(prepared(flat, labels=labels, synsets=synsets)[0]) == TRUTH


def test_numbers_in_the_wrong_order_are_refused(flat, tmp_path):
    ids = written(tmp_path / "truth.txt", ["1"] * 12)
    labels = written(tmp_path / "val.txt", [f"{file_name(i)} 0" for i in TRUTH])
    with pytest.raises(
        CertbenchError, match="which are not in sorted WordNet order, but this file"
    ):
        prepared(flat, labels=ids, synsets=written(tmp_path / "sorted.txt", WNIDS))
    with pytest.raises(
        CertbenchError, match="follow the sorted WordNet ids, but this file does not"
    ):
        prepared(flat, labels=labels, synsets=development_kit(tmp_path / "meta.mat"))
    with pytest.raises(CertbenchError, match=r"synsets: .* holds numbers, which say nothing"):
        prepared(flat, labels=ids)


def test_both_layouts_give_the_same_items(flat, folders, tmp_path):
    labels = written(tmp_path / "labels.txt", FORMS["WordNet ids alone"]())
    one, _, flat_params = prepared(flat, labels=labels)
    two, card, folder_params = prepared(folders)
    columns = ["item_id", "item_index", "split", "label"]
    key = [("item_id", "ascending")]
    assert one.select(columns).sort_by(key).equals(two.select(columns).sort_by(key))
    assert one.column("item_id")[0].as_py() == "val/ILSVRC2012_val_00000001"
    for table, params in ((one, flat_params), (two, folder_params)):
        reds = [np.asarray(image)[4, 4, 0] for image in imagenet.read(params, table)]
        expected = [10 * (i + 1) for i in table.column("item_index").to_pylist()]
        assert np.abs(np.array(reds, int) - expected).max() <= 3
    assert not card.redistributable and "non-commercial" in card.licence


def test_a_subset_keeps_the_index_of_each_image(folders):
    whole, _, _ = prepared(folders)
    before = dict(zip(whole["item_id"].to_pylist(), whole["item_index"].to_pylist(), strict=True))
    (folders / TRUTH[2] / file_name(2)).unlink()
    rest, _, _ = prepared(folders)
    after = dict(zip(rest["item_id"].to_pylist(), rest["item_index"].to_pylist(), strict=True))
    del before["val/ILSVRC2012_val_00000002"]
    assert after == before


def test_files_of_other_names_are_known_by_their_paths(tmp_path):
    for k, wnid in enumerate(WNIDS):
        write_image(tmp_path / "r" / wnid / f"{wnid}_{k}.JPEG", k)
    table, _, _ = prepared(tmp_path / "r")
    assert table.column("item_id")[0].as_py() == "val/n01440764/n01440764_0.JPEG"
    assert table.column("item_index").to_pylist() == [0, 1, 2, 3]


def test_training_images_make_a_split_of_their_own(folders, tmp_path):
    for k in range(8):
        wnid = WNIDS[k % 4]
        write_image(tmp_path / "train" / wnid / f"{wnid}_{k}.JPEG", 12 + k)
    table, _, params = prepared(folders, ["train", "val"], train_root=str(tmp_path / "train"))
    rows = table.to_pylist()
    assert sum(row["split"] == "train" for row in rows) == 8
    reds = [int(np.asarray(image)[4, 4, 0]) for image in imagenet.read(params, table)]
    for row, red in zip(rows, reds, strict=True):
        if row["split"] == "train":
            number = 12 + int(row["path"].split("_")[1].split(".")[0])
        else:
            number = row["item_index"] + 1
        assert abs(red - 10 * number) <= 3
    only, _, _ = prepared(folders, ["train"], train_root=str(tmp_path / "train"))
    assert only.to_pylist() == [row for row in rows if row["split"] == "train"]


def test_training_images_of_other_classes_are_refused(folders, tmp_path):
    for wnid in [*WNIDS[:3], "n09999999"]:
        write_image(tmp_path / "train" / wnid / "x.JPEG", 1)
    with pytest.raises(CertbenchError, match="train_root: its classes are not those of root"):
        prepared(folders, ["train", "val"], train_root=str(tmp_path / "train"))


def test_holdouts_are_carved_from_the_validation_images(folders):
    table, _, params = prepared(folders, ["val", "calibration"], holdout={"calibration": 4})
    held = [row for row in table.to_pylist() if row["split"] == "calibration"]
    assert sorted(row["label"] for row in held) == [0, 1, 2, 3]
    assert len(table) == 12
    assert imagenet.splits(params) == {"val": None, "calibration": 4}


NAMES = ["tench, Tinca tinca", "goldfish", "great white shark", "kit fox"]


PAIRS = list(zip(WNIDS, NAMES, strict=True))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("LOC_synset_mapping.txt", "\n".join(f"{wnid} {name}" for wnid, name in PAIRS)),
        ("mixed.txt", "\n".join(f"{wnid}\t{name}" for wnid, name in reversed(PAIRS))),
        ("names.txt", "\n".join(NAMES)),
        ("index.json", json.dumps({str(i): pair for i, pair in enumerate(PAIRS)})),
    ],
)
def test_class_names_come_from_files_of_several_forms(folders, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    _, card, _ = prepared(folders, class_names=str(tmp_path / name))
    assert card.class_names == tuple(NAMES)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("few.txt", "\n".join(NAMES[:3]), "does not name 4 of 4 classes"),
        ("gap.txt", f"{WNIDS[0]} tench\n{WNIDS[1]} goldfish", "does not name 2 of 4 classes: n014"),
        ("bad.json", "[1, 2]", "is not of the form"),
        ("empty.txt", "\n", "is empty"),
    ],
)  # fmt: skip
def test_incomplete_class_names_are_refused(folders, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(CertbenchError, match=f"class_names: .*{message}"):
        prepared(folders, class_names=str(tmp_path / name))


def test_a_flat_folder_without_labels_is_refused(flat):
    with pytest.raises(CertbenchError, match=r"^labels: .* is flat"):
        prepared(flat)


def test_images_that_the_labels_do_not_know_are_refused(flat, tmp_path):
    lines = [f"{file_name(i)} {TRUTH[i]}" for i in TRUTH if i not in (3, 5)]
    with pytest.raises(CertbenchError, match=r"labels: says nothing about 2 images .*00000003"):
        prepared(flat, labels=written(tmp_path / "labels.txt", lines))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([f"{file_name(1)} n01440764", f"{file_name(1)} n01443537"], "image 1 is there twice"),
        (["tench"], "line 1 of .* is not understood: tench"),
        ([file_name(1)], "line 1 of .* is not understood"),
    ],
)
def test_labels_that_make_no_sense_are_refused(flat, tmp_path, lines, message):
    with pytest.raises(CertbenchError, match=f"labels: {message}"):
        prepared(flat, labels=written(tmp_path / "labels.txt", lines))


def test_a_number_beyond_the_classes_is_refused(flat, tmp_path):
    kit = development_kit(tmp_path / "meta.mat")
    for number in ("0", "5"):
        with pytest.raises(CertbenchError, match=f"has number {number}, and there are 4 classes"):
            prepared(flat, labels=written(tmp_path / "l.txt", [number] * 12), synsets=kit)


def test_a_wrong_number_of_classes_is_refused(folders, prepare):
    code, said, _ = prepare("imagenet", {"root": str(folders)}, ["val"])
    assert code == 2
    assert "config: datasets.mine.root: there are 4 classes, not 1000" in said


def test_folders_that_are_no_wordnet_ids_are_refused(folders):
    (folders / "tench").mkdir()
    with pytest.raises(CertbenchError, match=r"root: .* needs folders named by WordNet ids.*tench"):
        prepared(folders)


def test_other_files_in_a_flat_folder_are_refused(flat, tmp_path):
    write_image(flat / "holiday.jpg", 1)
    with pytest.raises(CertbenchError, match=r"root: 1 files .* are not named .*holiday\.jpg"):
        prepared(flat, labels=written(tmp_path / "l.txt", FORMS["WordNet ids alone"]()))


def test_a_broken_meta_file_is_refused(flat, tmp_path):
    (tmp_path / "meta.mat").write_bytes(b"no")
    labels = written(tmp_path / "l.txt", ["1"] * 12)
    with pytest.raises(CertbenchError, match=r"synsets: .* is not the meta\.mat"):
        prepared(flat, labels=labels, synsets=str(tmp_path / "meta.mat"))
    with pytest.raises(CertbenchError, match=r"synsets: there is no file"):
        prepared(flat, labels=labels, synsets=str(tmp_path / "no.mat"))


@pytest.mark.data
def test_real_photographs_with_a_truncated_one_among_them(prepare, real_images, tmp_path):
    rows = pq.ParquetFile(real_images / "imagenet-sample" / "val.parquet").read_row_group(0)
    rows = rows.slice(0, 20).to_pylist()
    wnids = [f"n{row['label']:08d}" for row in rows]
    root = tmp_path / "val"
    root.mkdir()
    for number, row in enumerate(rows, start=1):
        data = row["image"]["bytes"]
        (root / file_name(number)).write_bytes(data if number != 7 else data[: len(data) * 2 // 3])
    params = {
        "root": str(root),
        "labels": written(tmp_path / "labels.txt", wnids),
        "num_classes": len(set(wnids)),
    }
    code, said, _ = prepare("imagenet", params, ["val"])
    assert code == 2 and "1 of 20 images cannot be used" in said
    assert f"{root / file_name(7)}: cannot be decoded (image file is truncated" in said
    params["on_bad"] = "skip"
    code, said, path = prepare("imagenet", params, ["val"])
    assert code == 0, said
    made = build(imagenet.Params, params, "here")
    batch = Items(path, "val", "resize128_crop112", imagenet, made).load(0, 19)
    assert sorted(batch.item_index.tolist()) == [i for i in range(20) if i != 6]
    for number, label, pixels in zip(batch.item_index, batch.labels, batch.images, strict=True):
        assert sorted(set(wnids))[label] == wnids[number]
        with Image.open(root / file_name(number + 1)) as image:
            expected = views.parse("resize128_crop112").apply(image)
        np.testing.assert_array_equal(pixels, expected)
