"""3D common corruptions of photographs and renders (Kar, Yeo, Atanov, Zamir, CVPR 2022).

Written anew from the paper's formulas. The twelve types of ImageNet-3DCC, and
``flash_geometric``, which computes the shading that ``flash`` needs from the depth map. Types that
need a whole scene are in :mod:`certbench.corruptions.three_d_scene`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from certbench.corruptions import three_d_motion, three_d_optics, three_d_sensor
from certbench.corruptions.three_d_depth import prepared
from certbench.errors import CertbenchError, did_you_mean

FAMILIES = {
    "depth of field": ("near_focus", "far_focus"),
    "weather": ("fog_3d",),
    "camera motion": ("xy_motion_blur", "z_motion_blur"),
    "lighting": ("flash", "flash_geometric"),
    "video": ("h265_crf", "h265_abr", "bit_error"),
    "noise": ("low_light", "iso_noise", "color_quant"),
}
"""Corruptions of images by family."""

IMAGENET_3DCC = (
    "near_focus",
    "far_focus",
    "fog_3d",
    "flash",
    "color_quant",
    "low_light",
    "xy_motion_blur",
    "z_motion_blur",
    "iso_noise",
    "bit_error",
    "h265_abr",
    "h265_crf",
)
"""The twelve released types."""

CORRUPTIONS = tuple(name for family in FAMILIES.values() for name in family)
NEEDS_DEPTH = frozenset(CORRUPTIONS) - {"flash", "low_light", "iso_noise", "color_quant"}
STOCHASTIC = frozenset(
    {"xy_motion_blur", "z_motion_blur", "low_light", "iso_noise", *FAMILIES["video"]}
)
SEVERITIES = (1, 2, 3, 4, 5)

_ROUNDING = 1e-4
"""Added to means of frames before truncation: the mean of equal levels is that level."""


def corrupt_3d(
    image: np.ndarray,
    depth: np.ndarray | None,
    corruption: str,
    severity: int,
    seed: int,
    *,
    reshading: np.ndarray | None = None,
    focal: float | None = None,
    half_distance: float = three_d_optics.HALF_DISTANCE,
    radius_width: int | None = None,
    max_radius: float | None = None,
) -> np.ndarray:
    """Corrupt one image.

    Args:
        image: uint8 [H, W, 3].
        depth: Relative z-depth, float [H, W], mostly in [0.02, 1] (see
            :mod:`certbench.corruptions.three_d_depth`); None for types that need none.
        corruption: One of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        seed: Integer >= 0 of this image; equal seeds give equal bytes, and severities share the
            draw.
        reshading: For ``flash``: share of a camera light that each pixel returns, float [H, W] in
            [0, 1].
        focal: For ``flash_geometric``: focal length in pixels; the image's width if None.
        half_distance: For ``flash_geometric``: relative depth at which the light has halved.
        radius_width: For the focus types: image width in pixels that their blur radii refer to
            (512 makes them proportional to the image); None takes them as pixels, as released.
        max_radius: For the focus types: largest blur radius in pixels.

    Returns:
        uint8 [H, W, 3].

    Raises:
        CertbenchError: Unknown type or severity, wrong image, missing or unusable depth, or a video
            type without PyAV.
    """
    check(corruption, severity, seed)
    return corrupt_3d_severities(
        image,
        depth,
        corruption,
        seed,
        (severity,),
        reshading=reshading,
        focal=focal,
        half_distance=half_distance,
        radius_width=radius_width,
        max_radius=max_radius,
    )[0]


def corrupt_3d_severities(
    image: np.ndarray,
    depth: np.ndarray | None,
    corruption: str,
    seed: int,
    severities: Sequence[int] = SEVERITIES,
    *,
    reshading: np.ndarray | None = None,
    focal: float | None = None,
    half_distance: float = three_d_optics.HALF_DISTANCE,
    radius_width: int | None = None,
    max_radius: float | None = None,
) -> list[np.ndarray]:
    """Corrupt one image at several severities in one pass (motion and video share their frames).

    Args:
        image: As in :func:`corrupt_3d`, as are the others.
        depth: Relative z-depth.
        corruption: One of :data:`CORRUPTIONS`.
        seed: Integer >= 0 of this image.
        severities: Ascending severities.
        reshading: For ``flash``.
        focal: For ``flash_geometric``.
        half_distance: For ``flash_geometric``.
        radius_width: For the focus types.
        max_radius: For the focus types.

    Returns:
        One uint8 [H, W, 3] for each severity, equal to :func:`corrupt_3d`'s.
    """
    for severity in severities:
        check(corruption, severity, seed)
    image = _checked(image, corruption)
    height, width = image.shape[:2]
    if corruption == "color_quant":
        return [three_d_sensor.color_quant(image, s) for s in severities]
    if corruption in ("iso_noise", "low_light"):
        noisy = getattr(three_d_sensor, corruption)
        return [_levels(noisy(image, s, generator(seed, corruption))) for s in severities]
    x = image.astype(np.float32) / np.float32(255)
    if corruption == "flash":
        if reshading is None:
            raise CertbenchError(
                "'flash' needs a reshading image",
                where="3D corruptions",
                remedy="pass reshading, or use 'flash_geometric', which needs only depth",
            )
        if np.shape(reshading) != (height, width):
            raise CertbenchError(
                f"the reshading is {np.shape(reshading)}, the image {(height, width)}",
                where="3D corruptions: flash",
            )
        return [_levels(three_d_optics.flash(x, reshading, s)) for s in severities]

    z = prepared(depth, (height, width), corruption)
    if corruption in ("xy_motion_blur", "z_motion_blur"):
        kind = corruption.split("_")[0]
        motion = three_d_motion.draw_motion(kind, generator(seed, corruption))
        table = three_d_motion.XY_FRAMES if kind == "xy" else three_d_motion.Z_FRAMES
        counts = [table[s - 1] for s in severities]
        means = three_d_motion.motion_blur(image, z, motion, sorted(set(counts)))
        by_count = dict(zip(sorted(set(counts)), means, strict=True))
        return [(by_count[count] + _ROUNDING).astype(np.uint8) for count in counts]
    if corruption in FAMILIES["video"]:
        from certbench.corruptions.three_d_video import video_compression

        # One stream for the family: its three types damage the same clip.
        return video_compression(image, z, corruption, severities, generator(seed, "video"))

    if corruption == "fog_3d":
        return [_levels(three_d_optics.fog_3d(x, z, s)) for s in severities]
    if corruption == "flash_geometric":
        returned = three_d_optics.reshading_from_depth(z, focal or width, half_distance)
        return [_levels(three_d_optics.flash(x, returned, s)) for s in severities]
    scale = 1.0 if radius_width is None else width / radius_width
    near = corruption == "near_focus"
    return [
        _levels(three_d_optics.depth_of_field(x, z, near, s, scale, max_radius)) for s in severities
    ]


def check(corruption: str, severity: int, seed: int, known: Sequence[str] = CORRUPTIONS) -> None:
    """Refuse an unknown corruption, a severity outside 1..5, or a bad seed.

    Raises:
        CertbenchError: With the nearest spelling or the range.
    """
    if corruption not in known:
        raise CertbenchError(
            f"unknown corruption '{corruption}'",
            where="3D corruptions",
            remedy=did_you_mean(corruption, known),
        )
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise CertbenchError(
            f"severity is {severity!r}",
            where=f"3D corruptions: {corruption}",
            remedy="expected 1, 2, 3, 4 or 5",
        )
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise CertbenchError(
            f"seed is {seed!r}",
            where=f"3D corruptions: {corruption}",
            remedy="expected an integer >= 0",
        )


def item_seed(seed: int, dataset: str, item_id: str, corruption: str) -> int:
    """Seed of one item's corruption: the same for all severities, so that curves are paired.

    Args:
        seed: Run seed.
        dataset: Id of the dataset.
        item_id: Name of the item.
        corruption: Type.
    """
    text = f"{seed}|{dataset}|{item_id}|{corruption}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, stream: str) -> np.random.Generator:
    """The random generator of one image for one purpose."""
    word = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((int(seed), word))))


def _checked(image: np.ndarray, corruption: str) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise CertbenchError(
            f"the image is {image.dtype} {image.shape}",
            where=f"3D corruptions: {corruption}",
            remedy="expected uint8 [height, width, 3]",
        )
    return image


def _levels(x: np.ndarray) -> np.ndarray:
    """8-bit levels of values in [0, 1]: clipped, times 255, truncated."""
    return (np.clip(x, 0, 1) * x.dtype.type(255)).astype(np.uint8)
