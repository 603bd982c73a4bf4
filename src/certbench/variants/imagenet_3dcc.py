"""The published ImageNet-3DCC files as a variant step (Kar, Yeo, Atanov, Zamir, CVPR 2022).

The file of an item takes the place of its image. The files come under CC BY-NC 4.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from certbench.params import param

if TYPE_CHECKING:
    import numpy as np

    from certbench.variants.protocol import Source

version = 1

needs = ("source",)

replaces = True

# Written out, because planning reads this module and the corruptions need numpy; a test compares.
TYPES = (
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


@dataclass(frozen=True)
class Params:
    """Where the files are, and which."""

    root: str = param(help="folder with <type>/<severity>/<WordNet id>/<file>.JPEG")
    corruption: str = param(help="type of corruption", choices=TYPES)
    severity: int = param(help="strength", minimum=1, maximum=5)


def slug(params: Params) -> str:
    """A readable name."""
    return f"{params.corruption}-{params.severity}-imagenet_3dcc"


def check(params: Params, source: Source) -> None:
    """Refuse missing files, other classes and other sizes before any model is loaded.

    Raises:
        CertbenchError: See :mod:`certbench.variants.published`.
    """
    from certbench.variants import published

    published.check(published.folder(params.root, params.corruption, params.severity), source)


def apply(
    params: Params,
    images: np.ndarray,
    item_ids: list[str],
    seed: int,
    dataset: str,
    *,
    source: Source,
) -> np.ndarray:
    """The published image of every item: uint8 [N, H, W, 3], of the view's size.

    Raises:
        CertbenchError: A file is missing, broken, of another class or another size.
    """
    from certbench.variants import published

    place = published.folder(params.root, params.corruption, params.severity)
    return published.images(published.files(place, source), images.shape[1:])
