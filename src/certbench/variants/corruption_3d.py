"""3D common corruptions as a variant step (Kar et al., CVPR 2022).

Types that need depth read one 16-bit depth image per item from ``depth_root``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certbench.errors import CertbenchError
from certbench.params import param

if TYPE_CHECKING:
    import numpy as np

version = 1

needs_uint8 = True

# Written out, because planning reads this module and the corruptions need numpy; a test compares.
WITHOUT_DEPTH = ("flash", "low_light", "iso_noise", "color_quant")
WITH_DEPTH = (
    "near_focus",
    "far_focus",
    "fog_3d",
    "xy_motion_blur",
    "z_motion_blur",
    "flash_geometric",
    "h265_crf",
    "h265_abr",
    "bit_error",
)


@dataclass(frozen=True)
class Params:
    """Which corruption, how strong, and where the depth lies."""

    corruption: str = param(
        help="type of corruption",
        choices=tuple(n for n in (*WITHOUT_DEPTH, *WITH_DEPTH) if n != "flash"),
    )
    severity: int = param(help="strength", minimum=1, maximum=5)
    depth_root: str | None = param(
        None,
        help="folder with a 16-bit depth PNG (1/512 m) per item, <item id without suffix>.png",
    )

    def __post_init__(self) -> None:
        if self.corruption in WITH_DEPTH and self.depth_root is None:
            raise CertbenchError(
                f"is required: '{self.corruption}' needs depth",
                where="depth_root",
                remedy=f"name the folder of depth images, or use {', '.join(WITHOUT_DEPTH[1:])}",
            )


def slug(params: Params) -> str:
    """A readable name."""
    return f"{params.corruption}-{params.severity}-3d"


def apply(
    params: Params, images: np.ndarray, item_ids: list[str], seed: int, dataset: str
) -> np.ndarray:
    """Corrupt uint8 images [N, H, W, 3]; the randomness of each belongs to its id.

    Severities share an item's draw, so that curves over severity are paired.

    Raises:
        CertbenchError: A depth image is missing or of another size.
    """
    import numpy as np

    from certbench.corruptions.three_d import corrupt_3d

    made = np.empty_like(images)
    for i, (image, item_id) in enumerate(zip(images, item_ids, strict=True)):
        text = f"{seed}|{dataset}|{item_id}|{params.corruption}"
        own = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
        depth = None
        if params.depth_root is not None and params.corruption in WITH_DEPTH:
            depth = _depth(params.depth_root, item_id)
        made[i] = corrupt_3d(image, depth, params.corruption, params.severity, own)
    return made


def _depth(root: str, item_id: str) -> np.ndarray:
    from pathlib import Path

    from certbench.corruptions import three_d_depth

    path = (Path(root) / item_id).with_suffix(".png")
    return three_d_depth.from_sixteen_bit(three_d_depth.read_depth(path))
