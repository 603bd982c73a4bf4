"""What the models saw: sampled images in their variants, with answers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.figures import style, wording
from certbench.params import param

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from certbench.figures.data import FigureData

version = 1

needs = ("index", "predictions", "attacks", "attack_images")

section = "gallery"

about = (
    "The first images of the split, chosen before any model ran, as the models saw them. Under "
    "each image the answers of the bare models; wrong ones are red and crossed."
)

# Larger images are shown smaller: a page has a size too.
_LARGEST = 128
_CELL = 0.86
_LEFT = 0.66


@dataclass(frozen=True)
class Params:
    """What is drawn."""

    items: int = param(5, help="images, one row each", minimum=1, maximum=50)
    columns: int = param(8, help="most variants and attacks shown", minimum=1, maximum=40)
    models: tuple[str, ...] = param(
        (), help="models whose answers are shown ([] for the first two)"
    )
    attacks: bool = param(True, help="show attacked images too (of the first model shown, bare)")


@dataclass(frozen=True)
class _Column:
    """One column: what happened to the images, and what models answer, by model and item."""

    title: str
    images: dict[str, np.ndarray]
    answers: dict[tuple[str, str], int]


def draw(data: FigureData, params: Params) -> Figure:
    """One block for each dataset: rows are items, columns are variants and attacks."""
    from matplotlib.figure import Figure

    blocks = []
    for selection in data.selections:
        own = _own(data.predictions, selection["dataset"])
        if len(own) and all(Path(index).is_file() for index in selection["index"]):
            blocks.append(_block(data, params, selection, own))
    if not blocks:
        return style.nothing("No images with predictions yet")
    rows = sum(1.0 if block["refused"] else 0.75 + block["height"] for block in blocks)
    columns = max(len(block["columns"]) for block in blocks)
    width = max(style.WIDTH, _LEFT + columns * _CELL + 0.05)
    figure = Figure(figsize=(width, rows))
    top = 1.0
    for block in blocks:
        height = (1.0 if block["refused"] else 0.75 + block["height"]) / rows
        if block["refused"]:
            axes = figure.add_axes((0.02, top - height, 0.96, height * 0.9))
            style.blank(axes, block["refused"])
        else:
            _draw_block(figure, block, top, rows, width)
        top -= height
    return figure


def _own(frame: pd.DataFrame, dataset: Mapping[str, Any]) -> pd.DataFrame:
    for column, name in (("dataset", "id"), ("split", "split"), ("view", "view")):
        frame = frame[frame[column].eq(dataset[name])]
    return frame


def _block(data: FigureData, params: Params, selection, predictions) -> dict[str, Any]:
    seed = int(predictions["seed"].iloc[0])
    known = [m for m, _ in data.looks.sort((m, None) for m in predictions["model"])]
    models = [m for m in params.models if m in known] or known[:2]
    clean, card = data.images(selection, {"steps": []}, params.items, seed)
    allowed = data.embed_images
    if allowed == "none" or (allowed == "redistributable" and not card.redistributable):
        reason = (
            f"Images of {card.title} are not shown: their terms do not say that they may be passed "
            "on (report: embed_images)"
            if allowed != "none"
            else "Images are not shown (report: embed_images is none)"
        )
        return {"refused": textwrap.fill(reason, 60), "columns": [], "height": 0.0}
    columns = []
    names, common = wording.variants(v["variant_id"] for v in selection["variants"])
    shown = [
        v for v in selection["variants"] if (predictions["variant_id"] == v["variant_id"]).any()
    ]
    for variant in shown:
        batch, _ = data.images(selection, variant, params.items, seed)
        own = predictions[predictions["variant_id"].eq(variant["variant_id"])]
        columns.append(
            _Column(
                names[variant["variant_id"]],
                dict(zip(batch.item_ids, batch.images, strict=True)),
                {(r.model, r.item_id): int(r.predict) for r in own.itertuples()},
            )
        )
    if params.attacks:
        columns += _attacked(data, selection, models[0], clean)
    left_out = max(len(columns) - params.columns, 0)
    columns = columns[: params.columns]
    lines = len(models)
    return {
        "refused": None,
        "title": f"{card.title}, {selection['dataset']['split']}"
        + (f"; shifts at: {common}" if common else "")
        + (f"; {left_out} more not shown" if left_out else ""),
        "columns": columns,
        "items": clean.item_ids,
        "labels": dict(zip(clean.item_ids, clean.labels.tolist(), strict=True)),
        "classes": card.class_names,
        "models": models,
        "line": 0.155,
        "height": 0.35 + len(clean) * (_CELL - 0.06 + 0.155 * lines + 0.1),
    }


def _attacked(data: FigureData, selection, model: str, clean) -> list[_Column]:
    """Attacked versions of the clean images, where the attack kept them."""
    own = _own(data.attacks, selection["dataset"])
    if own.empty:
        return []
    bare = own["defense"].map(wording.bare)
    own = own[own["model"].eq(model) & own["variant_id"].eq("clean") & bare]
    place = {int(index): item for index, item in zip(clean.item_index, clean.item_ids, strict=True)}
    columns = []
    for attack, rows in own.groupby("attack", sort=False):
        images: dict[str, np.ndarray] = {}
        for path in data.files("attack_images"):
            # .../<selection>/clean/<model>/none/<attack>/<range>.npz
            folders = path.parts[-6:-1]
            if len(folders) == 5 and folders[1:] == ("clean", model, "none", attack):
                with np.load(path, allow_pickle=False) as file:
                    for i, index in enumerate(file["item_index"].tolist()):
                        if index in place:
                            images[place[index]] = file["x_adv"][i].transpose(1, 2, 0)
        if images:
            answers = {(model, r.item_id): int(r.adv_pred) for r in rows.itertuples()}
            title = f"{attack} on {model}"
            columns.append(_Column(title, images, answers))
    return columns


def _draw_block(figure: Figure, block: dict[str, Any], top: float, rows: float, width: float):
    """Place a block by hand: every image in a cell of its own, all cells alike."""
    cell, gap = _CELL / width, 0.03 / width
    figure.text(0.1 / width, top - 0.12 / rows, block["title"], fontweight="bold", va="top")
    y = top - 0.42 / rows
    figure.text(0.1 / width, y - 0.34 / rows, "label", va="bottom", fontsize=8, color=style.MUTED)
    for i, column in enumerate(block["columns"]):
        title = "\n".join(textwrap.wrap(column.title, 13)[:3])
        figure.text(
            _LEFT / width + (i + 0.5) * cell - gap,
            y - 0.34 / rows,
            title,
            ha="center",
            va="bottom",
            fontsize=8,
            linespacing=1.05,
        )
    y -= 0.38 / rows
    side = (_CELL - 0.06) / rows
    for item in block["items"]:
        label = textwrap.wrap(_name(block["classes"], block["labels"][item]), 9)[:4]
        figure.text(0.1 / width, y - side / 2, "\n".join(label), va="center", fontsize=9)
        for i, column in enumerate(block["columns"]):
            x = _LEFT / width + i * cell
            if item in column.images:
                axes = figure.add_axes((x, y - side, cell - 2 * gap, side))
                _image(axes, column.images[item])
            _answers(figure, block, column, item, x + cell / 2 - gap, y - side, rows)
        y -= side + (block["line"] * len(block["models"]) + 0.1) / rows


def _image(axes: Axes, image: np.ndarray) -> None:
    from PIL import Image

    pixels = image if image.dtype == np.uint8 else np.rint(image * 255).clip(0, 255)
    shown = Image.fromarray(pixels.astype(np.uint8))
    if max(shown.size) > _LARGEST:
        shown.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    axes.imshow(np.asarray(shown), interpolation="none", aspect="equal")
    axes.set_axis_off()


def _answers(figure: Figure, block, column: _Column, item: str, x: float, y: float, rows: float):
    label = block["labels"][item]
    for line, model in enumerate(block["models"]):
        answer = column.answers.get((model, item))
        if answer is None:
            continue
        right = answer == label
        text = f"{_short(model, 6)} {_short(_name(block['classes'], answer), 9)}"
        figure.text(
            x,
            y - (0.03 + block["line"] * line) / rows,
            text if right else f"{text} ✗",
            ha="center",
            va="top",
            fontsize=8,
            color=style.INK if right else style.WRONG,
            fontweight="normal" if right else "bold",
        )


def _name(classes: tuple[str, ...], answer: int) -> str:
    if answer < 0:
        return "abstains"
    return classes[answer] if answer < len(classes) else str(answer)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
