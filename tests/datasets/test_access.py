import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from certbench.datasets import digits, index
from certbench.datasets.access import Items
from certbench.datasets.card import Card
from certbench.errors import CertbenchError

CARD = Card("T", "S", "L", True, True, ("even", "odd"))


def image_of(number, side=4):
    pixels = np.full((side, side, 3), number % 256, np.uint8)
    pixels[0, 0] = (number // 256, 7, 9)
    return pixels


def plugin(side_of=lambda number: 4, count=None):
    """A dataset whose images are functions of their item_index."""

    def read(params, rows):
        found = rows.column("item_index").to_pylist()
        images = [Image.fromarray(image_of(i, side_of(i))) for i in found]
        return images if count is None else images[:count]

    return SimpleNamespace(read=read)


@pytest.fixture
def written(tmp_path):
    def make(n=100, extra=30):
        both = index.table(
            [f"a/{i}" for i in range(n)] + [f"b/{i}" for i in range(extra)],
            [*range(n), *range(extra)],
            ["test"] * n + ["val"] * extra,
            [i % 2 for i in range(n)] + [0] * extra,
        )
        ordered = index.order(both, seed=3)
        index.write(tmp_path / "index.parquet", ordered, CARD, {})
        return tmp_path / "index.parquet", ordered

    return make


def test_items_come_in_rank_order_with_their_labels_and_indices(written):
    path, ordered = written()
    expected = ordered.filter([s == "test" for s in ordered.column("split").to_pylist()])
    items = Items(path, "test", "native4", plugin(), None)
    batch = items.load(10, 35)
    assert batch.item_ids == expected.column("item_id").to_pylist()[10:35]
    assert batch.item_index.tolist() == expected.column("item_index").to_pylist()[10:35]
    assert batch.labels.tolist() == expected.column("label").to_pylist()[10:35]
    assert batch.images.dtype == np.uint8 and batch.images.flags.c_contiguous
    assert batch.labels.dtype == np.int32 and batch.item_index.dtype == np.uint32
    np.testing.assert_array_equal(batch.images, np.stack([image_of(i) for i in batch.item_index]))
    assert len(batch) == 25 and len(items) == items.size == 100
    assert items.class_names == ("even", "odd")


@pytest.mark.parametrize("rows_in_group", [1, 7, 64, 1000])
def test_any_range_is_a_slice_of_the_whole(written, monkeypatch, rows_in_group):
    monkeypatch.setattr(index, "_ROWS_IN_GROUP", rows_in_group)
    path, _ = written(n=61, extra=29)
    for split, size in (("test", 61), ("val", 29)):
        items = Items(path, split, "native", plugin(), None)
        whole = items.load(0, size).item_ids
        assert len(set(whole)) == size
        for start, stop in [(0, 1), (5, 8), (6, 7), (7, 14), (13, 29), (size - 1, size), (0, size)]:
            assert items.load(start, stop).item_ids == whole[start:stop]
        assert len(items.load(size, size)) == len(items.load(3, 3)) == 0
        for width in (1, 4, 29, 100):
            parts = list(items.chunks(2, 23, width))
            assert [name for part in parts for name in part.item_ids] == whole[2:23]
            assert all(len(part) <= width for part in parts)


def test_an_empty_range_has_the_views_shape(written):
    path, _ = written()
    items = Items(path, "test", "squash32x48", plugin(), None)
    assert items.load(4, 4).images.shape == (0, 32, 48, 3)


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (90, 101), (7, 6)])
def test_a_range_beyond_the_split_is_refused_with_its_size(written, start, stop):
    path, _ = written()
    with pytest.raises(CertbenchError, match="which has 100"):
        Items(path, "test", "native", plugin(), None).load(start, stop)


def test_an_unprepared_split_is_refused(written):
    path, _ = written()
    with pytest.raises(CertbenchError, match=r"split 'tset' was not prepared\n.*'test'"):
        Items(path, "tset", "native", plugin(), None)


def test_an_unknown_view_is_refused_on_opening(written):
    path, _ = written()
    with pytest.raises(CertbenchError, match="unknown view 'squish'"):
        Items(path, "test", "squish", plugin(), None)


def test_a_missing_or_foreign_file_is_refused(tmp_path):
    with pytest.raises(CertbenchError, match="does not exist"):
        Items(tmp_path / "index.parquet", "test", "native", plugin(), None)
    (tmp_path / "index.parquet").write_text("no")
    with pytest.raises(CertbenchError, match="torn, or not a file of this project"):
        Items(tmp_path / "index.parquet", "test", "native", plugin(), None)


def test_images_of_unequal_shape_are_refused_with_both_names(written):
    path, _ = written()
    odd = plugin(lambda number: 5 if number == 40 else 4)
    items = Items(path, "test", "native", odd, None)
    with pytest.raises(
        CertbenchError, match=r"differ in shape under view 'native': a/\d+ is"
    ) as caught:
        items.load(0, 100)
    assert "5x5" in str(caught.value) and "squash<H>x<W>" in str(caught.value)
    assert Items(path, "test", "squash6", odd, None).load(0, 100).images.shape == (100, 6, 6, 3)


def test_an_image_that_does_not_fit_a_native_view_is_named(written):
    path, _ = written()
    items = Items(path, "test", "native4", plugin(lambda number: 5 if number == 40 else 4), None)
    with pytest.raises(CertbenchError, match=r"a/40: view native4 needs images of 4x4.*5x5"):
        items.load(0, 100)


def test_a_plugin_that_loses_images_is_refused(written):
    path, _ = written()
    with pytest.raises(CertbenchError, match="3 images for 10 rows"):
        Items(path, "test", "native", plugin(count=3), None).load(0, 10)


def test_an_item_without_a_label_gets_minus_one(tmp_path):
    table = index.table(["a", "b"], [0, 1], "test", [None, 1])
    index.write(tmp_path / "index.parquet", index.order(table, 0), CARD, {})
    batch = Items(tmp_path / "index.parquet", "test", "native", plugin(), None).load(0, 2)
    assert dict(zip(batch.item_ids, batch.labels.tolist(), strict=True)) == {"a": -1, "b": 1}


def test_loading_digits_imports_only_pillow_numpy_and_pyarrow(prepare):
    code, _, path = prepare("digits", {}, ["test"])
    assert code == 0
    program = (
        "import sys\n"
        "from certbench.datasets import digits\n"
        "from certbench.datasets.access import Items\n"
        f"items = Items({str(path)!r}, 'test', 'squash32', digits, digits.Params())\n"
        "assert items.load(0, 50).images.shape == (50, 32, 32, 3)\n"
        "heavy = ['torch', 'torchvision', 'sklearn', 'scipy', 'pandas', 'pyarrow.dataset']\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_digits_of_an_index_are_those_of_the_plugin(prepare):
    code, _, path = prepare("digits", {}, ["test"])
    assert code == 0
    items = Items(path, "test", "native8", digits, digits.Params())
    rows = items.rows(100, 103)
    expected = [np.asarray(image) for image in digits.read(digits.Params(), rows)]
    np.testing.assert_array_equal(items.load(100, 103).images, np.stack(expected))
