"""The same scenes in another weather or at another time of day, as a variant step.

Scenes are rendered again from the same camera: every label map stays true, so a model that has
learned in clear weather meets the very streets it knows, by night.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from certbench.datasets.streets_classes import CONDITIONS
from certbench.params import param

if TYPE_CHECKING:
    import numpy as np

    from certbench.variants.protocol import Source

version = 1

needs = ("source",)

replaces = True


@dataclass(frozen=True)
class Params:
    """Which condition."""

    condition: str = param(help="weather or time of day of every scene", choices=tuple(CONDITIONS))


def slug(params: Params) -> str:
    """A readable name."""
    return f"{params.condition}-condition"


def requires(params: Params) -> tuple[str, ...]:
    """What the dataset must offer."""
    return ("read_scenes",)


def spoils(params: Params) -> tuple[str, ...]:
    """Tasks whose labels become untrue: the class of a scene is its condition."""
    return ("classification",)


def apply(
    params: Params,
    images: np.ndarray,
    item_ids: list[str],
    seed: int,
    dataset: str,
    *,
    source: Source,
) -> np.ndarray:
    """The scene of every item in the condition, under the view: uint8 [N, H, W, 3]."""
    import numpy as np
    from PIL import Image

    from certbench.datasets.streets_scene import render_description

    made = np.empty(images.shape, np.uint8)
    found = source.module.read_scenes(source.params, source.rows)
    for i, (description, camera, _) in enumerate(found):
        scene = render_description(description, camera, params.condition)
        made[i] = source.view.apply(Image.fromarray(scene.rgb))
    return made
