"""What a study cost: time by stage."""

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

needs = ("costs",)

section = "cost"

about = (
    "Time of all jobs of a stage together; the darker part is the device at work. Jobs that "
    "several experiments share are counted in each of them."
)


@dataclass(frozen=True)
class Params:
    """What is drawn."""

    by: str = param("stage", help="one bar for each of these", choices=("stage", "model"))


def draw(data: FigureData, params: Params) -> Figure:
    """One panel for each experiment."""
    costs = data.costs
    if costs.empty:
        return style.nothing("No costs yet")
    sheet = style.Sheet()
    for experiment, group in costs.groupby("experiment", sort=False):
        _panel(sheet, str(experiment), _bars(group, params.by))
    return sheet.done()


def _bars(group: pd.DataFrame, by: str) -> list[tuple[str, float, float, int]]:
    """Label, seconds in all, seconds on the device and number of jobs of each bar."""
    bars = []
    for stage, rows in group.groupby("stage", sort=False):
        for model, own in rows.groupby("model", dropna=False) if by == "model" else [("", rows)]:
            label = wording.STAGES.get(str(stage), str(stage)) + (f", {model}" if model else "")
            wall, device = own["wall_time_s"].sum(), own["device_time_s"].sum()
            bars.append((str(stage), label, float(wall), float(device), int(own["jobs"].sum())))
    order = list(wording.STAGES)
    bars.sort(key=lambda bar: (order.index(bar[0]) if bar[0] in order else len(order), bar[1]))
    return [bar[1:] for bar in bars]


def _panel(sheet: style.Sheet, experiment: str, bars: list[tuple[str, float, float, int]]) -> None:
    total = wording.duration(sum(bar[1] for bar in bars))
    title = f"{experiment}: {total} in all"
    axes = sheet.panel(title, 0.42 * len(bars) + 0.1, left=0.14, ticks=False)
    most = max((wall for _, wall, _, _ in bars), default=0.0) or 1.0
    for y, (label, wall, device, jobs) in enumerate(bars):
        axes.barh(y, wall, height=0.34, color="#9db8d2", edgecolor="none")
        axes.barh(y, min(device, wall), height=0.34, color="#0173b2", edgecolor="none")
        text = f"{wording.duration(wall)} in {wording.plural(jobs, 'job')}"
        axes.text(0, y - 0.24, f"{label}: {text}", va="bottom", fontsize=9)
    axes.set(xlim=(0, most * 1.02), ylim=(len(bars) - 0.6, -0.75))
    axes.set_yticks([])
    axes.set_xticks([])
    axes.grid(False)
    style.despine(axes, left=True)
    axes.spines["bottom"].set_visible(False)
