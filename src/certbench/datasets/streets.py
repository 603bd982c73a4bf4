"""*streets*: rendered driving scenes with the weather or the time of day, and label maps.

Synthetic, deterministic by seed, nothing to download. The label of an image is its condition; its
label map holds the class of every pixel and does not depend on the condition. The renderer also
knows true depth and instances (:mod:`certbench.datasets.streets_scene`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certbench.datasets import images, masks
from certbench.datasets.card import Card
from certbench.datasets.streets_classes import CLASSES, CONDITIONS, PALETTE
from certbench.params import param

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from PIL import Image

    from certbench.datasets.streets_camera import Camera
    from certbench.datasets.streets_layout import SceneDescription

version = 2

# Scenes of different splits never share a seed.
_SPLITS = {"train": 0, "calibration": 1, "val": 2, "test": 3}
_SPLIT_SEEDS = 10_000_000


@dataclass(frozen=True)
class Params:
    """How many scenes, how large, and in which weather."""

    height: int = param(64, help="image height", unit="pixels", minimum=32, maximum=512)
    width: int = param(128, help="image width", unit="pixels", minimum=32, maximum=1024)
    train: int = param(1000, help="scenes of split train", minimum=5)
    calibration: int = param(100, help="scenes of split calibration", minimum=5)
    val: int = param(100, help="scenes of split val", minimum=5)
    test: int = param(500, help="scenes of split test", minimum=5)
    scene_seed: int = param(0, help="first scene", minimum=0, maximum=1_000)
    condition: str = param(
        "mixed",
        help="weather or time of day of every scene; mixed shows each scene in one of the five",
        choices=("mixed", *CONDITIONS),
    )


def splits(params: Params) -> dict[str, int | None]:
    """Number of scenes of each split."""
    return {name: getattr(params, name) for name in _SPLITS}


def prepare(
    params: Params, splits: Sequence[str], seed: int, tick: Callable[[int, int], None]
) -> tuple[pa.Table, Card]:
    """Render the scenes of some splits, each in one condition, its label.

    Scenes do not depend on the condition: the same item of two conditions is the same street.
    Label maps are kept as PNG files of about 0.7 kB beside images of 15 kB (64 x 128); rendering
    one again takes 250 times as long as decoding it.
    """
    from certbench.datasets import index
    from certbench.datasets.streets_scene import render

    wanted = [(split, i) for split in splits for i in range(getattr(params, split))]
    shown, encoded, maps = [], [], []
    for done, (split, i) in enumerate(wanted, start=1):
        condition = _condition(params, i)
        scene = render(_scene_number(params, split, i), params.height, params.width, condition)
        shown.append(CONDITIONS.index(condition))
        encoded.append(masks.png(scene.rgb))
        maps.append(masks.png(scene.labels))
        tick(done, len(wanted))
    items = index.table(
        item_id=[f"{split}/{i:06d}" for split, i in wanted],
        item_index=[i for _, i in wanted],
        split=[split for split, _ in wanted],
        label=shown,
        image=encoded,
        mask=maps,
    )
    return items, card(params)


def read(params: Params, rows: pa.Table) -> list[Image.Image]:
    """Decode the scenes of index rows, in order."""
    return images.decode_rows(rows)


def read_masks(params: Params, rows: pa.Table) -> list[np.ndarray]:
    """Decode the label maps of index rows, in order: uint8 [H, W], every pixel labelled."""
    return masks.read_embedded(rows)


def read_scenes(params: Params, rows: pa.Table) -> list[tuple[SceneDescription, Camera, str]]:
    """The scene of each index row: its description, its camera, and the condition shown."""
    from certbench.datasets.streets_layout import describe

    found = []
    for item_id in rows.column("item_id").to_pylist():
        split, place = item_id.split("/")
        scene = describe(_scene_number(params, split, int(place)))
        camera = scene.camera(params.height, params.width)
        found.append((scene, camera, _condition(params, int(place))))
    return found


def read_depth(params: Params, rows: pa.Table) -> list[np.ndarray]:
    """True depth of the scenes of index rows: relative z-depth, float32 [height, width] each."""
    from certbench.corruptions.three_d_depth import from_metres
    from certbench.datasets.streets_raster import look_at

    return [
        from_metres(look_at(scene.primitives, camera).depth)
        for scene, camera, _ in read_scenes(params, rows)
    ]


def _scene_number(params: Params, split: str, i: int) -> int:
    return (params.scene_seed * len(_SPLITS) + _SPLITS[split]) * _SPLIT_SEEDS + i


def _condition(params: Params, i: int) -> str:
    """The condition that item ``i`` of a split is shown in."""
    return CONDITIONS[i % len(CONDITIONS)] if params.condition == "mixed" else params.condition


def card(params: Params) -> Card:
    """What a reader must know of the scenes."""
    mixed = params.condition == "mixed"
    return Card(
        title="streets (rendered driving scenes)"
        if mixed
        else f"streets, {params.condition} (rendered driving scenes)",
        source="rendered by certbench, certbench.datasets.streets_scene",
        licence="MIT (as the project)",
        redistributable=True,
        synthetic=True,
        class_names=CONDITIONS,
        mask_class_names=CLASSES,
        mask_colours=PALETTE,
        note="Synthetic: rendered scenes, not photographs. "
        + (
            "The label is the weather or time of day."
            if mixed
            else f"Every scene is shown in one condition: {params.condition}."
        ),
    )
