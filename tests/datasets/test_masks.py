"""Label maps: decoding, what is refused, and their way through an index and a view."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from certbench.datasets import index, masks
from certbench.datasets.access import Items
from certbench.datasets.card import Card
from certbench.errors import CertbenchError

CARD = Card("T", "S", "L", True, True, (), mask_class_names=("road", "sky", "car"))


def encoded(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def map_of(i, height=6, width=9):
    drawn = np.random.default_rng(i).integers(0, 3, (height, width)).astype(np.uint8)
    drawn[0, 0] = 255
    return drawn


def plugin(mask_of=map_of, count=None, size=(6, 9)):
    """A dataset whose images and label maps are functions of their item_index."""

    def read(params, rows):
        found = rows.column("item_index").to_pylist()
        return [Image.new("RGB", (size[1], size[0]), (i, 0, 0)) for i in found]

    def read_masks(params, rows):
        return [mask_of(i) for i in rows.column("item_index").to_pylist()][:count]

    return SimpleNamespace(read=read, read_masks=read_masks)


@pytest.fixture
def items(tmp_path):
    def make(module, view="native", card=CARD, n=12):
        table = index.table([f"a/{i}" for i in range(n)], range(n), "test", [None] * n)
        index.write(tmp_path / "index.parquet", index.order(table, 0), card, {})
        return Items(tmp_path / "index.parquet", "test", view, module, None)

    return make


def test_a_map_written_as_png_comes_back():
    drawn = map_of(3)
    assert (masks.decode(masks.png(drawn), "m") == drawn).all()


def test_of_a_palette_image_the_indices_count():
    image = Image.new("P", (9, 6))
    image.putdata(map_of(1).ravel().tolist())
    image.putpalette([7, 8, 9] * 256)
    assert (masks.decode(encoded(image), "m") == map_of(1)).all()


@pytest.mark.parametrize("mode", ["RGB", "I;16", "RGBA", "LA"])
def test_a_map_of_several_channels_or_more_bits_is_refused(mode):
    image = Image.new(mode, (3, 2))
    with pytest.raises(CertbenchError, match=r"m: its label map has mode .*\n.*one channel"):
        masks.decode(encoded(image), "m")


def test_a_map_that_is_no_image_is_refused():
    with pytest.raises(CertbenchError, match="m: its label map cannot be decoded"):
        masks.decode(b"no", "m")


def test_items_load_images_and_maps_of_the_same_ranks(items):
    opened = items(plugin())
    batch = opened.load(2, 7, masks=True)
    assert batch.masks.shape == (5, 6, 9) and batch.masks.dtype == np.uint8
    np.testing.assert_array_equal(batch.masks, np.stack([map_of(i) for i in batch.item_index]))
    np.testing.assert_array_equal(batch.images[:, 0, 0, 0], batch.item_index)
    np.testing.assert_array_equal(opened.load_masks(2, 7), batch.masks)
    assert opened.load(2, 7).masks is None
    assert opened.load(3, 3, masks=True).masks.shape[0] == 0
    assert opened.mask_class_names == ("road", "sky", "car")


@pytest.mark.parametrize("view", ["squash4x18", "resize4_crop3"])
def test_maps_follow_the_view_of_their_images(items, view):
    batch = items(plugin(), view).load(0, 12, masks=True)
    assert batch.masks.shape == batch.images.shape[:3]
    assert set(np.unique(batch.masks)) <= {0, 1, 2, 255}


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (plugin(lambda i: map_of(i, 6, 8)), r"a/\d+: its label map is 6x8, its image 6x9"),
        (plugin(lambda i: map_of(i) * 0 + 3), r"has values 3 outside 0\.\.2 \(3 classes"),
        (plugin(lambda i: map_of(i).astype(int)), r"its label map is int64 \[6, 9\]"),
        (plugin(count=4), "returned 4 label maps for 12 rows"),
    ],
)
def test_maps_that_do_not_fit_are_refused_in_one_message(items, module, message):
    with pytest.raises(CertbenchError, match=message):
        items(module).load(0, 12, masks=True)


def test_a_dataset_without_maps_says_so(items):
    without = SimpleNamespace(read=plugin().read)
    with pytest.raises(CertbenchError, match="the dataset has no label maps"):
        items(without).load(0, 3, masks=True)
    unnamed = Card("T", "S", "L", True, True, ("a", "b"))
    with pytest.raises(CertbenchError, match="the dataset has no label maps"):
        items(plugin(), card=unnamed).load(0, 3, masks=True)


def test_the_card_keeps_names_and_colours_of_the_maps():
    card = Card("T", "S", "L", True, True, ("x",), {}, "", ("a", "b"), ((1, 2, 3), (4, 5, 6)))
    assert Card.from_json(card.to_json()) == card
    assert card.classes("segmentation") == ("a", "b") and card.classes("classification") == ("x",)
