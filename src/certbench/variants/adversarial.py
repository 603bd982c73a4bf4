"""Adversarial images of an attack as a variant step, so that anything runs on them.

The step names the model, defence and attack they were made against. It takes the place of the
clean images and so comes first; other steps (a corruption, say) may follow. Images are kept
losslessly (float32), because rounding to levels can undo an attack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from certbench.errors import CertbenchError
from certbench.params import param

if TYPE_CHECKING:
    import numpy as np

version = 1

# Planning adds the files of the attack to every job that makes the variant's images.
needs = ("item_index", "attack_images")

replaces = True


@dataclass(frozen=True)
class Params:
    """Whose adversarial images."""

    model: str = param(help="id of the attacked model")
    attack: str = param(help="id of the attack")
    defense: str = param("none", help="id of the attacked defence")


def slug(params: Params) -> str:
    """A readable name."""
    return f"adv-{params.model}-{params.defense}-{params.attack}"


def apply(
    params: Params,
    images: np.ndarray,
    item_ids: list[str],
    seed: int,
    dataset: str,
    *,
    item_index: np.ndarray,
    attack_images: Sequence[Path],
) -> np.ndarray:
    """The adversarial image of every item: float32 [N, H, W, 3] in [0, 1].

    Args:
        params: Whose images.
        images: The clean images; their shape is checked.
        item_ids: Names, for messages.
        seed: Not used.
        dataset: Not used.
        item_index: uint32 [N], the items.
        attack_images: The attack's image files (``x_adv`` float32 [M, 3, H, W], ``item_index``).

    Raises:
        CertbenchError: An item was not attacked.
    """
    import numpy as np

    made = np.empty(images.shape, np.float32)
    missing = {int(item): row for row, item in enumerate(item_index)}
    for path in attack_images:
        with np.load(path, allow_pickle=False) as archive:
            known = archive["item_index"]
            rows = [(at, missing[int(i)]) for at, i in enumerate(known) if int(i) in missing]
            if not rows:
                continue
            adversarial = archive["x_adv"]
            for at, row in rows:
                made[row] = adversarial[at].transpose(1, 2, 0)
                del missing[int(known[at])]
    if missing:
        row = next(iter(missing.values()))
        raise CertbenchError(
            f"item '{item_ids[row]}' was not attacked by '{params.attack}'",
            where=f"variant step adversarial ({params.model}, {params.defense})",
            remedy="use the same items for the attack and for its variant",
        )
    return made
