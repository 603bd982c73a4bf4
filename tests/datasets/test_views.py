import io
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from certbench.datasets import views
from certbench.errors import CertbenchError


def picture(height, width, seed=0, mode="RGB"):
    generator = np.random.Generator(np.random.PCG64(seed))
    coarse = generator.integers(0, 256, (7, 5, 3), np.uint8)
    fine = generator.integers(0, 40, (height, width, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray((smooth // 2 + fine).astype(np.uint8)).convert(mode)


def torchvision_view(image, side, crop):
    from torchvision import transforms

    steps = [transforms.Resize(side), transforms.CenterCrop(crop)]
    return np.asarray(transforms.Compose(steps)(image))


SHAPES = [(375, 500), (500, 375), (256, 256), (257, 1000), (333, 256), (40, 31), (63, 64), (32, 97)]


@pytest.mark.parametrize(("side", "crop"), [(256, 224), (64, 63), (33, 32), (37, 20), (232, 224)])
@pytest.mark.parametrize("shape", SHAPES)
def test_resize_and_crop_equal_torchvision_to_the_bit(shape, side, crop):
    image = picture(*shape, seed=side)
    got = views.parse(f"resize{side}_crop{crop}").apply(image)
    np.testing.assert_array_equal(got, torchvision_view(image, side, crop))
    assert got.shape == (crop, crop, 3)


@pytest.mark.data
def test_resize_and_crop_equal_torchvision_on_photographs(real_images):
    file = pq.ParquetFile(real_images / "imagenet-sample" / "val.parquet")
    column = file.read_row_group(0, columns=["image"]).column(0)
    for i in range(12):
        image = Image.open(io.BytesIO(column[i].as_py()["bytes"])).convert("RGB")
        got = views.parse("resize232_crop224").apply(image)
        np.testing.assert_array_equal(got, torchvision_view(image, 232, 224))


@pytest.mark.parametrize(("name", "size"), [("squash32", (32, 32)), ("squash48x96", (48, 96))])
def test_squash_gives_exactly_the_size_it_names(name, size):
    from torchvision.transforms import v2

    view = views.parse(name)
    assert view.size == size and view.name == name
    for shape in [(8, 8), (375, 500), (100, 32)]:
        image = picture(*shape)
        got = view.apply(image)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, np.asarray(v2.Resize(list(size))(image)))


def test_native_is_the_image_as_stored():
    image = picture(21, 34)
    view = views.parse("native")
    assert view.size is None
    np.testing.assert_array_equal(view.apply(image), np.asarray(image))
    np.testing.assert_array_equal(views.parse("native34").apply(picture(34, 34)), picture(34, 34))


def test_native_with_a_size_refuses_other_sizes():
    view = views.parse("native32")
    assert view.size == (32, 32)
    with pytest.raises(
        CertbenchError, match=r"needs images of 32x32, this one is 32x31.*\n.*squash32"
    ):
        view.apply(picture(32, 31))


def test_a_grey_image_gets_three_equal_channels():
    got = views.parse("squash16").apply(picture(20, 20, mode="L"))
    assert got.shape == (16, 16, 3)
    assert (got[..., 0] == got[..., 1]).all() and (got[..., 1] == got[..., 2]).all()


def test_transparency_is_dropped():
    image = picture(20, 20)
    image.putalpha(0)
    np.testing.assert_array_equal(views.parse("native").apply(image), np.asarray(picture(20, 20)))


@pytest.mark.parametrize(
    "name",
    ["", "squash", "squash0", "squash032", "native-1", "resize224", "resize224_crop256", "crop224",
     "resize256_crop224_", " native", "Native32", "squash32x", "squash999999", "native32\n"],
)  # fmt: skip
def test_an_unknown_view_is_refused_with_the_grammar(name):
    with pytest.raises(CertbenchError) as caught:
        views.parse(name)
    assert views.GRAMMAR in str(caught.value)


def test_a_view_cannot_be_changed():
    with pytest.raises(AttributeError):
        views.parse("native").name = "other"


def test_planning_a_view_loads_no_array_library():
    code = (
        "import sys; from certbench.datasets import views; views.parse('squash32');"
        "sys.exit(any(m in sys.modules for m in ('numpy', 'PIL', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", ["native", "squash20x50", "squash64", "resize40_crop32"])
@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (40, 40), (33, 57)])
def test_maps_follow_the_image_and_keep_their_values(name, shape):
    """Against Pillow's own nearest neighbour, and against the image's geometry."""
    view = views.parse(name)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 255, shape, np.uint8)
    got = view.nearest(labels)
    shown = view.apply(Image.fromarray(labels))
    assert got.shape == shown.shape[:2] and got.dtype == np.uint8
    if view.kind == "squash":
        height, width = got.shape
        pillow = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
        # A centre that falls between two pixels is as near to one as to the other.
        clear = [
            (2 * np.arange(into) + 1) * length % (2 * into) != 0
            for length, into in zip(shape, got.shape, strict=True)
        ]
        assert (got == np.asarray(pillow))[np.ix_(*clear)].all() and clear[1].sum() > 5
    ramp = np.add.outer(np.arange(shape[0]), np.arange(shape[1])).astype(np.uint8)
    difference = view.nearest(ramp).astype(int) - view.apply(Image.fromarray(ramp))[..., 0]
    scale = max(1.0, max(shape) / min(got.shape))
    assert np.abs(difference).max() <= scale + 1
    depth = rng.random(shape).astype(np.float32)
    assert set(view.nearest(depth).ravel()) <= set(depth.ravel())
