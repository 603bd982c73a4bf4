import io
import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from certbench.datasets import digits, image_folder
from certbench.datasets.access import Items
from certbench.datasets.card import Card
from certbench.results.rows import provenance


def jpeg(seed, side=24):
    pixels = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (side, side, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def photographs(tmp_path):
    """60 files in three classes: one split, in the folder itself."""
    for i in range(60):
        file = tmp_path / "photos" / "abc"[i % 3] / f"{i:02d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(i))
    return tmp_path / "photos"


def folder_params(root, **more):
    return {"root": str(root), "splits": {"test": "."}, **more}


def ids(path):
    return pq.read_table(path, columns=["item_id"]).column("item_id").to_pylist()


def test_an_index_and_a_card_are_written(prepare):
    code, said, path = prepare("digits", {}, ["train", "test"], {"train": None, "test": 200})
    assert code == 0, said
    card = Card.from_json((path.parent / "card.json").read_text())
    assert card.sizes == {"train": 1097, "test": 500}
    footer = provenance(path)
    assert Card.from_dict(footer["card"]) == card
    assert footer["splits"] == {"test": [0, 200], "train": [200, 1097]}
    assert footer["work"]["plugin"] == "digits" and footer["plugin_version"] == digits.version
    assert sorted(p.name for p in path.parent.iterdir()) == ["card.json", "index.parquet"]


def test_a_smaller_limit_is_a_prefix_of_a_larger_one(prepare):
    paths = [
        prepare("digits", {}, ["test"], {"test": limit}, name=f"n{limit}")[2]
        for limit in (40, 300, 500)
    ]
    whole = ids(paths[2])
    assert ids(paths[0]) == whole[:40] and ids(paths[1]) == whole[:300]


def test_two_preparations_are_equal(prepare):
    paths = [prepare("digits", {}, ["test"], name=name)[2] for name in ("one", "two")]
    assert (
        pq.read_table(paths[0])
        .replace_schema_metadata(None)
        .equals(pq.read_table(paths[1]).replace_schema_metadata(None))
    )


def test_asking_for_more_items_than_there_are_is_refused_with_the_size(prepare):
    code, said, path = prepare("digits", {}, ["test"], {"test": 501})
    assert code == 2
    assert "split 'test' has 500 items, an experiment asks for 501" in said
    assert "lower the limit to 500" in said and "Traceback" not in said
    assert not path.exists() and not (path.parent / "card.json").exists()


def test_an_unknown_split_is_refused(prepare):
    code, said, _ = prepare("digits", {}, ["tset"])
    assert code == 2 and "config: datasets.mine: no split 'tset'" in said and "'test'" in said


def test_an_empty_split_is_refused(prepare, photographs):
    params = folder_params(photographs, holdout={"cal": 60}, holdout_from="test")
    code, said, _ = prepare("image_folder", params, ["test"])
    assert code == 2 and "split 'test' is empty" in said


def test_a_missing_folder_is_refused_with_the_key(prepare, tmp_path):
    code, said, _ = prepare("image_folder", folder_params(tmp_path / "nowhere"), ["test"])
    assert code == 2
    assert f"config: datasets.mine.root: there is no folder {tmp_path / 'nowhere'}" in said


def test_a_wrong_parameter_is_refused_with_the_key(prepare):
    code, said, _ = prepare("digits", {"tset": 5}, ["test"])
    assert code == 2 and "config: datasets.mine: unknown key 'tset'" in said
    code, said, _ = prepare("image_folder", {"root": "x", "holdout": {"cal": 0}}, ["test"])
    assert code == 2 and "config: datasets.mine.holdout.cal: is 0" in said


def test_broken_images_are_refused_with_their_files(prepare, photographs):
    good = (photographs / "a" / "00.jpg").read_bytes()
    (photographs / "a" / "00.jpg").write_bytes(good[: len(good) // 2])
    (photographs / "b" / "01.jpg").write_bytes(b"<html>not an image</html>")
    (photographs / "c" / "02.jpg").write_bytes(b"")
    code, said, path = prepare("image_folder", folder_params(photographs), ["test"])
    assert code == 2 and "3 of 60 images cannot be used" in said and "on_bad: skip" in said
    assert re.search(r"a/00\.jpg: cannot be decoded \(.*[Tt]runcated", said)
    assert "b/01.jpg: is not an image" in said and "c/02.jpg: is empty" in said
    assert "Traceback" not in said and not path.exists()


def test_at_most_twenty_broken_files_are_listed(prepare, photographs):
    for file in photographs.rglob("*.jpg"):
        file.write_bytes(b"broken")
    code, said, _ = prepare("image_folder", folder_params(photographs), ["test"])
    assert code == 2 and "60 of 60 images" in said
    assert said.count("is not an image") == 20 and "and 40 more" in said


@pytest.mark.parametrize("threads", [1, 3])
def test_broken_images_are_left_out_where_one_says_so(prepare, photographs, threads):
    for name in ("a/00.jpg", "a/03.jpg", "b/31.jpg"):
        file = photographs / name
        file.write_bytes(file.read_bytes()[:-400])
    params = folder_params(photographs, on_bad="skip")
    code, said, path = prepare("image_folder", params, ["test"], threads=threads)
    assert code == 0, said
    assert len(ids(path)) == 57
    assert not {"a/00.jpg", "a/03.jpg", "b/31.jpg"}.intersection(ids(path))
    assert Card.from_json((path.parent / "card.json").read_text()).sizes == {"test": 57}
    items = Items(path, "test", "native24", image_folder, image_folder.Params(**params))
    assert items.load(0, 57).images.shape == (57, 24, 24, 3)


def test_leaving_out_images_keeps_the_index_of_the_others_and_prefixes(prepare, photographs):
    params = folder_params(photographs, on_bad="skip")
    whole = pq.read_table(prepare("image_folder", params, ["test"], name="all")[2]).to_pylist()
    index_of = {row["item_id"]: row["item_index"] for row in whole}
    for row in (whole[2], whole[7], whole[8], whole[30]):
        (photographs / row["item_id"]).write_bytes(b"broken")
    longer = pq.read_table(prepare("image_folder", params, ["test"], name="rest")[2]).to_pylist()
    assert len(longer) == 56
    assert all(index_of[row["item_id"]] == row["item_index"] for row in longer)
    for limit in (1, 5, 20, 40):
        _, _, path = prepare("image_folder", params, ["test"], {"test": limit}, name=f"n{limit}")
        assert ids(path) == [row["item_id"] for row in longer[:limit]]


def test_too_few_good_images_are_refused(prepare, photographs):
    (photographs / "a" / "00.jpg").write_bytes(b"broken")
    params = folder_params(photographs, on_bad="skip")
    code, said, _ = prepare("image_folder", params, ["test"], {"test": 60})
    assert code == 2 and "split 'test' has 59 items, an experiment asks for 60" in said


def test_only_images_that_will_be_used_are_decoded(prepare, photographs):
    params = folder_params(photographs)
    _, _, path = prepare("image_folder", params, ["test"], name="all")
    (photographs / ids(path)[30]).write_bytes(b"broken")
    assert prepare("image_folder", params, ["test"], {"test": 30}, name="few")[0] == 0
    assert prepare("image_folder", params, ["test"], {"test": 31}, name="more")[0] == 2


def test_an_outside_dataset_is_prepared_like_the_others(prepare, tmp_path):
    (tmp_path / "grey.py").write_text(
        "from dataclasses import dataclass\n"
        "from PIL import Image\n"
        "from certbench.datasets.card import Card\n"
        "kind = 'dataset'\n"
        "version = 3\n"
        "@dataclass(frozen=True)\n"
        "class Params:\n"
        "    pass\n"
        "def splits(params):\n"
        "    return {'test': 4}\n"
        "def prepare(params, splits, seed, tick):\n"
        "    from certbench.datasets import index\n"
        "    tick(4, 4)\n"
        "    card = Card('Grey', 'here', 'MIT', True, True, ('dark', 'light'))\n"
        "    return index.table(list('abcd'), range(4), 'test', [0, 1, 0, 1]), card\n"
        "def read(params, rows):\n"
        "    shades = rows['item_index'].to_pylist()\n"
        "    return [Image.new('RGB', (8, 8), (shade,) * 3) for shade in shades]\n"
    )
    code, said, path = prepare("grey", {}, ["test"], plugins=[str(tmp_path / "grey.py")])
    assert code == 0, said
    assert sorted(ids(path)) == list("abcd")
    assert json.loads((path.parent / "card.json").read_text())["title"] == "Grey"


def test_a_plugin_with_labels_outside_its_classes_is_refused(prepare, tmp_path):
    (tmp_path / "wrong.py").write_text(
        "from dataclasses import dataclass\n"
        "from certbench.datasets.card import Card\n"
        "kind = 'dataset'\n"
        "version = 1\n"
        "@dataclass(frozen=True)\n"
        "class Params:\n"
        "    pass\n"
        "def splits(params):\n"
        "    return {'test': 2}\n"
        "def prepare(params, splits, seed, tick):\n"
        "    from certbench.datasets import index\n"
        "    card = Card('Wrong', 'here', 'MIT', True, True, ('one',))\n"
        "    return index.table(['a', 'b'], range(2), 'test', [0, 5]), card\n"
        "def read(params, rows):\n"
        "    return []\n"
    )
    code, said, _ = prepare("wrong", {}, ["test"], plugins=[str(tmp_path / "wrong.py")])
    assert code == 2 and "labels 5 are outside 0..0 (1 classes)" in said
