"""Accuracy over perturbation size: minimum-norm attacks, a grid of budgets, the floor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from certbench.figures import style, wording
from certbench.params import param

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from certbench.figures.data import FigureData

version = 1

needs = ("attacks", "certificates")

section = "attacks"

about = (
    "Share of all images that attacks could not break, over the size of the perturbation: markers "
    "are attacks run at that budget, the thin line is what the smallest perturbations found by any "
    "of them leave. The filled area is certified: no attack can get into it."
)


@dataclass(frozen=True)
class Params:
    """What is drawn."""

    variants: tuple[str, ...] = param(("clean",), help="variants shown; [] for all")
    confidence: float = param(0.95, help="level of the intervals", above=0, below=1)


def smallest(attacks: pd.DataFrame) -> pd.DataFrame:
    """The smallest perturbation that broke each item, over all attacks on one defended model.

    Args:
        attacks: Attack rows of one norm, defended model and variant.

    Returns:
        One row per item: ``size``, 0 where it was wrong before any attack, infinite where nothing
        broke it; and ``searched``, the largest budget it was attacked with.
    """
    import pandas as pd

    norm = str(attacks["threat_norm"].iloc[0])
    size = np.where(attacks["status"] == "broken", attacks[f"pert_{norm}"], np.inf)
    size = np.where(attacks["status"] == "clean_error", 0.0, size)
    found = pd.DataFrame(
        {
            "item": attacks["item_index"].to_numpy(),
            "size": size,
            "searched": attacks["threat_size"].to_numpy(),
        }
    )
    return found.groupby("item").agg({"size": "min", "searched": "max"})


def draw(data: FigureData, params: Params) -> Figure:
    """One panel for each dataset, variant and norm."""
    frame = data.attacks
    if len(frame):
        frame = frame[frame["threat_kind"].eq("lp") & frame["threat_norm"].isin(("l2", "linf"))]
        if params.variants:
            frame = frame[frame["variant_id"].isin(params.variants)]
    if frame.empty:
        return style.nothing("No attacks yet")
    by = ["dataset", "split", "view", "variant_id", "threat_norm"]
    sheet = style.Sheet()
    for names, group in frame.groupby(by, dropna=False, sort=False):
        _panel(sheet, data, params, dict(zip(by, names, strict=True)), group)
    return sheet.done()


def _panel(sheet: style.Sheet, data: FigureData, params: Params, at: dict, group: pd.DataFrame):
    pairs = data.looks.sort(zip(group["model"], group["defense"], strict=True))
    norm = wording.norm(at["threat_norm"])
    axes = sheet.panel(
        "Accuracy under attack, " + wording.place(at["dataset"], at["split"], at["variant_id"]),
        2.3,
        xlabel=f"{norm} size of the perturbation (pixel values in [0, 1])",
        key=[style.handle(data.looks.of(*pair)) for pair in pairs],
    )
    right = 1.06 * float(group["threat_size"].max())
    for pair in pairs:
        own = group[group["model"].eq(pair[0]) & group["defense"].eq(pair[1])]
        look = data.looks.of(*pair)
        _floor(axes, data.certificates, at, pair, look, right)
        _found(axes, own, look)
        for epsilon, part in own.groupby("threat_size"):
            _budget(axes, float(epsilon), part, look, params.confidence)
    axes.set(xlim=(0, right), ylim=(0, 1.02))
    style.percent_axis(axes.yaxis)
    style.despine(axes)


def _found(axes: Axes, attacks: pd.DataFrame, look: style.Series) -> None:
    """What the smallest perturbations leave, up to the largest budget."""
    found = smallest(attacks)
    sizes = np.sort(found["size"].to_numpy())
    end = float(found["searched"].max())
    at = np.unique(np.concatenate([[0.0], sizes[np.isfinite(sizes)], [end]]))
    at = at[at <= end]
    left = 1 - np.searchsorted(sizes, at, side="right") / len(sizes)
    axes.plot(at, left, drawstyle="steps-post", color=look.colour, linewidth=1.0)


def _budget(
    axes: Axes, epsilon: float, attacks: pd.DataFrame, look: style.Series, confidence: float
) -> None:
    """The union of the attacks at one budget: an item survives if it survives each."""
    from certbench.certify.intervals import binomial_interval

    survived = attacks["status"].eq("survived").groupby(attacks["item_index"]).all()
    n, k = len(survived), int(survived.sum())
    low, high = binomial_interval(k, n, confidence)
    style.whisker(axes, epsilon, k / n, float(low), float(high), look, vertical=True)


def _floor(
    axes: Axes, certificates: pd.DataFrame, at: dict, pair: tuple, look: style.Series, right: float
) -> None:
    """Certified accuracy of the same defended model, where its norm is the attack's."""
    if certificates.empty or wording.bare(pair[1]):
        return
    wanted = {**at, "model": pair[0], "defense": pair[1]}
    own = certificates
    for name, value in wanted.items():
        own = own[own[name].eq(value)]
    if own.empty:
        return
    ok = own["predict"].eq(own["label"])
    radii = np.sort(own.loc[ok, "radius"].to_numpy(np.float64))
    grid = np.unique(np.concatenate([[0.0], radii, [right]]))
    held = (len(radii) - np.searchsorted(radii, grid, side="left")) / len(own)
    axes.fill_between(grid, 0, held, step="pre", color=look.colour, alpha=0.16, linewidth=0)
