"""Mask sets: golden geometry, and the covering property by enumeration."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certbench.certify import masks
from certbench.errors import CertbenchError


@pytest.mark.parametrize(
    ("shape", "patch", "given_", "rows", "columns", "mask", "count"),
    [
        ((224, 224), (32, 32), (6, None), [0, 33, 66, 99, 132, 160], None, (64, 64), 36),
        ((224, 224), (23, 23), (6, None), [0, 34, 68, 102, 136, 168], None, (56, 56), 36),
        ((224, 224), (39, 39), (6, None), [0, 31, 62, 93, 124, 155], None, (69, 69), 36),
        ((224, 224), (32, 32), (2, None), [0, 96], None, (128, 128), 4),
        ((224, 224), (32, 32), (4, None), [0, 49, 98, 144], None, (80, 80), 16),
        ((32, 32), (5, 5), (6, None), [0, 5, 10, 15, 20, 23], None, (9, 9), 36),
        (
            (224, 160),
            (32, 32),
            (6, None),
            [0, 33, 66, 99, 132, 160],
            [0, 22, 44, 66, 88, 107],
            (64, 53),
            36,
        ),
        (
            (224, 224),
            (16, 64),
            (6, None),
            [0, 35, 70, 105, 140, 174],
            [0, 27, 54, 81, 108, 134],
            (50, 90),
            36,
        ),
        ((448, 448), (64, 64), (6, None), [0, 65, 130, 195, 260, 320], None, (128, 128), 36),
        ((10, 10), (3, 3), (6, None), [0, 2, 4, 6], None, (4, 4), 16),
        ((224, 224), (32, 32), (None, 32), [0, 32, 64, 96, 128, 160, 161], None, (63, 63), 49),
        ((32, 32), (32, 32), (6, None), [0], None, (32, 32), 1),
    ],
)
def test_published_geometry(shape, patch, given_, rows, columns, mask, count):
    made = masks.mask_set(shape, patch, *given_)
    assert list(made.rows.starts) == rows
    assert list(made.columns.starts) == (columns or rows)
    assert (made.rows.size, made.columns.size) == mask
    assert len(made) == count and len(made.pairs) == count * (count + 1) // 2
    assert masks.from_facts(made.facts()) == made


@given(st.integers(1, 70), st.data())
def test_every_position_of_the_patch_lies_in_a_mask_and_of_no_larger_one(length, data):
    patch = data.draw(st.integers(1, length))
    count = data.draw(st.integers(1, 12))
    axis = masks.axis(length, patch, count)
    assert len(axis.starts) <= count
    held = {
        p: all(
            any(s <= b and b + p <= s + axis.size for s in axis.starts)
            for b in range(length - p + 1)
        )
        for p in range(1, length + 1)
    }
    assert held[patch]
    # The formula against enumeration, at every patch size.
    assert axis.largest_patch == max(p for p, holds in held.items() if holds)


def test_a_gap_is_found_and_larger_patches_are_refused():
    whole = masks.axis(32, 5, 6)
    gap = masks.MaskSet(masks.Axis(32, (0, 5, 10, 16, 20, 23), 9), whole)
    assert not gap.covered(5, 5) and gap.covered(4, 5)
    with pytest.raises(CertbenchError, match="may lie outside") as caught:
        gap.require(5, 5)
    assert "4 x 5" in caught.value.remedy
    assert masks.Axis(32, (1, 23), 20).largest_patch == 0
    for wrong in (0, 33):
        with pytest.raises(CertbenchError, match="does not fit"):
            masks.axis(32, wrong, 6)
    with pytest.raises(CertbenchError, match="either"):
        masks.axis(32, 5, 6, 5)


def test_blanked_pixels_and_held_positions_agree():
    made = masks.mask_set((12, 9), (3, 2), 3)
    holding = made.holding(3, 2)
    assert holding.shape == (len(made), 10, 8)
    for m, a, b in np.ndindex(*holding.shape):
        assert holding[m, a, b] == made.blanked[m, a : a + 3, b : b + 2].all()
