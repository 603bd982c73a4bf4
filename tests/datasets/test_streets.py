"""The plug-in of rendered scenes."""

import numpy as np
import pytest

from certbench.datasets import index, streets

SMALL = streets.Params(height=32, width=64, train=10, calibration=5, val=5, test=10)


@pytest.fixture(scope="module")
def prepared():
    return streets.prepare(SMALL, ["train", "test"], 0, lambda done, total: None)


def test_the_items_make_an_index_and_the_card_says_synthetic(prepared):
    items, card = prepared
    index.check(items, len(card.class_names), "streets")
    assert card.synthetic and card.redistributable
    assert items.num_rows == 20


def test_the_label_is_the_condition_that_was_rendered(prepared):
    from certbench.datasets.streets_classes import CONDITIONS
    from certbench.datasets.streets_scene import render

    items, card = prepared
    assert card.class_names == CONDITIONS
    row = items.slice(12, 1)
    (image,) = streets.read(SMALL, row)
    number = 3 * 10_000_000 + int(row.column("item_index")[0].as_py())
    condition = card.class_names[row.column("label")[0].as_py()]
    assert (np.asarray(image) == render(number, 32, 64, condition).rgb).all()


def test_splits_share_no_scene(prepared):
    items, _ = prepared
    pictures = [bytes(image["bytes"]) for image in items.column("image").to_pylist()]
    assert len(set(pictures)) == len(pictures)
