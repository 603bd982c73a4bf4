"""Where masks lie: sets of rectangles of which at least one covers every patch.

A mask set is *covering* for a patch size when every position of such a patch lies inside at least
one mask. PatchCleanser (Xiang et al., USENIX Security 2022, arXiv 2108.09135, section 3.2) spaces
masks of one size evenly along each axis; the two axes are independent. Nothing here is trusted:
:meth:`MaskSet.covered` counts positions, and :func:`mask_set` refuses a set that leaves one out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from certbench.errors import CertbenchError


@dataclass(frozen=True)
class Axis:
    """Masks along one axis.

    Attributes:
        length: Pixels of the image along the axis.
        starts: First pixel of each mask, ascending.
        size: Pixels of each mask.
    """

    length: int
    starts: tuple[int, ...]
    size: int

    @property
    def largest_patch(self) -> int:
        """Largest patch side of which every position lies inside a mask; 0 where none does.

        A mask at ``a`` holds the patches of side p that begin in [a, a + size - p], so all begins
        are held exactly when the first mask is at 0, the last at the end, and no two neighbours
        are more than ``size - p + 1`` apart.
        """
        if self.starts[0] != 0 or self.starts[-1] != self.length - self.size:
            return 0
        gap = max(np.diff(self.starts), default=0)
        return int(self.size if gap == 0 else max(self.size - gap + 1, 0))


@dataclass(frozen=True)
class MaskSet:
    """Rectangular masks of one size, rows of masks outermost.

    Attributes:
        rows: Masks along the height.
        columns: Masks along the width.
    """

    rows: Axis
    columns: Axis

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    @cached_property
    def corners(self) -> np.ndarray:
        """int64 [N, 2]: row and column of each mask's first pixel."""
        down, across = np.meshgrid(self.rows.starts, self.columns.starts, indexing="ij")
        return np.stack([down.ravel(), across.ravel()], 1).astype(np.int64)

    @cached_property
    def blanked(self) -> np.ndarray:
        """The pixels that each mask takes away: bool [N, H, W]."""
        made = np.zeros((len(self), self.rows.length, self.columns.length), bool)
        for i, (down, across) in enumerate(self.corners):
            made[i, down : down + self.rows.size, across : across + self.columns.size] = True
        return made

    @cached_property
    def pairs(self) -> np.ndarray:
        """int64 [N (N + 1) / 2, 2]: unordered pairs of masks, single masks among them."""
        return np.stack(np.triu_indices(len(self)), 1)

    @property
    def largest_patch(self) -> tuple[int, int]:
        """Height and width of the largest patch that the set covers."""
        return self.rows.largest_patch, self.columns.largest_patch

    def require(self, height: int, width: int) -> None:
        """Refuse a patch that the set does not cover.

        Raises:
            CertbenchError: Says the largest patch it covers.
        """
        most = self.largest_patch
        if height > most[0] or width > most[1]:
            raise CertbenchError(
                f"a patch of {height} x {width} pixels may lie outside every mask",
                where="masks",
                remedy=f"these masks cover patches up to {most[0]} x {most[1]}",
            )

    def holding(self, height: int, width: int) -> np.ndarray:
        """Which masks hold a patch at each position: bool [N, H - height + 1, W - width + 1].

        Args:
            height: Pixels of the patch.
            width: Pixels of the patch.
        """
        down = _holding(self.rows, height)
        across = _holding(self.columns, width)
        made = down[:, None, :, None] & across[None, :, None, :]
        return made.reshape(len(self), down.shape[1], across.shape[1])

    def covered(self, height: int, width: int) -> bool:
        """Whether every position of a patch lies inside a mask, by enumeration."""
        return bool(self.holding(height, width).any(0).all())

    def facts(self) -> dict[str, Any]:
        """The geometry as JSON values: part of a shard's identity."""
        return {
            "height": self.rows.length,
            "width": self.columns.length,
            "starts_h": list(self.rows.starts),
            "starts_w": list(self.columns.starts),
            "mask_h": self.rows.size,
            "mask_w": self.columns.size,
        }


def from_facts(facts: Any) -> MaskSet:
    """The mask set that :meth:`MaskSet.facts` describes."""
    return MaskSet(
        Axis(int(facts["height"]), tuple(facts["starts_h"]), int(facts["mask_h"])),
        Axis(int(facts["width"]), tuple(facts["starts_w"]), int(facts["mask_w"])),
    )


def axis(length: int, patch: int, count: int | None = None, stride: int | None = None) -> Axis:
    """Evenly spaced masks that cover every position of a patch along one axis.

    Args:
        length: Pixels of the image.
        patch: Pixels of the patch, in [1, length].
        count: Budget of masks; small images may need fewer.
        stride: Pixels between masks, instead of ``count``.

    Raises:
        CertbenchError: The patch does not fit, or not exactly one of count and stride is given.

    Source: PatchCleanser, section 3.2 and appendix (mask stride and size from a mask budget).
    """
    if not 1 <= patch <= length:
        raise CertbenchError(
            f"a patch of {patch} pixels does not fit into {length}",
            where="masks",
            remedy=f"give a patch of 1 to {length} pixels",
        )
    if (count is None) == (stride is None):
        raise CertbenchError("give either a number of masks or a stride", where="masks")
    step = stride if stride is not None else -(-(length - patch + 1) // int(count or 1))
    size = min(patch + step - 1, length)
    starts = list(range(0, length - size + 1, step))
    if (length - size) % step:
        starts.append(length - size)
    return Axis(length, tuple(starts), size)


def mask_set(
    shape: tuple[int, int],
    patch: tuple[int, int],
    count: int | None = None,
    stride: int | None = None,
) -> MaskSet:
    """The masks of one image size and patch size, checked to cover every position.

    Args:
        shape: Height and width of the image.
        patch: Height and width of the patch.
        count: Budget of masks along each axis.
        stride: Pixels between masks, instead of ``count``.

    Raises:
        CertbenchError: The patch does not fit.
    """
    made = MaskSet(
        axis(shape[0], patch[0], count, stride),
        axis(shape[1], patch[1], count, stride),
    )
    made.require(*patch)
    if not made.covered(*patch):
        raise AssertionError(f"masks {made.facts()} leave a position of {patch} uncovered")
    return made


def _holding(masks: Axis, patch: int) -> np.ndarray:
    """Which masks hold a patch at each position of one axis: bool [masks, positions]."""
    begins = np.arange(masks.length - patch + 1)[None]
    starts = np.array(masks.starts)[:, None]
    return (begins >= starts) & (begins + patch <= starts + masks.size)
