"""What segmentation models make of the pixels: mIoU on every variant, IoU of every class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from certbench.figures import wording
from certbench.report import crosstable
from certbench.report.crosstable import MOST_VARIANTS, Cell
from certbench.report.numbers import Numbers, Value

if TYPE_CHECKING:
    from certbench.report.sources import Sources

_IOU = "iou:"


@dataclass
class SegmentationTable:
    """Segmentation models on one dataset, split and view.

    Attributes:
        place: Dataset and split.
        items: What the numbers are about, for example ``500 images``.
        synthetic: Whether the images are rendered.
        shared: What all variants have in common.
        columns: Names of the variants, the dataset itself first.
        rows: Model, and a cell for each variant.
        classes: For each model, its classes: name, share of the labelled pixels, cells.
    """

    place: str
    items: str
    synthetic: bool
    shared: str = ""
    columns: list[str] = field(default_factory=list)
    rows: list[tuple[str, list[Cell]]] = field(default_factory=list)
    classes: list[tuple[str, list[tuple[str, str, list[Cell]]]]] = field(default_factory=list)


def build(found: Sources, numbers: Numbers) -> list[SegmentationTable]:
    """A table for every dataset, split and view.

    Args:
        found: What was read.
        numbers: The numbers of segmentation alone.
    """
    return [_table(found, numbers, place) for place in numbers.places]


def sentences(found: Sources, numbers: Numbers) -> list[str]:
    """The answer for each model in one sentence: each dataset as it is, and the worst shift."""
    said = []
    for model in dict.fromkeys(pair[0] for pairs in numbers.pairs.values() for pair in pairs):
        pair = (model, "none")
        clean: list[str] = []
        shifted: list[tuple[float, str]] = []
        for place in numbers.places:
            names, _ = wording.variants(numbers.variants[place])
            for variant in numbers.variants_of(place, pair):
                value = numbers.get("miou", place, pair, variant)
                if value is None:
                    continue
                told = f"{value.percent} ({value.interval})" if value.interval else value.percent
                if variant == "clean":
                    kind = "rendered image" if place[0] in found.synthetic else "image"
                    where = wording.place(place[0], place[1])
                    clean.append(f"{told} on {wording.plural(value.n, kind)} of {where}")
                else:
                    shifted.append((value.value, f"{told} on {place[0]} under {names[variant]}"))
        if not clean and not shifted:
            continue
        text = (
            f"Without any certificate, “{model}” tells the classes of pixels apart with a mIoU of "
        )
        if clean:
            text += wording.listed(clean)
            if shifted:
                text += f"; of the variants it fares worst with {min(shifted)[1]}"
        else:
            text += f"{min(shifted)[1]}, its worst shift"
        said.append(text + ".")
    return said


def _table(found: Sources, numbers: Numbers, place: tuple) -> SegmentationTable:
    pairs = crosstable.ordered(numbers.pairs[place], found.config)
    names, _ = wording.variants(numbers.variants[place])
    families, common = wording.families(names, MOST_VARIANTS)
    sizes = {
        value.n
        for pair in pairs
        for variant in names
        if (value := numbers.get("miou", place, pair, variant)) is not None
    }
    table = SegmentationTable(
        place=wording.place(place[0], place[1]),
        items=wording.listed([wording.plural(n, "image") for n in sorted(sizes)], "or"),
        synthetic=place[0] in found.synthetic,
        shared=", ".join(
            filter(None, ["means over severities"] * (len(families) < len(names)) + [common])
        ),
        columns=[name for name, _ in families],
    )
    for pair in pairs:
        table.rows.append((pair[0], [_cell(numbers, place, pair, ids) for _, ids in families]))
        listed = dict.fromkeys(
            metric.removeprefix(_IOU)
            for variant in names
            for metric in numbers.metrics(place, pair, variant)
            if metric.startswith(_IOU)
        )
        rows = []
        for name in listed:
            shares = [numbers.get(f"frequency:{name}", place, pair, v) for v in names]
            share = next((one.percent for one in shares if one is not None), wording.MISSING)
            cells = [
                _share(_over(numbers, f"{_IOU}{name}", place, pair, ids)) for _, ids in families
            ]
            rows.append((name, share, cells))
        table.classes.append((pair[0], rows))
    return table


def _over(
    numbers: Numbers, metric: str, place: tuple, pair: tuple[str, str], ids: list[str]
) -> Value | None:
    return crosstable.mean([numbers.get(metric, place, pair, variant) for variant in ids])


def _cell(numbers: Numbers, place: tuple, pair: tuple[str, str], ids: list[str]) -> Cell:
    pixels = _over(numbers, "pixel_accuracy", place, pair, ids)
    note = f"pixels right: {pixels.percent}" if pixels is not None else ""
    return _share(_over(numbers, "miou", place, pair, ids), note)


def _share(value: Value | None, note: str = "") -> Cell:
    if value is None:
        return Cell(note=note)
    return Cell(
        value.percent,
        value.interval.rstrip("%"),
        note=note,
        sort=value.value,
        tone=value.value,
        title=f"of {wording.plural(value.n, 'image')}",
    )
