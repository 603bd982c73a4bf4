"""What attacks leave, between the clean accuracy and what is certified at the same budget."""

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

section = "attacks"

about = (
    "Robust accuracy lies between what is certified at the budget (triangle) and what the attack "
    "could not break (filled); the bar between them is undecided. A stronger attack can only move "
    "the filled marker to the left. Abstaining counts as failing."
)

# The four numbers of one attacked model, as metrics name them.
_CLEAN, _ROBUST, _PROVEN = "attacked_clean_accuracy", "robust_accuracy", "proven"


@dataclass(frozen=True)
class Params:
    """What is drawn."""

    variants: tuple[str, ...] = param(("clean",), help="variants shown; [] for all")


def draw(data: FigureData, params: Params) -> Figure:
    """One panel for each dataset, variant and attack."""
    table = data.tables
    table = table[table["metric"].isin((_CLEAN, _ROBUST, _PROVEN))]
    if params.variants:
        table = table[table["variant_id"].isin(params.variants)]
    if table.empty:
        return style.nothing("No attacks yet")
    by = ["dataset", "split", "view", "variant_id", "attack", "threat_id"]
    groups = list(table.groupby(by, dropna=False, sort=False))
    sheet = style.Sheet()
    for i, (names, group) in enumerate(groups):
        dataset, split, _, variant, attack, threat = names
        title = f"{attack}, {wording.threat(threat)}: {wording.place(dataset, split, variant)}"
        _panel(sheet, data, title, group, last=i == len(groups) - 1)
    return sheet.done()


def _panel(sheet: style.Sheet, data: FigureData, title: str, group: pd.DataFrame, last: bool):
    pairs = data.looks.sort(zip(group["model"], group["defense"], strict=True))
    entries = [
        style.grey("o", "without attack", filled=False),
        style.grey("D", "not broken by the attack"),
        style.grey("^", "certified at the attack's budget"),
    ]
    axes = sheet.panel(
        title,
        0.36 * len(pairs),
        rows=[data.looks.of(*pair).label for pair in pairs],
        xlabel="of all images" if last else None,
        key=entries if last else (),
    )
    for y, pair in enumerate(pairs):
        look = data.looks.of(*pair)
        own = group[group["model"].eq(pair[0]) & group["defense"].eq(pair[1])]
        found = {row.metric: row for row in own.itertuples() if wording.known(row.value)}
        if _ROBUST in found and _PROVEN in found:
            axes.plot(
                [found[_PROVEN].value, found[_ROBUST].value],
                [y, y],
                color=look.colour,
                alpha=0.3,
                linewidth=7,
                solid_capstyle="butt",
                zorder=1,
            )
        for metric, marker, face, offset in (
            (_CLEAN, "o", style.PAPER, -0.2),
            (_ROBUST, "D", look.colour, 0.0),
            (_PROVEN, "^", look.colour, 0.2),
        ):
            if metric in found:
                row = found[metric]
                style.whisker(
                    axes, row.value, y + offset, row.low, row.high, look, marker=marker, face=face
                )
    axes.set_xlim(-0.02, 1.02)
    style.percent_axis(axes.xaxis)
    style.despine(axes, left=True)
