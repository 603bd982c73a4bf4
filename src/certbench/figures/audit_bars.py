"""Certificates against attacks, image by image: proven, undecided, refuted, violated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from certbench.figures import style, wording
from certbench.params import param

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from certbench.figures.data import FigureData

version = 2

needs = ("audits",)

section = "attacks"

about = (
    "Every attacked image of a defended model. Whiskers are intervals of the two ends between "
    "which robust accuracy lies: the certified share, and the share that the attack did not break. "
    "A violation is a certificate that an attack broke inside its own region."
)

_ORDER = ("proven", "unknown", "refuted", "clean_error", "violation")
# Segments narrower than this share have no room for their number.
_ROOM = 0.07


@dataclass(frozen=True)
class Params:
    """What is drawn."""

    variants: tuple[str, ...] = param(("clean",), help="variants shown; [] for all")
    confidence: float = param(0.95, help="level of the intervals", above=0, below=1)


def draw(data: FigureData, params: Params) -> Figure:
    """One bar for each defended model and attack, grouped by dataset and variant."""
    frame = data.audits
    if len(frame):
        # An attack outside the threat model is held against nothing: there is no bar to draw.
        keys = ["dataset", "split", "view", "variant_id", "model", "defense", "attack", "threat_id"]
        outside = frame["verdict"].eq("outside").groupby([frame[k] for k in keys]).transform("any")
        frame = frame[~outside]
    if params.variants and len(frame):
        frame = frame[frame["variant_id"].isin(params.variants)]
    if frame.empty:
        return style.nothing("No audit yet: it needs certificates and attacks on the same images")
    sheet = style.Sheet()
    groups = list(frame.groupby(["dataset", "split", "view", "variant_id"], sort=False))
    for i, ((dataset, split, _, variant), group) in enumerate(groups):
        title = f"Certificates against attacks, {wording.place(dataset, split, variant)}"
        _panel(sheet, params, title, group, last=i == len(groups) - 1)
    return sheet.done()


def _bars(group: pd.DataFrame) -> list:
    return list(group.groupby(["model", "defense", "attack", "threat_id"], sort=False))


def _panel(sheet: style.Sheet, params: Params, title: str, group: pd.DataFrame, last: bool):
    from matplotlib.patches import Patch

    from certbench.certify.intervals import binomial_interval

    bars = _bars(group)
    shown = [name for name in _ORDER if name != "violation" or group["verdict"].eq(name).any()]
    entries = [
        Patch(facecolor=style.VERDICT_COLOURS[name], label=wording.VERDICTS[name]) for name in shown
    ]
    axes = sheet.panel(
        title,
        0.6 * len(bars) + 0.1,
        left=0.14,
        xlabel="of attacked images" if last else None,
        key=entries if last else (),
    )
    for y, ((model, defense, attack, threat), rows) in enumerate(bars):
        counts = np.array([rows["verdict"].eq(name).sum() for name in _ORDER])
        total, left = len(rows), 0.0
        for name, count in zip(_ORDER, counts, strict=True):
            share = count / total
            axes.barh(
                y,
                share,
                left=left,
                height=0.46,
                color=style.VERDICT_COLOURS[name],
                edgecolor=style.PAPER,
                linewidth=0.8,
            )
            if share >= _ROOM or (name == "violation" and count):
                axes.text(
                    left + share / 2,
                    y,
                    f"{count}",
                    ha="center",
                    va="center",
                    fontsize=9,
                    fontweight="bold",
                    color="#ffffff" if name in ("proven", "violation") else "#1b2330",
                )
            left += share
        for ends, height in ((counts[0], y - 0.29), (counts[0] + counts[1], y + 0.29)):
            low, high = binomial_interval(int(ends), total, params.confidence)
            axes.plot([low, high], [height, height], color=style.INK, linewidth=1.4)
            axes.plot([ends / total], [height], marker="|", color=style.INK, markersize=5)
        axes.text(
            0,
            y - 0.36,
            f"{model} + {defense}: {attack}, {wording.threat(threat)}",
            va="bottom",
            fontsize=9,
        )
    axes.set(xlim=(0, 1.0), ylim=(len(bars) - 0.55, -0.75))
    axes.set_yticks([])
    axes.grid(False)
    style.percent_axis(axes.xaxis)
    style.despine(axes, left=True)
