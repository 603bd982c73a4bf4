"""*streets*: rendered driving scenes, labelled with the weather or the time of day.

Synthetic, deterministic by seed, nothing to download. The renderer also knows the class of every
pixel, true depth and instances (:mod:`certbench.datasets.streets_scene`); this plug-in serves whole
images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certbench.datasets import images
from certbench.datasets.card import Card
from certbench.params import param

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from PIL import Image

    from certbench.datasets.streets_camera import Camera
    from certbench.datasets.streets_layout import SceneDescription

version = 1

# Scenes of different splits never share a seed.
_SPLITS = {"train": 0, "calibration": 1, "val": 2, "test": 3}
_SPLIT_SEEDS = 10_000_000


@dataclass(frozen=True)
class Params:
    """How many scenes, and how large."""

    height: int = param(64, help="image height", unit="pixels", minimum=32, maximum=512)
    width: int = param(128, help="image width", unit="pixels", minimum=32, maximum=1024)
    train: int = param(1000, help="scenes of split train", minimum=5)
    calibration: int = param(100, help="scenes of split calibration", minimum=5)
    val: int = param(100, help="scenes of split val", minimum=5)
    test: int = param(500, help="scenes of split test", minimum=5)
    scene_seed: int = param(0, help="first scene", minimum=0, maximum=1_000)


def splits(params: Params) -> dict[str, int | None]:
    """Number of scenes of each split."""
    return {name: getattr(params, name) for name in _SPLITS}


def prepare(
    params: Params, splits: Sequence[str], seed: int, tick: Callable[[int, int], None]
) -> tuple[pa.Table, Card]:
    """Render the scenes of some splits; each scene is shown in one condition, its label."""
    from certbench.datasets import index
    from certbench.datasets.streets_classes import CONDITIONS

    wanted = [(split, i) for split in splits for i in range(getattr(params, split))]
    encoded = []
    for done, (split, i) in enumerate(wanted, start=1):
        encoded.append(_png(params, split, i, CONDITIONS[i % len(CONDITIONS)]))
        tick(done, len(wanted))
    items = index.table(
        item_id=[f"{split}/{i:06d}" for split, i in wanted],
        item_index=[i for _, i in wanted],
        split=[split for split, _ in wanted],
        label=[i % len(CONDITIONS) for _, i in wanted],
        image=encoded,
    )
    return items, CARD


def read(params: Params, rows: pa.Table) -> list[Image.Image]:
    """Decode the scenes of index rows, in order."""
    return images.decode_rows(rows)


def read_scenes(params: Params, rows: pa.Table) -> list[tuple[SceneDescription, Camera, str]]:
    """The scene of each index row: its description, its camera, and the condition shown."""
    from certbench.datasets.streets_classes import CONDITIONS
    from certbench.datasets.streets_layout import describe

    found = []
    for item_id in rows.column("item_id").to_pylist():
        split, place = item_id.split("/")
        scene = describe(_scene_number(params, split, int(place)))
        condition = CONDITIONS[int(place) % len(CONDITIONS)]
        found.append((scene, scene.camera(params.height, params.width), condition))
    return found


def read_depth(params: Params, rows: pa.Table) -> list[np.ndarray]:
    """True depth of the scenes of index rows: relative z-depth, float32 [height, width] each."""
    from certbench.corruptions.three_d_depth import from_metres
    from certbench.datasets.streets_raster import look_at

    return [
        from_metres(look_at(scene.primitives, camera).depth)
        for scene, camera, _ in read_scenes(params, rows)
    ]


def _png(params: Params, split: str, i: int, condition: str) -> bytes:
    import io

    from PIL import Image

    from certbench.datasets.streets_scene import render

    scene = render(_scene_number(params, split, i), params.height, params.width, condition)
    stream = io.BytesIO()
    Image.fromarray(scene.rgb).save(stream, format="PNG")
    return stream.getvalue()


def _scene_number(params: Params, split: str, i: int) -> int:
    return (params.scene_seed * len(_SPLITS) + _SPLITS[split]) * _SPLIT_SEEDS + i


CARD = Card(
    title="streets (rendered driving scenes)",
    source="rendered by certbench, certbench.datasets.streets_scene",
    licence="MIT (as the project)",
    redistributable=True,
    synthetic=True,
    class_names=("clear", "fog", "night", "rain", "snow"),
    note="Synthetic: rendered scenes, not photographs. The label is the weather or time of day.",
)
