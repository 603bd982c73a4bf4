"""Robust accuracy over what the attack spent, with the certified accuracy as the floor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certbench.figures import style, wording
from certbench.params import param

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from certbench.figures.data import FigureData

version = 2

needs = ("attacks", "tables")

section = "attacks"

about = (
    "Attacks on one model at one budget, from cheap to dear: accuracy that keeps falling with cost "
    "says that stronger attacks would break more. The dashed line is what is certified there. A "
    "backward pass counts as two forward passes."
)

BACKWARD = 2.0
"""Forward passes that one backward pass costs."""


@dataclass(frozen=True)
class Params:
    """What is drawn."""

    variants: tuple[str, ...] = param(("clean",), help="variants shown; [] for all")
    confidence: float = param(0.95, help="level of the intervals", above=0, below=1)


def draw(data: FigureData, params: Params) -> Figure:
    """One panel for each dataset, variant and threat."""
    frame = data.attacks
    if len(frame) and params.variants:
        frame = frame[frame["variant_id"].isin(params.variants)]
    if frame.empty:
        return style.nothing("No attacks yet")
    by = ["dataset", "split", "view", "variant_id", "threat_id"]
    sheet = style.Sheet()
    for names, group in frame.groupby(by, dropna=False, sort=False):
        _panel(sheet, data, params, dict(zip(by, names, strict=True)), group)
    return sheet.done()


def _panel(sheet: style.Sheet, data: FigureData, params: Params, at: dict, group: pd.DataFrame):
    from certbench.certify.intervals import binomial_interval

    pairs = data.looks.sort(zip(group["model"], group["defense"], strict=True))
    place = wording.place(at["dataset"], at["split"], at["variant_id"])
    axes = sheet.panel(
        f"Accuracy over attack cost, {wording.threat(at['threat_id'])}: {place}",
        2.1,
        xlabel="forward passes per image (log scale)",
        key=[style.handle(data.looks.of(*pair)) for pair in pairs],
    )
    axes.set_xscale("log")
    named: list[tuple[float, float, str]] = []
    for pair in pairs:
        look = data.looks.of(*pair)
        own = group[group["model"].eq(pair[0]) & group["defense"].eq(pair[1])]
        points = []
        for attack, part in own.groupby("attack", sort=False):
            spent = part["n_forward"].fillna(0) + BACKWARD * part["n_backward"].fillna(0)
            k, n = int(part["status"].eq("survived").sum()), len(part)
            low, high = binomial_interval(k, n, params.confidence)
            points.append((max(float(spent.mean()), 1.0), k / n, float(low), float(high), attack))
        points.sort()
        axes.plot([p[0] for p in points], [p[1] for p in points], color=look.colour, linewidth=0.9)
        for cost, share, low, high, attack in points:
            style.whisker(axes, cost, share, low, high, look, vertical=True)
            named.append((cost, share, str(attack)))
        _floor(axes, data.tables, at, pair, look)
    _names(axes, named)
    low, high = axes.get_xlim()
    axes.set(xlim=(low / 1.5, high * 4), ylim=(0, 1.02))
    style.percent_axis(axes.yaxis)
    style.despine(axes)


def _names(axes, named: list[tuple[float, float, str]]) -> None:
    """Name the points; where several are close, names stand below (or above) each other, once."""
    placed: list[tuple[float, float, str]] = []
    for cost, share, attack in sorted(named):
        near = [
            other
            for other in placed
            if abs(math.log10(cost / other[0])) < 1 and abs(share - other[1]) < 0.1
        ]
        if any(other[2] == attack for other in near):
            continue
        placed.append((cost, share, attack))
        line = 11 * len(near)
        axes.annotate(
            attack,
            (cost, share),
            xytext=(6, 4 + line if share < 0.5 or not near else -6 - line),
            textcoords="offset points",
            fontsize=8.5,
            color=style.MUTED,
        )


def _floor(axes, tables: pd.DataFrame, at: dict, pair: tuple, look: style.Series) -> None:
    if tables.empty or wording.bare(pair[1]):
        return
    own = tables[tables["metric"].eq("proven")]
    for name, value in {**at, "model": pair[0], "defense": pair[1]}.items():
        own = own[own[name].eq(value)]
    if len(own):
        axes.axhline(float(own["value"].max()), color=look.colour, linestyle=(0, (4, 2)))
