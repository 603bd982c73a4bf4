"""How sure the smoothed classifier is: the distribution of the bound on its top class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.figures import style, wording
from certbench.params import param

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from certbench.figures.data import FigureData

version = 1

needs = ("certificates",)

section = "certificates"

about = (
    "Share of images whose top class is at most so likely under noise. Left of one half there is "
    "no certificate; the step at the right end are images for which all samples agree, where only "
    "more samples could show a larger radius. The upper axis is the radius in units of the noise."
)

_TICKS = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999, 0.9999, 0.99999)


@dataclass(frozen=True)
class Params:
    """What is drawn."""

    quantity: str = param(
        "bound", help="lower bound of pA, or the share of votes", choices=("bound", "votes")
    )
    variants: tuple[str, ...] = param(("clean",), help="variants, one panel each; [] for all")
    confidence: float = param(0.95, help="level of the bands", above=0, below=1)


def draw(data: FigureData, params: Params) -> Figure:
    """One panel for each dataset and variant; empirical distributions with a DKW band."""
    frame = data.certificates
    if params.variants and len(frame):
        frame = frame[frame["variant_id"].isin(params.variants)]
    frame = _with_quantity(frame, params.quantity)
    if frame.empty:
        return style.nothing("No certificates that tell their probabilities yet")
    by = ["dataset", "split", "view", "variant_id"]
    sheet = style.Sheet()
    for (dataset, split, _, variant), group in frame.groupby(by, dropna=False, sort=False):
        _panel(sheet, data, params, wording.place(dataset, split, variant), group)
    return sheet.done()


def _with_quantity(frame: pd.DataFrame, quantity: str) -> pd.DataFrame:
    columns = ("p_lower",) if quantity == "bound" else ("n_top", "n")
    if frame.empty or not all(name in frame for name in columns):
        return frame.iloc[:0]
    values = frame["p_lower"] if quantity == "bound" else frame["n_top"] / frame["n"]
    return frame.assign(quantity=values)[values.notna()]


def _panel(sheet: style.Sheet, data: FigureData, params: Params, place: str, group: pd.DataFrame):
    from scipy.special import ndtri

    largest = float(group["quantity"].max())
    top = min(max(largest, 0.9), 1 - 1e-6)

    def position(p: Any) -> Any:
        return ndtri(np.clip(p, 0.01, 1 - 1e-7))

    pairs = data.looks.sort(zip(group["model"], group["defense"], strict=True))
    looks = [data.looks.of(*pair) for pair in pairs]
    bound = params.quantity == "bound"
    axes = sheet.panel(
        f"Share of images at most so sure, {place}",
        2.3,
        above=0.42 if bound else 0.0,
        xlabel="lower bound of the top class's probability" if bound else "share of votes",
        key=[style.handle(look, marker="", linestyle=look.line) for look in looks],
    )
    for pair in pairs:
        own = group[group["model"].eq(pair[0]) & group["defense"].eq(pair[1])]
        look = data.looks.of(*pair)
        values = np.sort(own["quantity"].to_numpy(np.float64))
        at, counts = np.unique(values, return_counts=True)
        share = np.cumsum(counts) / len(values)
        # Dvoretzky, Kiefer and Wolfowitz with Massart's constant: a band for the whole curve.
        half = math.sqrt(math.log(2 / (1 - params.confidence)) / (2 * len(values)))
        x = np.concatenate([[position(0.0)], position(at), [position(1.0)]])
        y = np.concatenate([[0.0], share, [1.0]])
        axes.plot(x, y, drawstyle="steps-post", color=look.colour, linestyle=look.line)
        axes.fill_between(
            x,
            np.clip(y - half, 0, 1),
            np.clip(y + half, 0, 1),
            step="post",
            color=look.colour,
            alpha=0.16,
            linewidth=0,
        )
    left, right = float(position(0.02)), float(position(top)) + 0.15
    axes.axvspan(left, 0, color=style.GRID, alpha=0.5, zorder=0)
    axes.text(0, 0.97, "no certificate ", ha="right", va="top", color=style.MUTED, fontsize=8.5)
    axes.set(xlim=(left, right), ylim=(0, 1.02))
    ticks = [tick for tick in _TICKS if left <= position(tick) <= right]
    axes.set_xticks([float(position(tick)) for tick in ticks], [f"{tick:g}" for tick in ticks])
    style.percent_axis(axes.yaxis)
    style.despine(axes)
    if bound:
        upper = axes.secondary_xaxis("top")
        upper.set_xticks(list(range(math.floor(right) + 1)))
        upper.set_xlabel("radius / σ", fontsize=9)
        upper.spines["top"].set_visible(False)
