import builtins

import numpy as np
import pytest

from certbench.corruptions.three_d import FAMILIES, corrupt_3d, corrupt_3d_severities
from certbench.errors import CertbenchError


def scene(height, width):
    row, column = np.mgrid[:height, :width]
    image = np.stack([row * 2, column, 128 + 60 * np.sin(column / 5) * np.cos(row / 7)], -1)
    depth = (0.1 + 0.4 * row / height).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), depth


@pytest.fixture
def codecs():
    pytest.importorskip("av", reason="video corruptions need PyAV")


@pytest.mark.parametrize("name", FAMILIES["video"])
def test_the_result_shows_the_image_again_and_degrades_with_severity(codecs, name):
    image, depth = scene(72, 96)
    outs = corrupt_3d_severities(image, depth, name, 4, (1, 5))
    errors = [np.abs(out.astype(int) - image).mean() for out in outs]
    assert all(out.shape == image.shape and out.dtype == np.uint8 for out in outs)
    assert errors[0] < 8
    # About one byte in 100,000 or 10,000 is damaged: a small clip may escape both.
    assert errors[1] > errors[0] or name == "bit_error"


def test_bit_errors_leave_marks_on_a_busy_clip(codecs):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (18, 24, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    _, depth = scene(144, 192)
    outs = corrupt_3d_severities(image, depth, "bit_error", 4, (1, 3, 5))
    errors = [np.abs(out.astype(int) - image).mean() for out in outs]
    assert errors[2] > 2 * errors[0]


def test_equal_seeds_give_equal_bytes_again_and_again(codecs):
    image, depth = scene(96, 128)
    for name in ("h265_crf", "bit_error"):
        one = corrupt_3d(image, depth, name, 3, 9)
        assert np.array_equal(one, corrupt_3d(image, depth, name, 3, 9))


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (1, 90)])
def test_odd_and_small_sizes_come_back_as_they_were(codecs, size):
    image, depth = scene(*size)
    out = corrupt_3d(image, depth, "bit_error", 2, 1)
    assert out.shape == image.shape
    assert np.abs(out.astype(int) - image).mean() < 15


def test_without_the_codecs_the_types_say_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "av":
            raise ImportError("no av")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    image, depth = scene(32, 32)
    with pytest.raises(CertbenchError, match="pip install av"):
        corrupt_3d(image, depth, "h265_crf", 1, 0)
