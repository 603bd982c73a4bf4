"""Depth maps for the 3D corruptions: units, invalid pixels, reading.

The corruptions use *relative z-depth*: a number for each pixel, mostly in [0.02, 1], that grows
with the distance from the image plane. Depth maps from sensors and networks come in other units;
the functions here convert them and mark what is unknown as NaN.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from certbench.errors import CertbenchError

NEAREST = 0.02
"""Smallest relative depth; smaller values are raised to it."""

MOST_INVALID = 0.5
"""Largest share of invalid pixels that filling may hide."""

STREETS_FULL_SCALE_M = 150.0
"""Depth in metres that counts as 1 in the rendered street scenes."""


def from_metres(depth: np.ndarray, full_scale: float = STREETS_FULL_SCALE_M) -> np.ndarray:
    """Relative depth of metric z-depth; infinity (sky) is as far as ``full_scale``.

    Args:
        depth: Metres, float [H, W].
        full_scale: Metres that count as 1; what is farther counts as 1 too.

    Returns:
        float32 [H, W], NaN where the depth is NaN or not positive.
    """
    depth = np.asarray(depth, dtype=np.float32)
    relative = np.minimum(depth / np.float32(full_scale), np.float32(1))
    return np.where(depth > 0, relative, np.float32(np.nan))


def from_sixteen_bit(raw: np.ndarray) -> np.ndarray:
    """Relative depth of 16-bit sensor depth in units of 1/512 m, as in Taskonomy: raw / 8000.

    Args:
        raw: uint16 [H, W]; 0 and 65535 mean unknown.

    Returns:
        float32 [H, W] below 1: larger values become the largest value below 1; NaN where unknown.

    Raises:
        CertbenchError: Not uint16 (a signed copy has already lost the far values).
    """
    raw = np.asarray(raw)
    if raw.dtype != np.uint16:
        raise CertbenchError(
            f"16-bit depth has type {raw.dtype}",
            where="depth map",
            remedy="read it with certbench.corruptions.three_d_depth.read_depth, as uint16",
        )
    depth = raw.astype(np.float32) / 8000
    known = (raw > 0) & (raw < 65535)
    below = depth[known & (depth < 1)]
    ceiling = below.max() if below.size else np.nextafter(np.float32(1), np.float32(0))
    return np.where(known, np.minimum(depth, ceiling), np.float32(np.nan)).astype(np.float32)


def from_inverse(inverse: np.ndarray) -> np.ndarray:
    """Relative depth of a predicted inverse depth (MiDaS, DPT): clamp(1 / (d/512 + 1e-6), 0, 0.5).

    Args:
        inverse: Non-negative prediction, float [H, W].

    Returns:
        float32 [H, W], NaN where the prediction is NaN or negative.
    """
    inverse = np.asarray(inverse, dtype=np.float32)
    known = inverse >= 0
    safe = np.where(known, inverse, np.float32(0))
    depth = np.clip(1 / (safe / 512 + np.float32(1e-6)), 0, 0.5)
    return np.where(known, depth, np.float32(np.nan)).astype(np.float32)


def read_depth(path: str | Path) -> np.ndarray:
    """Read a 16-bit depth PNG without losing values above 32767.

    Args:
        path: A one-channel PNG.

    Returns:
        uint16 [H, W].

    Raises:
        CertbenchError: Missing file, or not a one-channel 16-bit image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode, values = image.mode, np.asarray(image)
    except (FileNotFoundError, OSError) as error:
        raise CertbenchError(f"cannot be read as a depth map ({error})", where=str(path)) from error
    if not mode.startswith("I") or values.ndim != 2:
        raise CertbenchError(
            f"is an image of mode {mode}, not 16-bit depth",
            where=str(path),
            remedy="store depth as a one-channel 16-bit PNG",
        )
    # Some Pillow versions widen to 32 bits; none may narrow to a signed type unnoticed.
    wide = values.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise CertbenchError("has values outside 0..65535", where=str(path))
    return wide.astype(np.uint16)


def invalid_share(depth: np.ndarray) -> float:
    """Share of pixels whose relative depth is NaN, infinite, zero or negative."""
    depth = np.asarray(depth)
    return float(1 - (np.isfinite(depth) & (depth > 0)).mean())


def prepared(depth: np.ndarray | None, shape: tuple[int, int], corruption: str) -> np.ndarray:
    """Relative depth fit for use: invalid pixels take the nearest valid one's, none below 0.02.

    Args:
        depth: Relative depth, float [H, W], or None.
        shape: Height and width of the image.
        corruption: For messages.

    Returns:
        float32 [H, W], finite.

    Raises:
        CertbenchError: No depth, another shape, or more than half of it invalid.
    """
    if depth is None:
        raise CertbenchError(
            f"'{corruption}' needs a depth map",
            where="3D corruptions",
            remedy="pass relative depth, or use a corruption that needs none",
        )
    depth = np.asarray(depth)
    if depth.shape != shape:
        raise CertbenchError(
            f"the depth map is {depth.shape}, the image {shape}",
            where=f"3D corruptions: {corruption}",
            remedy="resize the depth map as the image (nearest neighbour)",
        )
    if depth.dtype.kind != "f":
        raise CertbenchError(
            f"the depth map has type {depth.dtype}",
            where=f"3D corruptions: {corruption}",
            remedy="convert it first, for example with three_d_depth.from_sixteen_bit",
        )
    valid = np.isfinite(depth) & (depth > 0)
    share = 1 - valid.mean()
    if share > MOST_INVALID:
        raise CertbenchError(
            f"{share:.0%} of the depth map is invalid",
            where=f"3D corruptions: {corruption}",
            remedy="infinite depth (sky) must be given a finite value first, see from_metres",
        )
    if share > 0:
        from scipy.ndimage import distance_transform_edt

        nearest = distance_transform_edt(~valid, return_distances=False, return_indices=True)
        depth = depth[tuple(nearest)]
    return np.maximum(depth, NEAREST).astype(np.float32)
