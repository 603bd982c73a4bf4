"""What natural shift leaves: accuracy, certified accuracy and abstentions on each variant.

Rows show every variant. Where a corruption was measured at several severities, small panels show
the course over severity, one for each type; it need not be monotone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certbench.corruptions.severity import NAMES
from certbench.figures import style, wording
from certbench.params import param

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from certbench.figures.data import FigureData

version = 3

needs = ("tables",)

section = "shift"

about = (
    "Each row is the same images under one shift, hardest last; the vertical lines are the clean "
    "images. Curves over severity start at the clean images. A certificate speaks of small changes "
    "of the shifted image, not of the shift itself."
)

# Small panels beside each other, and the height of one row of them in inches.
_BESIDE = 3
_HIGH = 1.12


@dataclass(frozen=True)
class Params:
    """What is drawn."""

    radii: tuple[float, ...] = param(
        (0.0, 0.5), help="radii of certified accuracy, one panel each", minimum=0
    )
    variants: tuple[str, ...] = param((), help="variants shown ([] for all)")
    rows: int = param(24, help="with more variants, one row for each shift, over its severities")
    curves: bool = param(True, help="draw curves over severity where there are several")


def draw(data: FigureData, params: Params) -> Figure:
    """For each dataset panels for bare models, each radius and abstentions, then the curves."""
    table = data.tables
    if params.variants:
        table = table[table["variant_id"].isin(("clean", *params.variants))]
    wanted: list[tuple[str, pd.DataFrame]] = []
    curves: list[tuple[str, pd.DataFrame]] = []
    for _, group in table.groupby(["dataset", "split", "view"], dropna=False, sort=False):
        if group["variant_id"].nunique() < 2:
            continue
        place = wording.place(group["dataset"].iloc[0], group["split"].iloc[0])
        for name, rows in _measures(group, params.radii):
            if rows["variant_id"].nunique() > 1:
                wanted.append((f"{name}: {place}", rows))
        if params.curves:
            curves += _several(group, place)
    if not wanted:
        return style.nothing("No results on shifted images yet")
    sheet = style.Sheet()
    for title, rows in wanted:
        _panel(sheet, data, params, title, rows)
    for title, rows in curves:
        _curves(sheet, data, params, title, rows)
    return sheet.done()


def _pairs(rows: pd.DataFrame) -> list[tuple[str, str | None]]:
    """Models, bare and defended, that were shown more than the clean images."""
    rows = rows[rows["variant_id"].ne("clean")]
    return list(zip(rows["model"], rows["defense"], strict=True))


def _measures(group: pd.DataFrame, radii: tuple[float, ...]) -> list[tuple[str, pd.DataFrame]]:
    found = [("Accuracy of the bare model", group[group["metric"].eq("accuracy")])]
    for radius in radii:
        rows = group[group["metric"].eq("certified_accuracy") & group["parameter"].eq(radius)]
        name = f"Certified at radius {radius:g}" if radius else "Correct and not abstaining"
        found.append((name, rows))
    found.append(("Abstains", group[group["metric"].eq("abstain_rate")]))
    return found


def _several(group: pd.DataFrame, place: str) -> list[tuple[str, pd.DataFrame]]:
    """Rows of types at several severities, with the clean images', by table of severities."""
    single = group[group["variant_id"].notna()]
    clean = single[single["variant_id"].eq("clean")]
    found = []
    for name, rows in single.groupby("severity_table", sort=False):
        many = rows.groupby("corruption")["severity"].transform("nunique") > 1
        if many.any():
            title = f"Over severity: {place}, severities of {name}"
            found.append((title, _joined(clean.assign(severity=0.0), rows[many])))
    return found


def _joined(clean: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    return pd.concat([clean, rows], ignore_index=True) if len(clean) else rows


def _panel(
    sheet: style.Sheet, data: FigureData, params: Params, title: str, rows: pd.DataFrame
) -> None:
    means = rows.groupby("variant_id")["value"].mean()
    families, common = wording.families(means.index, params.rows)
    sign = 1 if rows["metric"].iloc[0] == "abstain_rate" else -1
    families.sort(key=lambda one: (one[0] != "clean", sign * means[one[1]].mean(), one[0]))
    shared = f"all shifts at: {common}" if common else ""
    if any(len(ids) > 1 for _, ids in families):
        shared = ", ".join(filter(None, ["means over severities", shared]))
    pairs = data.looks.sort(_pairs(rows))
    axes = sheet.panel(
        f"{title} ({shared})" if shared else title,
        len(families) * max(0.24, 0.11 * len(pairs), 0.31 * any(len(n) > 19 for n, _ in families)),
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


def _curves(
    sheet: style.Sheet, data: FigureData, params: Params, title: str, rows: pd.DataFrame
) -> None:
    """Small panels, one for each type: severity along x, 0 the clean images."""
    types = rows["corruption"].dropna().unique().tolist()
    types.sort(key=lambda name: (NAMES.index(name) if name in NAMES else len(NAMES), name))
    clean = rows[rows["corruption"].isna()]
    pairs = [p for p in data.looks.sort(_pairs(rows)) if len(_lines(rows, p, params.radii))]
    lines = -(-len(types) // _BESIDE)
    host = sheet.panel(
        title,
        lines * _HIGH,
        left=0.46,
        ticks=False,
        key=[style.handle(data.looks.of(*pair)) for pair in pairs] + _meanings(pairs, params.radii),
    )
    host.set_axis_off()
    wide, high = 1 / _BESIDE, 1 / lines
    for place, name in enumerate(types):
        row, column = divmod(place, _BESIDE)
        axes = host.inset_axes(
            (column * wide, 1 - (row + 1) * high + 0.2 * high, 0.88 * wide, 0.62 * high)
        )
        axes.set_title(name.replace("_", " "), fontsize=8, fontweight="normal", pad=2)
        own = rows[rows["corruption"].eq(name)]
        for pair in pairs:
            for drawn, options in _lines(_joined(clean, own), pair, params.radii):
                look = data.looks.of(*pair)
                axes.plot(
                    drawn["severity"],
                    drawn["value"].astype(float),
                    color=look.colour,
                    marker=look.marker,
                    markerfacecolor=look.face,
                    **options,
                )
        below = place + _BESIDE >= len(types)
        _small(axes, left=column == 0, below=below)


# How each measure is drawn; the model has the colour and the defence the marker.
_RIGHT: dict[str, Any] = {"linewidth": 1.6, "markersize": 3.4}
_HELD: dict[str, Any] = {"linewidth": 1.1, "markersize": 2.4, "linestyle": (0, (3.5, 1.2))}
_ABSTAINS: dict[str, Any] = {"linewidth": 0.9, "markersize": 0, "linestyle": (0, (1, 1.2))}


def _lines(
    rows: pd.DataFrame, pair: tuple[str, str | None], radii: tuple[float, ...]
) -> list[tuple[pd.DataFrame, dict[str, Any]]]:
    """The lines of one model: right, certified to each radius above 0, abstaining."""
    own = rows[rows["model"].eq(pair[0])]
    if wording.bare(pair[1]):
        own = own[own["defense"].map(wording.bare) & own["metric"].eq("accuracy")]
        found = [(own, {**_RIGHT, "linestyle": (0, (1.2, 1.2))})]
    else:
        own = own[own["defense"].eq(pair[1])]
        certified = own[own["metric"].eq("certified_accuracy")]
        found = [(certified[certified["parameter"].eq(0)], {**_RIGHT, "linestyle": "-"})]
        found += [(certified[certified["parameter"].eq(r)], _HELD) for r in radii if r]
        found.append((own[own["metric"].eq("abstain_rate")], _ABSTAINS))
    return [(line.sort_values("severity"), options) for line, options in found if len(line)]


def _meanings(pairs: list[tuple[str, str | None]], radii: tuple[float, ...]) -> list:
    """Legend entries that explain the lines of defended models."""
    if all(wording.bare(defense) for _, defense in pairs):
        return []
    held = " or ".join(f"{r:g}" for r in radii if r)
    wanted = [("right and not abstaining", _RIGHT), (f"certified to {held}", _HELD)]
    wanted = [entry for entry in wanted if held or entry[1] is not _HELD]
    wanted.append(("abstains", _ABSTAINS))
    return [
        style.grey(
            "none", name, linestyle=options.get("linestyle", "-"), linewidth=options["linewidth"]
        )
        for name, options in wanted
    ]


def _small(axes: Axes, left: bool, below: bool) -> None:
    axes.set_xlim(-0.3, 5.3)
    axes.set_ylim(-0.04, 1.04)
    axes.set_xticks(range(6), [str(s) for s in range(6)] if below else [""] * 6, fontsize=7.5)
    axes.set_yticks((0, 0.5, 1), ("0", "50", "100%") if left else ("", "", ""), fontsize=7.5)
    axes.tick_params(length=2, pad=2)
    style.despine(axes)
