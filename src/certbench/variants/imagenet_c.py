"""The published ImageNet-C files as a variant step (Hendrycks and Dietterich, ICLR 2019).

The file of an item takes the place of its image, JPEG artefacts included; the view must be the one
the files were made with, ``resize256_crop224``. Type ``elastic_transform`` of these files has an
affine part: computed anew it is ``elastic_transform_imagenet_c``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from certbench.corruptions.severity import BENCHMARK_15, EXTRA_4, GROUPS
from certbench.params import param

if TYPE_CHECKING:
    import numpy as np

    from certbench.variants.protocol import Source

version = 1

needs = ("source",)

replaces = True


@dataclass(frozen=True)
class Params:
    """Where the files are, and which."""

    root: str = param(
        help="folder with <type>/<severity>/<WordNet id>/<file>.JPEG (below the archives' group "
        "folders, if they were kept)"
    )
    corruption: str = param(help="type of corruption", choices=(*BENCHMARK_15, *EXTRA_4))
    severity: int = param(help="strength", minimum=1, maximum=5)


def slug(params: Params) -> str:
    """A readable name."""
    return f"{params.corruption}-{params.severity}-imagenet_c"


def check(params: Params, source: Source) -> None:
    """Refuse missing files, other classes and other sizes before any model is loaded.

    Raises:
        CertbenchError: See :mod:`certbench.variants.published`.
    """
    from certbench.variants import published

    place = published.folder(params.root, params.corruption, params.severity, tuple(GROUPS))
    published.check(place, source)


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

    place = published.folder(params.root, params.corruption, params.severity, tuple(GROUPS))
    return published.images(published.files(place, source), images.shape[1:])
