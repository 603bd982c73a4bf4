"""Common 2D corruptions as a variant step (Hendrycks and Dietterich, ICLR 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from certbench.corruptions.severity import NAMES, SEVERITY_TABLES
from certbench.params import param

if TYPE_CHECKING:
    import numpy as np

version = 1

needs_uint8 = True


@dataclass(frozen=True)
class Params:
    """Which corruption, how strong, and tuned for which image size."""

    corruption: str = param(help="type of corruption", choices=tuple(NAMES))
    severity: int = param(help="strength", minimum=1, maximum=5)
    severity_table: str = param(
        help="parameters tuned for an image size; never guessed", choices=tuple(SEVERITY_TABLES)
    )


def slug(params: Params) -> str:
    """A readable name."""
    return f"{params.corruption}-{params.severity}-{params.severity_table}"


def apply(
    params: Params, images: np.ndarray, item_ids: list[str], seed: int, dataset: str
) -> np.ndarray:
    """Corrupt uint8 images [N, H, W, 3]; the randomness of each belongs to its id."""
    from certbench.corruptions import corrupt_batch

    return corrupt_batch(
        images, item_ids, params.corruption, params.severity, params.severity_table, seed, dataset
    )
