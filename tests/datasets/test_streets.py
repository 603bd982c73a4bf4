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


def test_label_maps_are_those_of_the_renderer_and_fit_the_classes_of_the_card(prepared):
    from certbench.datasets.streets_classes import CLASSES
    from certbench.datasets.streets_scene import render

    items, card = prepared
    maps = streets.read_masks(SMALL, items)
    assert card.mask_class_names == CLASSES and len(CLASSES) >= 8
    assert len(card.mask_colours) == len(CLASSES)
    assert all(drawn.shape == (32, 64) and drawn.dtype == np.uint8 for drawn in maps)
    assert max(drawn.max() for drawn in maps) < len(CLASSES)
    row = items.slice(12, 1)
    number = 3 * 10_000_000 + int(row.column("item_index")[0].as_py())
    np.testing.assert_array_equal(maps[12], render(number, 32, 64, "clear").labels)


def test_a_condition_shows_the_same_streets_in_another_weather(prepared):
    import dataclasses

    mixed, _ = prepared
    fog = dataclasses.replace(SMALL, condition="fog")
    items, card = streets.prepare(fog, ["train", "test"], 0, lambda done, total: None)
    assert items.column("item_id").equals(mixed.column("item_id"))
    assert set(items.column("label").to_pylist()) == {card.class_names.index("fog")}
    assert "fog" in card.title and "fog" in card.note and card.synthetic
    assert items.column("mask").equals(mixed.column("mask"))
    same = [
        a == b
        for a, b in zip(
            items.column("image").to_pylist(), mixed.column("image").to_pylist(), strict=True
        )
    ]
    # Of the mixed scenes one in five is shown in fog.
    assert [i % 5 == 1 for i in [*range(10), *range(10)]] == same
    conditions = [condition for _, _, condition in streets.read_scenes(fog, items)]
    assert set(conditions) == {"fog"}
