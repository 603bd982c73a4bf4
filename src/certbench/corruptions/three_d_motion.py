"""3D corruptions by a moving camera: forward splatting of the image along its depth.

Model and constants: Kar et al., CVPR 2022 (after Niklaus et al., 3D Ken Burns). Differences on
purpose: holes are filled from the farther side of the gap instead of by a network, frames are not
resampled at a half-pixel offset, the motion scales with the image width, and the reference depth is
the first percentile of the whole image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

FRAMES = 60
"""Frames of a whole motion; frame k is at time k / 59."""

XY_FRAMES = (20, 30, 40, 50, 60)
Z_FRAMES = (20, 25, 30, 35, 38)
"""Frames whose mean is severity 1 to 5."""

REFERENCE_WIDTH = 512
"""Image width in pixels that the drawn motions refer to."""

DISPARITY = 40.0
"""Disparity of the reference depth."""

TOLERANCE = 1.0
"""Disparity by which a surface may be behind the nearest one and still be blended."""

EDGE = 0.03
"""Curvature of the relative disparity at which a pixel straddles a depth edge and is dropped."""


@dataclass(frozen=True)
class Motion:
    """A camera motion.

    Attributes:
        kind: ``xy`` (sideways) or ``z`` (forwards).
        across: Displacement of the reference depth to the right at the end, pixels at width 512.
        down: The same downwards.
        crop: For ``z``: share of the view that is left at the end.
    """

    kind: str
    across: float
    down: float
    crop: float = 1.0


def draw_motion(kind: str, rng: np.random.Generator) -> Motion:
    """Draw the motion of one image."""
    if kind == "xy":
        across = int(rng.integers(50, 75)) if rng.random() < 0.5 else int(rng.integers(-75, -50))
        return Motion("xy", across, int(rng.integers(-75, 75)))
    crop = float(rng.uniform(0.5, 0.6))
    return Motion("z", int(rng.integers(-30, 30)), int(rng.integers(-30, 30)), crop)


def reference_depth(depth: np.ndarray) -> float:
    """The depth that the motion is measured at: the first percentile."""
    return float(np.percentile(depth, 1))


def motion_blur(
    image: np.ndarray, depth: np.ndarray, motion: Motion, counts: Sequence[int]
) -> list[np.ndarray]:
    """Means of the first frames of a motion.

    Args:
        image: uint8 [H, W, 3].
        depth: Relative depth, float32 [H, W], positive.
        motion: The camera motion.
        counts: Ascending numbers of frames, at most 60; one pass serves all.

    Returns:
        One float64 [H, W, 3] in [0, 255] for each count.
    """
    total = np.zeros(image.shape, np.float64)
    means = []
    for k, frame in enumerate(frames(image, depth, motion, counts[-1])):
        total += frame
        if k + 1 in counts:
            means.append(total / (k + 1))
    return means


def frames(
    image: np.ndarray, depth: np.ndarray, motion: Motion, count: int = FRAMES
) -> Iterator[np.ndarray]:
    """Views along a motion, each float64 [H, W, 3] in [0, 255]; the first is the image itself."""
    height, width = depth.shape
    nearest = reference_depth(depth)
    colours = image.reshape(-1, 3).astype(np.float64)
    z = depth.astype(np.float64)
    disparity = DISPARITY * nearest / z
    kept = np.flatnonzero(~_straddles(disparity / DISPARITY))
    z = z.ravel()[kept]
    colours = colours[kept]
    row, column = np.divmod(kept, width)
    u = column + 0.5 - width / 2
    v = row + 0.5 - height / 2
    scale = width / REFERENCE_WIDTH
    across, down = motion.across * scale, motion.down * scale
    for k in range(count):
        if k == 0:
            yield image.astype(np.float64)
            continue
        t = k / (FRAMES - 1)
        if motion.kind == "xy":
            moved = z
            new_u, new_v = u - across * t * nearest / z, v - down * t * nearest / z
        else:
            zoom = 1 - t * (1 - motion.crop)
            moved = z - nearest * (1 - zoom)
            ahead = moved > 0.02 * nearest
            safe = np.where(ahead, moved, 1.0)
            new_u = np.where(ahead, (u * z - across * t * nearest * zoom) / safe, np.inf)
            new_v = np.where(ahead, (v * z - down * t * nearest * zoom) / safe, np.inf)
            moved = np.where(ahead, moved, np.inf)
        yield _splat(
            colours,
            new_u + width / 2 - 0.5,
            new_v + height / 2 - 0.5,
            DISPARITY * nearest / moved,
            height,
            width,
        )


def _straddles(disparity: np.ndarray) -> np.ndarray:
    """Pixels on depth edges, by the four-neighbour Laplacian."""
    padded = np.pad(disparity, 1, mode="edge")
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return np.abs(around - 4 * disparity) >= EDGE


def _splat(colours, x, y, disparity, height, width) -> np.ndarray:
    """Bilinear forward splatting with a z-buffer in disparity, then hole filling."""
    inside = np.flatnonzero((x > -1) & (x < width) & (y > -1) & (y < height))
    x, y, disparity, colours = x[inside], y[inside], disparity[inside], colours[inside]
    left, top = np.floor(x), np.floor(y)
    a, b = x - left, y - top
    left, top = left.astype(np.int64), top.astype(np.int64)
    targets, weights, sources = [], [], []
    for dx, wx in ((0, 1 - a), (1, a)):
        for dy, wy in ((0, 1 - b), (1, b)):
            column, row = left + dx, top + dy
            weight = wx * wy
            ok = np.flatnonzero(
                (column >= 0) & (column < width) & (row >= 0) & (row < height) & (weight > 1e-6)
            )
            targets.append(row[ok] * width + column[ok])
            weights.append(weight[ok])
            sources.append(ok)
    target, weight, source = (np.concatenate(part) for part in (targets, weights, sources))
    near = disparity[source]
    front = np.zeros(height * width)
    np.maximum.at(front, target, near)
    seen = np.flatnonzero(near >= front[target] - TOLERANCE)
    target, weight, source = target[seen], weight[seen], source[seen]
    size = height * width
    mass = np.bincount(target, weight, size)
    filled = mass > 1e-6
    safe = np.where(filled, mass, 1.0)
    image = np.stack(
        [np.bincount(target, weight * colours[source, c], size) / safe for c in range(3)], axis=1
    )
    image = image.reshape(height, width, 3)
    if not filled.all():
        fill_holes(image, front.reshape(height, width), filled.reshape(height, width))
    return image


def fill_holes(image: np.ndarray, disparity: np.ndarray, filled: np.ndarray) -> None:
    """Fill holes in place from the farther side of the narrowest gap.

    Each hole looks left and right, and up and down, for the nearest filled pixels. Of the two gaps
    that are closed on both sides the narrower is taken, and of its sides the one with the smaller
    disparity (what a moving camera uncovers is background). A hole that touches the border takes
    the nearest filled pixel.

    Args:
        image: float64 [H, W, 3].
        disparity: float64 [H, W].
        filled: bool [H, W].
    """
    if not filled.any():
        return
    height, width = filled.shape
    row, column = np.nonzero(~filled)
    columns, rows = np.arange(width), np.arange(height)[:, None]
    far = 4 * (height + width)
    left = np.maximum.accumulate(np.where(filled, columns, -far), axis=1)
    right = np.minimum.accumulate(np.where(filled, columns, far)[:, ::-1], axis=1)[:, ::-1]
    up = np.maximum.accumulate(np.where(filled, rows, -far), axis=0)
    down = np.minimum.accumulate(np.where(filled, rows, far)[::-1], axis=0)[::-1]
    left, right, up, down = (side[row, column] for side in (left, right, up, down))

    def disparity_at(r, c):
        known = (r >= 0) & (r < height) & (c >= 0) & (c < width)
        return np.where(known, disparity[np.clip(r, 0, height - 1), np.clip(c, 0, width - 1)], -1.0)

    gaps = np.stack([right - left, down - up])
    level = gaps[0] <= gaps[1]
    first_row, first_column = np.where(level, row, up), np.where(level, left, column)
    last_row, last_column = np.where(level, row, down), np.where(level, right, column)
    farther = disparity_at(first_row, first_column) <= disparity_at(last_row, last_column)
    source_row = np.where(farther, first_row, last_row)
    source_column = np.where(farther, first_column, last_column)

    open_ = gaps.min(0) > far // 2
    if open_.any():
        distance = np.stack([column - left, right - column, row - up, down - row])
        side = distance.argmin(0)
        source_row = np.where(open_, np.choose(side, [row, row, up, down]), source_row)
        source_column = np.where(
            open_, np.choose(side, [left, right, column, column]), source_column
        )
        lost = open_ & (distance.min(0) > far // 2)
        if lost.any():
            from scipy.ndimage import distance_transform_edt

            near = distance_transform_edt(~filled, return_distances=False, return_indices=True)
            source_row = np.where(lost, near[0][row, column], source_row)
            source_column = np.where(lost, near[1][row, column], source_column)
    image[row, column] = image[source_row, source_column]
