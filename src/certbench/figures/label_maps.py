"""What a segmentation model saw and said: images with their label maps and predicted maps."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.datasets import masks
from certbench.figures import style, wording
from certbench.params import param

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from certbench.datasets.card import Card
    from certbench.figures.data import FigureData

version = 1

needs = ("index", "segmentation")

section = "gallery"

about = (
    "The first images of the split, chosen before any model ran. Above, the images as the model "
    "saw them; below, the class it tells of each pixel, beside the true one. Percentages are the "
    "pixels of the image that are right; pixels without a class are black."
)

_CELL = 1.28
_GAP = 0.05
_HEAD = 0.62
_LINE = 0.17
# Larger images are shown smaller: a page has a size too.
_LARGEST = 192


@dataclass(frozen=True)
class Params:
    """What is drawn."""

    items: int = param(2, help="images of each dataset", minimum=1, maximum=50)
    columns: int = param(4, help="most variants shown", minimum=1, maximum=40)
    model: str | None = param(None, help="whose predictions (null for the first)")


def draw(data: FigureData, params: Params) -> Figure:
    """One block for each dataset: for each item a line of images and a line of maps."""
    from matplotlib.figure import Figure

    found = data.segmentation
    known = [m for m, _ in data.looks.sort((m, None) for m in set(found["model"]))]
    model = params.model if params.model in known else next(iter(known), None)
    found = found[found["model"].eq(model)]
    blocks = []
    for selection in data.selections:
        own = found
        for column, name in (("dataset", "id"), ("split", "split"), ("view", "view")):
            own = own[own[column].eq(selection["dataset"][name])]
        if len(own) and all(Path(path).is_file() for path in selection["index"]):
            blocks.append(_Block(data, params, selection, own))
    if not blocks:
        return style.nothing("No label maps with predictions yet")
    columns = max(len(block.columns) for block in blocks) + 1
    width = max(style.WIDTH, columns * _CELL + 0.1)
    height = sum(block.height for block in blocks)
    figure = Figure(figsize=(width, height))
    top = height
    for block in blocks:
        block.draw(figure, top, width, height, str(model))
        top -= block.height
    return figure


class _Block:
    """The images of one dataset with what the model says of them."""

    def __init__(self, data: FigureData, params: Params, selection, rows):
        self.split = selection["dataset"]["split"]
        seed = int(rows["seed"].iloc[0])
        clean, self.card = data.images(selection, {"steps": []}, params.items, seed, masks=True)
        self.items: list[str] = clean.item_ids
        self.columns: list[tuple[str, dict[str, np.ndarray], dict[str, np.ndarray], Any]] = []
        self.common, self.left_out = "", 0
        self.aspect = clean.images.shape[1] / clean.images.shape[2]
        self.colours = _colours(self.card)
        allowed = data.embed_images
        self.shown = allowed == "all" or (
            allowed == "redistributable" and self.card.redistributable
        )
        if not self.shown:
            return
        with_rows = set(rows["variant_id"])
        variants = [v for v in selection["variants"] if v["variant_id"] in with_rows]
        names, self.common = wording.variants(v["variant_id"] for v in variants)
        self.left_out = max(len(variants) - params.columns, 0)
        pictures = rows[rows["predicted_map"].notna() & rows["item_id"].isin(self.items)]
        for variant in variants[: params.columns]:
            batch, _ = data.images(selection, variant, params.items, seed, masks=True)
            own = pictures[pictures["variant_id"].eq(variant["variant_id"])]
            said = {r.item_id: masks.decode(r.predicted_map, r.item_id) for r in own.itertuples()}
            assert batch.masks is not None
            true = dict(zip(batch.item_ids, batch.masks, strict=True))
            shown = dict(zip(batch.item_ids, batch.images, strict=True))
            self.columns.append((names[variant["variant_id"]], shown, said, true))

    @property
    def cell(self) -> float:
        """Height of one picture in inches."""
        return (_CELL - _GAP) * self.aspect

    @property
    def height(self) -> float:
        """Height of the block in inches."""
        if not self.shown:
            return 0.8
        return _HEAD + len(self.items) * (2 * self.cell + 3 * _GAP + _LINE) + self._legend + 0.1

    @property
    def _legend(self) -> float:
        return _LINE * -(-len(self.colours) // 4)

    def draw(self, figure: Figure, top: float, width: float, height: float, model: str) -> None:
        """Place the block by hand; every picture in a cell of its own, all cells alike."""

        def text(x: float, y: float, words: str, **options: Any) -> None:
            figure.text(x / width, y / height, words, **{"va": "top", "fontsize": 8, **options})

        def place(x: float, y: float, pixels: np.ndarray) -> None:
            box = (x / width, (y - self.cell) / height, (_CELL - _GAP) / width, self.cell / height)
            _picture(figure.add_axes(box), pixels)

        kind = ["synthetic images"] if self.card.synthetic else []
        text(0.05, top - 0.05, f"{self.card.title}, {self.split}", fontsize=9, fontweight="bold")
        if not self.shown:
            words = "not shown: their terms do not say that they may be passed on (embed_images)"
            text(0.05, top - 0.3, f"Images are {words}", color=style.MUTED)
            return
        notes = [*kind, f"maps of {model}"]
        notes += [f"shifts at: {self.common}"] if self.common else []
        notes += [f"{self.left_out} more not shown"] if self.left_out else []
        text(0.05, top - 0.22, "; ".join(notes), color=style.MUTED)
        for i, (name, *_) in enumerate(self.columns):
            text(0.05 + (i + 1) * _CELL, top - 0.4, textwrap.shorten(name, 24, placeholder="…"))
        text(0.05, top - 0.4, "labels")
        y = top - _HEAD
        for item in self.items:
            low = y - self.cell - _GAP
            for i, (_, shown, said, true) in enumerate(self.columns):
                x = 0.05 + (i + 1) * _CELL
                place(x, y, shown[item])
                if i == 0:
                    place(0.05, low, self.colours_of(true[item]))
                if item in said:
                    place(x, low, self.colours_of(said[item]))
                    counted = true[item] != masks.IGNORE
                    right = (said[item] == true[item])[counted]
                    words = wording.percent(float(right.mean())) if right.size else wording.MISSING
                    text(x, low - self.cell - 0.02, f"{words} right", color=style.MUTED)
            text(0.05, y, textwrap.fill(item, 18), color=style.MUTED)
            y -= 2 * self.cell + 3 * _GAP + _LINE
        step = (width - 0.1) / 4
        for k, name in enumerate(self.card.mask_class_names):
            x, at = 0.05 + (k % 4) * step, y - (k // 4) * _LINE
            colour = self.colours[k] / 255
            text(x, at, "\u25a0", color=tuple(colour), fontsize=9)
            text(x + 0.13, at, textwrap.shorten(name, 22, placeholder="…"))

    def colours_of(self, classes: np.ndarray) -> np.ndarray:
        """Classes uint8 [H, W] as colours uint8 [H, W, 3]; no class is black."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self.colours)] = self.colours
        return table[classes]


def _colours(card: Card) -> np.ndarray:
    """Colours uint8 [K, 3] of the card, or of evenly spaced hues where it names none."""
    if card.mask_colours:
        return np.array(card.mask_colours, np.uint8)
    from matplotlib.colors import hsv_to_rgb

    k = np.arange(len(card.mask_class_names))
    hues = np.stack([(k * 0.618034) % 1, 0.55 + 0.2 * (k % 3), 0.9 - 0.2 * (k % 2)], 1)
    return np.rint(255 * hsv_to_rgb(hues)).astype(np.uint8)


def _picture(axes: Axes, pixels: np.ndarray) -> None:
    from PIL import Image

    whole = pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255).clip(0, 255)
    shown = Image.fromarray(whole.astype(np.uint8))
    if max(shown.size) > _LARGEST:
        shown.thumbnail((_LARGEST, _LARGEST), Image.Resampling.NEAREST)
    axes.imshow(np.asarray(shown), interpolation="none", aspect="auto")
    axes.set_axis_off()
