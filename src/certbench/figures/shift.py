"""What natural shift leaves: accuracy of the bare models and certified accuracy on each variant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from certbench.figures import style, wording
from certbench.params import param

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from certbench.figures.data import FigureData

version = 1

needs = ("tables",)

section = "shift"

about = (
    "Each row is the same images under one shift, hardest last; the vertical lines are the clean "
    "images. A certificate speaks of small changes of the shifted image, not of the shift itself."
)


@dataclass(frozen=True)
class Params:
    """What is drawn."""

    radii: tuple[float, ...] = param(
        (0.0, 0.5), help="radii of certified accuracy, one panel each", minimum=0
    )
    variants: tuple[str, ...] = param((), help="variants shown ([] for all)")
    rows: int = param(24, help="with more variants, one row for each shift, over its severities")


def draw(data: FigureData, params: Params) -> Figure:
    """For each dataset a panel for the bare models and one for each radius."""
    table = data.tables
    if params.variants:
        table = table[table["variant_id"].isin(("clean", *params.variants))]
    wanted: list[tuple[str, pd.DataFrame]] = []
    for _, group in table.groupby(["dataset", "split", "view"], dropna=False, sort=False):
        if group["variant_id"].nunique() < 2:
            continue
        place = wording.place(group["dataset"].iloc[0], group["split"].iloc[0])
        for name, rows in _measures(group, params.radii):
            if rows["variant_id"].nunique() > 1:
                wanted.append((f"{name}: {place}", rows))
    if not wanted:
        return style.nothing("No results on shifted images yet")
    sheet = style.Sheet()
    for title, rows in wanted:
        _panel(sheet, data, params, title, rows)
    return sheet.done()


def _pairs(rows: pd.DataFrame) -> list[tuple[str, str | None]]:
    return list(zip(rows["model"], rows["defense"], strict=True))


def _measures(group: pd.DataFrame, radii: tuple[float, ...]) -> list[tuple[str, pd.DataFrame]]:
    found = [("Accuracy of the bare model", group[group["metric"].eq("accuracy")])]
    for radius in radii:
        rows = group[group["metric"].eq("certified_accuracy") & group["parameter"].eq(radius)]
        name = f"Certified at radius {radius:g}" if radius else "Correct and not abstaining"
        found.append((name, rows))
    return found


def _panel(
    sheet: style.Sheet, data: FigureData, params: Params, title: str, rows: pd.DataFrame
) -> None:
    means = rows.groupby("variant_id")["value"].mean()
    families, common = wording.families(means.index, params.rows)
    families.sort(key=lambda one: (one[0] != "clean", -means[one[1]].mean(), one[0]))
    shared = f"all shifts at: {common}" if common else ""
    if any(len(ids) > 1 for _, ids in families):
        shared = ", ".join(filter(None, ["means over severities", shared]))
    pairs = data.looks.sort(_pairs(rows))
    axes = sheet.panel(
        f"{title} ({shared})" if shared else title,
        len(families) * max(0.24, 0.11 * len(pairs)),
        rows=[name for name, _ in families],
        xlabel="of all images",
        key=[style.handle(data.looks.of(*pair)) for pair in pairs],
    )
    spread = min(0.26, 0.7 / max(len(pairs), 1))
    for position, pair in enumerate(pairs):
        look = data.looks.of(*pair)
        own = rows[rows["model"].eq(pair[0]) & rows["defense"].eq(pair[1])]
        offset = spread * (position - (len(pairs) - 1) / 2)
        for place, (name, ids) in enumerate(families):
            family = own[own["variant_id"].isin(ids)]
            if family.empty:
                continue
            # The mean of intervals holds the mean at least as often: the images are the same.
            value, low, high = family[["value", "low", "high"]].astype(float).mean()
            if name == "clean":
                axes.axvline(value, color=look.colour, linewidth=1, alpha=0.55, zorder=1)
            if len(family) > 1:
                axes.plot(
                    family["value"],
                    [place + offset] * len(family),
                    linestyle="none",
                    marker=".",
                    markersize=3,
                    color=look.colour,
                    alpha=0.6,
                )
            style.whisker(axes, value, place + offset, low, high, look)
    axes.set_xlim(-0.02, 1.02)
    axes.axhline(0.5, color=style.MUTED, linewidth=0.6)
    style.percent_axis(axes.xaxis)
    style.despine(axes, left=True)
