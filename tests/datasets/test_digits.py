import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from certbench.datasets import digits, views
from certbench.errors import CertbenchError
from certbench.params import build

EVERY = ["train", "calibration", "val", "test"]


def prepared(splits=EVERY, seed=0, **params):
    seen = []
    table, card = digits.prepare(
        digits.Params(**params), splits, seed, lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (len(table), len(table))
    return table, card


def test_the_splits_share_out_all_1797_digits():
    table, card = prepared()
    assert Counter(table.column("split").to_pylist()) == digits.splits(digits.Params())
    assert sorted(table.column("item_index").to_pylist()) == list(range(1797))
    assert len(set(table.column("item_id").to_pylist())) == 1797
    assert card.class_names == tuple("0123456789")


def test_each_split_holds_the_classes_in_proportion():
    table, _ = prepared()
    labels = np.array(table.column("label").to_pylist())
    splits = np.array(table.column("split").to_pylist())
    whole = np.bincount(labels, minlength=10) / 1797
    for name, size in digits.splits(digits.Params()).items():
        inside = np.bincount(labels[splits == name], minlength=10)
        # Each holdout is within one of its proportion of what was left, so within a few of this.
        assert np.abs(inside - size * whole).max() < 2.5


def test_an_images_intensity_is_255_sixteenths_of_the_source():
    source = load_digits()
    table, _ = prepared(["test"])
    for row in table.to_pylist():
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert image.mode == "L" and image.size == (8, 8)
        expected = np.array(
            [[round(v * 255 / 16) for v in line] for line in source.images[row["item_index"]]]
        )
        np.testing.assert_array_equal(np.asarray(image), expected)
        assert row["label"] == source.target[row["item_index"]]


def test_read_gives_rgb_in_the_order_of_the_rows():
    table, _ = prepared(["val"])
    mixed = table.take([5, 3, 99, 0])
    images = digits.read(digits.Params(), mixed)
    assert [image.mode for image in images] == ["RGB"] * 4
    whole = digits.read(digits.Params(), table)
    for image, i in zip(images, [5, 3, 99, 0], strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(whole[i]))
    assert views.parse("squash32").apply(images[0]).shape == (32, 32, 3)


def test_a_split_is_the_same_whichever_splits_are_prepared():
    both, _ = prepared(["test", "train"])
    one, _ = prepared(["test"])
    assert both.filter([s == "test" for s in both.column("split").to_pylist()]).equals(one)


def test_the_test_split_does_not_depend_on_the_other_sizes():
    one, _ = prepared(["test"])
    two, _ = prepared(["test"], train=500, val=7, calibration=0)
    assert one.equals(two)
    assert not one.equals(prepared(["test"], seed=1)[0])


def test_digits_that_no_split_asks_for_belong_to_none():
    table, _ = prepared(train=100, calibration=0, val=20, test=30)
    assert Counter(table.column("split").to_pylist()) == {"train": 100, "val": 20, "test": 30}
    assert "calibration" not in digits.splits(digits.Params(calibration=0))


def test_all_digits_can_be_the_test_split():
    table, _ = prepared(["test"], train=0, calibration=0, val=0, test=1797)
    assert len(table) == 1797


def test_more_digits_than_there_are_are_refused():
    with pytest.raises(CertbenchError, match="are 1798 items, and there are 1797"):
        build(digits.Params, {"train": 1098}, "config: datasets.digits")


def test_the_card_states_source_and_terms():
    assert digits.CARD.redistributable and not digits.CARD.synthetic
    assert "UCI" in digits.CARD.licence and "CC BY 4.0" in digits.CARD.licence
    assert "NIST" in digits.CARD.note and "scikit-learn" in digits.CARD.source
