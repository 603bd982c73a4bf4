"""Contact sheets: one image under every corruption and severity, or scenes under every condition.

They show what the words mean: what severity 3 of fog looks like at this size. Corruptions are drawn
by the same variant steps that make the images of experiments.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.errors import CertbenchError, did_you_mean
from certbench.figures import style
from certbench.params import param

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from certbench.datasets.access import Items
    from certbench.datasets.card import Card
    from certbench.figures.data import FigureData

version = 1

needs = ("index",)

section = "gallery"

about = "Chosen before any model ran. Corruptions are those of the experiments' variants."

SEVERITIES = (1, 2, 3, 4, 5)
SYNTHETIC = "SYNTHETIC: rendered, not photographed"

# Larger images are shown smaller: a page has a size too.
_LARGEST = 128
_GAP = 0.05
_NAME = 1.08
_HEAD = 0.2
_WORDS = 0.3


@dataclass(frozen=True)
class Params:
    """What is shown."""

    dataset: str = param(help="id of a dataset that an experiment of the figure shows")
    what: str = param(
        "corruptions",
        help="corruptions: types by severities; conditions: scenes by weather, with label map and "
        "depth (datasets of rendered scenes)",
        choices=("corruptions", "conditions"),
    )
    step: str = param("corruption", help="variant step that makes the corruptions")
    options: dict = param({}, help="its other parameters, for example severity_table")
    types: tuple[str, ...] = param((), help="types of corruption shown ([] for all)")
    first: int = param(0, help="rank of the first image in the split", minimum=0)
    items: int = param(1, help="images shown", minimum=1, maximum=20)
    width: float = param(0.62, help="width of an image", unit="inches", minimum=0.3, maximum=4)
    seed: int = param(0, help="seed of the corruptions", minimum=0)


@dataclass(frozen=True)
class _Row:
    """Images beside each other; a text in their place where there are none."""

    name: str
    images: tuple[np.ndarray, ...]
    text: str = ""


def draw(data: FigureData, params: Params) -> Figure:
    """A grid of images below a line that says what they are.

    Raises:
        CertbenchError: No experiment shows the dataset, or it has no scenes to render.
    """
    selection = _selection(data, params)
    if not all(Path(path).is_file() for path in selection["index"]):
        return style.nothing("No images yet")
    items = data.items(selection)
    card = items.card
    if data.embed_images == "none" or (
        data.embed_images == "redistributable" and not card.redistributable
    ):
        return style.nothing(f"Images of {card.title} are not shown (report: embed_images)")
    stop = min(params.first + params.items, len(items))
    if params.first >= stop:
        raise CertbenchError(
            f"the split has {len(items)} items",
            where="contact_sheet: first",
            remedy=f"at most {len(items) - 1}",
        )
    if params.what == "conditions":
        return _conditions(items, params, stop)
    return _corruptions(data, selection, items, params, stop)


def _selection(data: FigureData, params: Params) -> Any:
    known = {selection["dataset"]["id"]: selection for selection in data.selections}
    if params.dataset not in known:
        raise CertbenchError(
            f"no experiment of the figure shows dataset '{params.dataset}'",
            where="contact_sheet: dataset",
            remedy=did_you_mean(params.dataset, known),
        )
    return known[params.dataset]


def _corruptions(
    data: FigureData, selection: Any, items: Items, params: Params, stop: int
) -> Figure:
    """Types below each other, severities beside each other, the clean image first."""
    module = data.plugin("variant", params.step)
    types = params.types or _types(module, params.step)
    rows, title = [], []
    refused: list[CertbenchError] = []
    for place in range(params.first, stop):
        clean, _ = data.images(selection, {"steps": []}, 1, params.seed, start=place)
        title += clean.item_ids
        rows.append(_Row("clean", (clean.images[0],)))
        for name in types:
            steps = [
                {
                    "name": params.step,
                    "params": {**params.options, "corruption": name, "severity": severity},
                }
                for severity in SEVERITIES
            ]
            try:
                made = [
                    data.images(selection, {"steps": [step]}, 1, params.seed, start=place)[
                        0
                    ].images[0]
                    for step in steps
                ]
            except CertbenchError as error:
                refused.append(error)
                rows.append(_Row(name, (), error.problem))
            else:
                rows.append(_Row(name, tuple(made)))
    if len(refused) == len(types) * (stop - params.first):
        raise refused[0]
    heads = [f"severity {s}" if s == 1 else str(s) for s in SEVERITIES]
    table = params.options.get("severity_table")
    what = f"{items.card.title}, {', '.join(title)}"
    what += f"; severities of {table}" if table else ""
    return _sheet(what, items.card, heads, rows, params.width)


def _types(module: Any, step: str) -> Sequence[str]:
    """The types that a step offers: the choices of its parameter ``corruption``."""
    for field in dataclasses.fields(module.Params):
        if field.name == "corruption" and field.metadata.get("choices"):
            return tuple(field.metadata["choices"])
    raise CertbenchError(
        f"variant step '{step}' does not say which corruptions it has",
        where="contact_sheet: step",
        remedy="name them under types",
    )


def _conditions(items: Items, params: Params, stop: int) -> Figure:
    """Scenes below each other; conditions, label map and depth beside each other."""
    from PIL import Image

    from certbench.datasets.streets_classes import CLASSES, CONDITIONS, PALETTE
    from certbench.datasets.streets_scene import render_description

    if not hasattr(items.module, "read_scenes"):
        raise CertbenchError(
            f"dataset '{params.dataset}' has no scenes to render",
            where="contact_sheet: what",
            remedy="conditions are for datasets of rendered scenes (type streets)",
        )
    table = items.rows(params.first, stop)
    rows = []
    names = table.column("item_id").to_pylist()
    for name, (scene, camera, _) in zip(
        names, items.module.read_scenes(items.params, table), strict=True
    ):
        made = [render_description(scene, camera, condition) for condition in CONDITIONS]
        images = [items.view.apply(Image.fromarray(one.rgb)) for one in made]
        labels = np.asarray(PALETTE, np.uint8)[items.view.nearest(made[0].labels)]
        depth = _depth_colours(items.view.nearest(made[0].depth))
        rows.append(_Row(name, (*images, labels, depth)))
    heads = [*CONDITIONS, "labels", "depth"]
    key = [(name, np.asarray(colour) / 255) for name, colour in zip(CLASSES, PALETTE, strict=True)]
    title = f"{items.card.title}: the same scenes in every condition"
    return _sheet(title, items.card, heads, rows, params.width, key, _NEAR_FAR)


_NEAREST, _FARTHEST = 3.0, 100.0
_NEAR_FAR = f"depth: {_NEAREST:g} m (yellow) to {_FARTHEST:g} m and more (violet); sky white"


def _depth_colours(depth: np.ndarray) -> np.ndarray:
    """Logarithmic depth in colours: near is bright, the sky white."""
    from matplotlib import colormaps

    with np.errstate(divide="ignore"):
        share = np.log(depth / _NEAREST) / np.log(_FARTHEST / _NEAREST)
    made = colormaps["viridis"](1 - np.clip(share, 0, 1), bytes=True)[..., :3].copy()
    made[np.isinf(depth)] = 255
    return made


def _sheet(
    title: str,
    card: Card,
    heads: Sequence[str],
    rows: Sequence[_Row],
    width: float,
    key: Sequence[tuple[str, Any]] = (),
    note: str = "",
) -> Figure:
    """Place every image by hand, all cells alike, measured in inches."""
    from matplotlib.figure import Figure

    tall, wide = next(row.images[0].shape[:2] for row in rows if row.images)
    high = width * tall / wide
    total = max(style.WIDTH, _NAME + len(heads) * (width + _GAP) + 0.04)
    lines = textwrap.wrap(title, int(10.8 * total))
    per_line = max(int((total - 0.1) / 0.95), 1)
    below = 0.2 * -(-len(key) // per_line) + (0.2 if note else 0) + (0.1 if key else 0)
    top = 0.06 + 0.18 * len(lines) + (0.2 if card.synthetic else 0)
    heights = [high if row.images else _WORDS for row in rows]
    height = top + _HEAD + sum(heights) + len(rows) * _GAP + 0.04 + below
    figure = Figure(figsize=(total, height))

    def write(x: float, y: float, text: str, **options: Any) -> None:
        figure.text(x / total, y / height, text, **options)

    write(0.04, height - 0.04, "\n".join(lines), va="top", fontweight="bold", linespacing=1.1)
    if card.synthetic:
        y = height - 0.06 - 0.18 * len(lines)
        write(0.04, y, SYNTHETIC, va="top", fontsize=8.5, color=style.WRONG, fontweight="bold")
    y = height - top - _HEAD
    for place, head in enumerate(heads):
        x = _NAME + place * (width + _GAP) + width / 2
        write(x, y + 0.05, head, ha="center", va="bottom", fontsize=8)
    for row, room in zip(rows, heights, strict=True):
        y -= room
        name = "\n".join(textwrap.wrap(row.name.replace("_", " "), 17))
        write(0.04, y + room / 2, name, va="center", fontsize=8, linespacing=1.0)
        for place, image in enumerate(row.images):
            x = _NAME + place * (width + _GAP)
            axes = figure.add_axes((x / total, y / height, width / total, high / height))
            _image(axes, image)
        if row.text:
            text = "\n".join(textwrap.wrap(row.text, int(11 * (total - _NAME)))[:2])
            write(_NAME, y + room / 2, text, va="center", fontsize=8, color=style.MUTED)
        y -= _GAP
    y -= 0.16
    for place, (name, colour) in enumerate(key):
        line, column = divmod(place, per_line)
        x, base = 0.06 + column * 0.95, y - 0.2 * line
        axes = figure.add_axes((x / total, base / height, 0.11 / total, 0.11 / height))
        axes.set_facecolor(colour)
        axes.set_xticks([])
        axes.set_yticks([])
        write(x + 0.15, base + 0.055, name, va="center", fontsize=8)
    if note:
        base = 0.06
        write(0.06, base, note, va="bottom", fontsize=8, color=style.MUTED)
    return figure


def _image(axes: Axes, image: np.ndarray) -> None:
    from PIL import Image

    pixels = image if image.dtype == np.uint8 else np.rint(image * 255).clip(0, 255)
    shown = Image.fromarray(pixels.astype(np.uint8))
    if max(shown.size) > _LARGEST:
        shown.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    axes.imshow(np.asarray(shown), interpolation="none", aspect="auto")
    axes.set_axis_off()
