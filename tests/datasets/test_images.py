import io
import os

import numpy as np
import pytest
from PIL import Image

from certbench.datasets import images, index
from certbench.errors import CertbenchError


def encoded(kind, seed=0, side=64):
    pixels = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (side, side, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue(), pixels


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_files_give_their_pixels(kind, tmp_path):
    data, pixels = encoded(kind)
    np.testing.assert_array_equal(np.asarray(images.decode(data, "x")), pixels)
    (tmp_path / "file").write_bytes(data)
    np.testing.assert_array_equal(np.asarray(images.decode(tmp_path / "file", "x")), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_truncated_file_of_any_kind_is_refused_by_name(kind, share):
    data, _ = encoded(kind)
    with pytest.raises(CertbenchError, match=r"^the file: (cannot be decoded|is not an image)"):
        images.decode(data[: int(share * len(data))], "the file")


def test_a_damaged_png_is_refused():
    data = bytearray(encoded("PNG")[0])
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(CertbenchError, match="cannot be decoded"):
        images.decode(bytes(data), "x")


def test_an_image_too_large_to_be_one_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(CertbenchError, match=r"cannot be decoded .*exceeds limit"):
        images.decode(encoded("PNG")[0], "x")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CertbenchError, match="gone: does not exist"):
        images.decode(tmp_path / "gone", "gone")


def test_files_are_sorted_whatever_the_file_system_says(tmp_path, monkeypatch):
    names = ["b.png", "a b.png", "a/z.png", "a/b/c.jpg", "a.PNG", "Z.png", "ä.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert images.files_in(tmp_path) == sorted(names)
    scandir = os.scandir

    class Backwards:
        def __init__(self, place):
            self.entries = sorted(scandir(place), key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert images.files_in(tmp_path) == sorted(names)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_broken_images_are_found_whatever_the_chunks_and_threads(threads, chunk):
    good = encoded("JPEG", side=16)[0]
    bad = {3, 4, 17}
    data = [good[:-200] if i in bad else good for i in range(23)]
    rows = index.table([f"i{i}" for i in range(23)], range(23), "test", [0] * 23, image=data)
    seen = []
    found = images.broken(
        lambda params, part: images.decode_rows(part),
        None,
        rows,
        lambda done, total: seen.append((done, total)),
        chunk=chunk,
        threads=threads,
    )
    assert set(found) == {f"i{i}" for i in bad}
    assert seen[-1] == (23, 23) and seen == sorted(seen)


def test_a_row_without_an_image_is_refused():
    rows = index.table(["i0"], [0], "test", [0])
    with pytest.raises(CertbenchError, match="i0: has neither embedded bytes nor a file"):
        images.decode_rows(rows)
