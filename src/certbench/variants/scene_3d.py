"""3D corruptions of whole scenes as a variant step: the camera, things and light are changed.

The dataset's scenes are rendered again (Kar et al., CVPR 2022, families view changes, semantics and
lighting; the parameters of types named ``*_streets`` are this project's). Label maps follow what
moves. Corruptions of the image alone, fog for example, are steps of type ``corruption_3d``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certbench.datasets.streets_classes import CONDITIONS
from certbench.params import param

if TYPE_CHECKING:
    import numpy as np

    from certbench.datasets.streets_scene import Scene
    from certbench.variants.protocol import Source

version = 1

needs = ("source",)

replaces = True

# Written out, because planning reads this module and the corruptions need numpy; a test compares.
MOVING = (
    "field_of_view_streets",
    "camera_roll_streets",
    "camera_pitch_streets",
    "view_jitter_streets",
    "occlusion_streets",
    "scale_streets",
)
LIGHTING = ("shadow", "multi_illumination", "flash")


@dataclass(frozen=True)
class Params:
    """What is changed, how strongly, and in which weather."""

    corruption: str = param(help="type of corruption", choices=(*MOVING, *LIGHTING))
    severity: int = param(help="strength", minimum=1, maximum=5)
    condition: str | None = param(
        None,
        help="weather or time of day of every scene; null: each scene's own",
        choices=tuple(CONDITIONS),
    )


def slug(params: Params) -> str:
    """A readable name."""
    shown = "scene" if params.condition is None else f"scene_{params.condition}"
    return f"{params.corruption}-{params.severity}-{shown}"


def requires(params: Params) -> tuple[str, ...]:
    """What the dataset must offer."""
    return ("read_scenes",)


def spoils(params: Params) -> tuple[str, ...]:
    """Tasks whose labels become untrue: the class of a scene is its condition."""
    return () if params.condition is None else ("classification",)


def apply(
    params: Params,
    images: np.ndarray,
    item_ids: list[str],
    seed: int,
    dataset: str,
    *,
    source: Source,
) -> np.ndarray:
    """The changed scene of every item under the view: uint8 [N, H, W, 3].

    The randomness of each belongs to its id; severities share it.
    """
    import numpy as np
    from PIL import Image

    made = np.empty(images.shape, np.uint8)
    for i, scene in enumerate(_scenes(params, item_ids, seed, dataset, source)):
        made[i] = source.view.apply(Image.fromarray(scene.rgb))
    return made


def label_maps(
    params: Params,
    maps: np.ndarray,
    item_ids: list[str],
    seed: int,
    dataset: str,
    *,
    source: Source,
) -> np.ndarray:
    """The label of each pixel of the changed scenes under the view: uint8 [N, H, W].

    Args:
        params: As for :func:`apply`, as are the others.
        maps: Label maps of the unchanged scenes; changes of light leave them.
        item_ids: Names of the items.
        seed: Run seed.
        dataset: Id of the dataset.
        source: The dataset.
    """
    import numpy as np

    if params.corruption in LIGHTING:
        return maps
    scenes = _scenes(params, item_ids, seed, dataset, source)
    return np.stack([source.view.nearest(scene.labels) for scene in scenes]) if item_ids else maps


def _scenes(
    params: Params, item_ids: list[str], seed: int, dataset: str, source: Source
) -> Iterator[Scene]:
    from certbench.corruptions.three_d import item_seed
    from certbench.corruptions.three_d_scene import corrupt_scene

    found = source.module.read_scenes(source.params, source.rows)
    for item_id, (description, camera, own) in zip(item_ids, found, strict=True):
        yield corrupt_scene(
            description,
            camera,
            params.corruption,
            params.severity,
            item_seed(seed, dataset, item_id, params.corruption),
            params.condition or own,
        )
