"""Certified accuracy over the radius, beside what attacks leave at their budgets."""

from __future__ import annotations

from dataclasses import dataclass
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

needs = ("certificates", "predictions", "attacks")

section = "certificates"

about = (
    "Share of all images that are classified correctly and certified at least to a radius. "
    "Markers at the left are the bare models, crosses what an attack leaves at its budget: a curve "
    "far below a cross of its colour leaves images undecided."
)

# More steps than a screen has pixels carry nothing; thinning keeps the curve from below.
_MOST_STEPS = 600
_ATTACK_MARKERS = ("X", "P", "*", "d", "h", "p")


@dataclass(frozen=True)
class Params:
    """What is drawn."""

    variants: tuple[str, ...] = param(("clean",), help="variants, one panel each; [] for all")
    confidence: float = param(0.95, help="level of the intervals", above=0, below=1)
    attacks: bool = param(True, help="show what attacks leave at their budgets")
    max_radius: float | None = param(None, help="end of the radius axis (default, the data)")


def steps(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Vertices of the curve: radii (0 and every radius there is) and certified counts at them.

    Args:
        frame: Certificates of one defended model on one variant.

    Returns:
        Ascending radii, and the number of rows that are right with at least that radius. Between
        two radii the curve has the value of the larger one.
    """
    ok = frame["predict"].eq(frame["label"]) & frame["predict"].ge(0)
    radii = np.sort(frame.loc[ok, "radius"].to_numpy(np.float64))
    at = np.unique(np.concatenate([[0.0], radii]))
    if len(at) > _MOST_STEPS:
        at = at[np.unique(np.linspace(0, len(at) - 1, _MOST_STEPS).round().astype(int))]
    return at, len(radii) - np.searchsorted(radii, at, side="left")


def draw(data: FigureData, params: Params) -> Figure:
    """One panel for each dataset, variant and norm."""
    frame = data.certificates
    if params.variants and len(frame):
        frame = frame[frame["variant_id"].isin(params.variants)]
    if frame.empty:
        return style.nothing("No certificates yet")
    by = ["dataset", "split", "view", "variant_id", "threat_id"]
    sheet = style.Sheet()
    for names, group in frame.groupby(by, dropna=False, sort=False):
        at = dict(zip(by, names, strict=True))
        attacks = _same_ball(data.attacks, at, group) if params.attacks else data.attacks.iloc[:0]
        _panel(sheet, data, params, at, group, _at(data.predictions, at), attacks)
    return sheet.done()


def _panel(sheet: style.Sheet, data, params, at, group, predictions, attacks) -> None:
    from certbench.certify.intervals import binomial_interval

    pairs = data.looks.sort(zip(group["model"], group["defense"], strict=True))
    caps = {pair: cap(_of(group, pair)) for pair in pairs}
    count = wording.plural(group["item_id"].nunique(), "image")
    norm = wording.norm(group["threat_norm"].iloc[0])
    marked = _by_radius(data, caps)
    place = wording.place(at["dataset"], at["split"], at["variant_id"])
    axes = sheet.panel(
        f"Certified accuracy, {place}, {count}",
        2.5,
        above=0.17 * len(marked),
        xlabel=f"certified {norm} radius (pixel values in [0, 1])",
        key=_key(data, pairs, predictions, attacks),
    )
    ends = [group["radius"].max(), *(value for value, _ in caps.values() if value)]
    if len(attacks):
        ends.append(attacks["threat_size"].max())
    right = params.max_radius or 1.04 * max(float(end) for end in ends if end == end) or 1.0
    for pair in pairs:
        rows, look = _of(group, pair), data.looks.of(*pair)
        radii, counts = steps(rows)
        low, high = binomial_interval(counts, len(rows), params.confidence)
        # The last step falls to zero: no image is certified beyond it.
        axes.plot(
            np.append(radii, radii[-1]),
            np.append(counts / len(rows), 0.0),
            drawstyle="steps-pre",
            color=look.colour,
            linestyle=look.line,
        )
        axes.fill_between(radii, low, high, step="pre", color=look.colour, alpha=0.16, linewidth=0)
    _mark_caps(axes, marked, right)
    gutter = _bare_models(axes, data, params, predictions, right)
    _attack_points(axes, data, params, attacks, 0.012 * right)
    axes.axvline(0, color=style.MUTED, linewidth=0.8, zorder=1)
    axes.set(xlim=(-gutter - 0.025 * right, right), ylim=(0, 1.02))
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= right])
    style.percent_axis(axes.yaxis)
    style.despine(axes)


def _key(data, pairs, predictions, attacks) -> list[Any]:
    entries = []
    for pair in pairs:
        look = data.looks.of(*pair)
        entries.append(
            style.handle(look, f"{look.label}, certified", marker="", linestyle=look.line)
        )
    for model, _ in data.looks.sort((model, None) for model in predictions["model"]):
        entries.append(style.handle(data.looks.of(model), f"{model}, bare, without attack"))
    for (attack, threat), marker in zip(_attacks(attacks), _ATTACK_MARKERS * 9, strict=False):
        budget = wording.threat(threat)
        entries.append(style.grey(marker, f"not broken by {attack}, {budget} (hollow: bare)"))
    return entries


def _attacks(attacks: pd.DataFrame) -> list[tuple[str, str]]:
    return list(dict.fromkeys(zip(attacks["attack"], attacks["threat_id"], strict=True)))


def cap(rows: pd.DataFrame) -> tuple[float | None, int | None]:
    """The largest radius that the sample budget can give, and that budget; None where unknown."""
    n = rows["n"].max() if "n" in rows else None
    samples = int(n) if n is not None and n == n else None
    if "radius_capped" in rows:
        capped = rows.loc[rows["radius_capped"].eq(True), "radius"]
        if len(capped):
            return float(capped.max()), samples
    one_bound = "bound" in rows and rows["bound"].eq("one").all()
    if samples and one_bound and rows[["alpha", "sigma"]].notna().all(None):
        from certbench.certify.attainable import radius_cap

        return float(radius_cap(samples, rows["alpha"].iloc[0], rows["sigma"].iloc[0])), samples
    return None, samples


def _by_radius(data, caps) -> dict[float, tuple[set[str], int | None]]:
    """Colours of the curves that end at each largest radius, and the budget, in ascending order."""
    marked: dict[float, tuple[set[str], int | None]] = {}
    for pair, (radius, samples) in sorted(caps.items(), key=lambda entry: entry[1][0] or 0.0):
        if radius:
            entry = marked.setdefault(round(radius, 6), (set(), samples))
            entry[0].add(data.looks.of(*pair).colour)
    return marked


def _mark_caps(axes: Axes, marked, right: float) -> None:
    """A line at each largest radius, named above the data, one name a line."""
    for line, (radius, (colours, samples)) in enumerate(marked.items()):
        colour = next(iter(colours)) if len(colours) == 1 else style.MUTED
        axes.axvline(radius, color=colour, linewidth=1, linestyle=(0, (2, 2)), zorder=1.5)
        text = f"largest radius with n = {samples:,}" if samples else "largest possible radius"
        beyond = radius > right / 2
        axes.annotate(
            f"{text} ┐" if beyond else f"┌ {text}",
            (radius, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3 if beyond else -3, 2 + 12 * line),
            textcoords="offset points",
            ha="right" if beyond else "left",
            va="bottom",
            fontsize=8,
            color=style.MUTED,
            annotation_clip=False,
        )


def _bare_models(axes: Axes, data, params, predictions, right: float) -> float:
    """Clean accuracy of the bare models, left of radius 0; returns the room it takes."""
    from certbench.certify.intervals import binomial_interval

    models = [model for model, _ in data.looks.sort((m, None) for m in predictions["model"])]
    for position, model in enumerate(models):
        hits = predictions.loc[predictions["model"].eq(model), "correct"]
        low, high = binomial_interval(int(hits.sum()), len(hits), params.confidence)
        x = -0.035 * right * (position + 0.8)
        look = data.looks.of(model)
        style.whisker(axes, x, hits.mean(), float(low), float(high), look, vertical=True)
    return 0.035 * right * len(models)


def _attack_points(axes: Axes, data, params, attacks, shift: float) -> None:
    from certbench.certify.intervals import binomial_interval

    for (attack, threat), marker in zip(_attacks(attacks), _ATTACK_MARKERS * 9, strict=False):
        of_attack = attacks[attacks["attack"].eq(attack) & attacks["threat_id"].eq(threat)]
        pairs = data.looks.sort(zip(of_attack["model"], of_attack["defense"], strict=True))
        for position, pair in enumerate(pairs):
            rows = _of(of_attack, pair)
            survived = rows["status"].eq("survived")
            low, high = binomial_interval(int(survived.sum()), len(rows), params.confidence)
            style.whisker(
                axes,
                rows["threat_size"].iloc[0] + shift * (position - (len(pairs) - 1) / 2),
                survived.mean(),
                float(low),
                float(high),
                data.looks.of(*pair),
                vertical=True,
                marker=marker,
            )


def _of(frame: pd.DataFrame, pair: tuple[str, str | None]) -> pd.DataFrame:
    return frame[frame["model"].eq(pair[0]) & frame["defense"].eq(pair[1])]


def _at(frame: pd.DataFrame, at: dict[str, Any]) -> pd.DataFrame:
    for name in ("dataset", "split", "view", "variant_id"):
        frame = frame[frame[name].eq(at[name])]
    return frame


def _same_ball(attacks: pd.DataFrame, at: dict[str, Any], group: pd.DataFrame) -> pd.DataFrame:
    """Attacks on the same images in the ball that the certificates speak of."""
    found = _at(attacks, at)
    for name in ("threat_kind", "threat_norm", "threat_space", "threat_unit"):
        found = found[found[name].eq(group[name].iloc[0])]
    return found
