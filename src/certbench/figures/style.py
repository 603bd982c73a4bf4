"""One visual language for all figures.

A model has one colour and a defence one marker and line, in every figure of a study: both follow
the order of the experiments. Colours are seaborn's colour-blind-safe palette. Figures are drawn
narrow, with panels below each other, so that their text can be read on a telephone. Text is drawn
as paths: a figure looks the same wherever it is opened.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certbench.figures import wording

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.3
"""Width of a figure in inches; on a screen 390 px wide its smallest text is 9 px high."""

INK = "#1b2330"
MUTED = "#5b6675"
GRID = "#dde2e9"
PAPER = "#fefefe"
"""The colours that the report exchanges in its dark mode."""

VERDICT_COLOURS = {
    "proven": "#0173b2",
    "unknown": "#b9c2cd",
    "refuted": "#de8f05",
    "violation": "#c1121f",
    "clean_error": "#e6e9ee",
}
WRONG = "#c1121f"

_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.2, 1.5, 1.2)))
_CONTEXT = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.borderaxespad": 0.2,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "svg.fonttype": "path",
}


def applied(salt: str = "certbench") -> AbstractContextManager:
    """Settings of matplotlib while a figure is drawn and saved.

    Args:
        salt: Makes the identifiers inside an SVG stable: the figure's id.
    """
    import matplotlib
    import seaborn

    settings: Any = {**seaborn.axes_style("ticks"), **_CONTEXT, "svg.hashsalt": salt}
    return matplotlib.rc_context(settings)


@dataclass(frozen=True)
class Series:
    """How a model with its defence looks.

    Attributes:
        label: Its name.
        colour: Of the model.
        marker: Of the defence.
        face: Fill of the marker: the colour, or paper for a bare model.
        line: Line style of the defence.
    """

    label: str
    colour: str
    marker: str
    face: str
    line: Any


class Looks:
    """Colours, markers and lines by model and defence.

    Args:
        models: Models in the order of the study; unknown ones follow.
        defenses: Defences in the order of the study.
    """

    def __init__(self, models: Iterable[str] = (), defenses: Iterable[str] = ()):
        self._models = list(dict.fromkeys(models))
        self._defenses = [d for d in dict.fromkeys(defenses) if not wording.bare(d)]

    def of(self, model: str, defense: str | None = None) -> Series:
        """How a model with a defence looks."""
        colour = self.colour(model)
        label = wording.series(model, defense)
        if wording.bare(defense):
            return Series(label, colour, "o", PAPER, (0, (1.2, 1.2)))
        place = self._place(self._defenses, str(defense))
        return Series(
            label, colour, _MARKERS[place % len(_MARKERS)], colour, _LINES[place % len(_LINES)]
        )

    def colour(self, model: str) -> str:
        """The colour of a model."""
        import seaborn

        palette = seaborn.color_palette("colorblind").as_hex()
        return str(palette[self._place(self._models, model) % len(palette)])

    def sort(self, pairs: Iterable[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
        """Pairs of model and defence in the order of the study, the bare model first."""

        def key(pair: tuple[str, str | None]) -> tuple[int, int]:
            model, defense = pair
            rank = 0 if wording.bare(defense) else 1 + self._place(self._defenses, str(defense))
            return self._place(self._models, model), rank

        return sorted(dict.fromkeys(pairs), key=key)

    @staticmethod
    def _place(known: list[str], name: str) -> int:
        if name not in known:
            known.append(name)
        return known.index(name)


class Sheet:
    """A figure of panels below each other, measured in inches.

    Every panel says how high its data are; titles, axis labels and keys get the room they need, so
    nothing is squeezed or covered, however many panels there are. Positions do not depend on a
    layout engine.

    Args:
        width: Width of the figure in inches.
    """

    def __init__(self, width: float = WIDTH):
        from matplotlib.figure import Figure

        self.width = width
        self.figure = Figure(figsize=(width, 1.0))
        self._panels: list[dict[str, Any]] = []

    def panel(
        self,
        title: str,
        body: float,
        *,
        rows: Sequence[str] | None = None,
        left: float = 0.56,
        xlabel: str | None = None,
        ticks: bool = True,
        above: float = 0.0,
        key: Sequence[Any] = (),
    ) -> Axes:
        """Add a panel.

        Args:
            title: Its title, at the left edge of the figure; long ones are broken.
            body: Height of the data area.
            rows: Names of the rows of a plot with categories, top first.
            left: Room for tick labels at the left, where there are no names of rows.
            xlabel: Label of the x axis.
            ticks: Whether the x axis has tick labels.
            above: Room between title and data, for an axis at the top.
            key: Entries that explain colours and markers, one a line below the panel.
        """
        axes = self.figure.add_axes((0, 0, 1, 1), label=str(len(self._panels)))
        if rows is not None:
            named = ["\n".join(textwrap.wrap(row, 19)) or " " for row in rows]
            left = 0.14 + max(text_width(line) for row in named for line in row.split("\n"))
            axes.set_yticks(range(len(rows)), named, linespacing=1.0)
            axes.set_ylim(len(rows) - 0.45, -0.55)
            axes.tick_params(axis="y", length=0)
        if xlabel:
            axes.set_xlabel(xlabel)
        lines = textwrap.wrap(title, int(10.8 * self.width))
        wrapped = [_broken(entry, int(11.3 * self.width)) for entry in key]
        entries = sum(1 + entry.get_label().count("\n") for entry in wrapped)
        self._panels.append(
            {
                "axes": axes,
                "title": "\n".join(lines),
                "left": left,
                "top": 0.04 + 0.185 * len(lines) + 0.05 + above,
                "body": body,
                "bottom": (0.24 if ticks else 0.06) + (0.2 if xlabel else 0) + 0.08,
                "key": wrapped,
                "under": 0.19 * entries + (0.08 if entries else 0),
            }
        )
        return axes

    def done(self) -> Figure:
        """Place everything and return the figure."""
        parts = ("top", "body", "bottom", "under")
        height = sum(panel[part] for panel in self._panels for part in parts)
        self.figure.set_size_inches(self.width, height)
        y = height
        for panel in self._panels:
            self.figure.text(
                0.04 / self.width,
                (y - 0.04) / height,
                panel["title"],
                va="top",
                fontsize=10.5,
                fontweight="bold",
                linespacing=1.1,
            )
            y -= panel["top"] + panel["body"]
            width = self.width - panel["left"] - 0.2
            panel["axes"].set_position(
                (
                    panel["left"] / self.width,
                    y / height,
                    width / self.width,
                    panel["body"] / height,
                )
            )
            y -= panel["bottom"]
            if panel["key"]:
                self.figure.legend(
                    handles=panel["key"],
                    loc="upper left",
                    bbox_to_anchor=(0.04 / self.width, y / height),
                    borderpad=0.0,
                    borderaxespad=0.0,
                    handlelength=1.9,
                    labelspacing=0.32,
                )
            y -= panel["under"]
        return self.figure


def text_width(text: str, size: float = 9.0) -> float:
    """Width of a line of text in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    if not text.strip():
        return 0.0
    path = TextPath((0, 0), text, size=size, prop=FontProperties(family="DejaVu Sans"))
    return float(path.get_extents().width) / 72


def _broken(handle: Any, width: int) -> Any:
    """A legend entry whose label is broken into lines."""
    handle.set_label("\n".join(textwrap.wrap(handle.get_label(), width)))
    return handle


def nothing(reason: str) -> Figure:
    """A figure that says why it is empty."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 1.2))
    blank(figure.add_axes((0.02, 0.05, 0.96, 0.9)), reason)
    return figure


def blank(axes: Axes, reason: str) -> None:
    """Turn a panel into a note that says why it is empty."""
    axes.set_axis_off()
    axes.text(
        0.5,
        0.5,
        textwrap.fill(reason, 52),
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=MUTED,
        bbox={"boxstyle": "round,pad=0.8", "facecolor": "none", "edgecolor": GRID},
    )


def despine(axes: Axes, left: bool = False) -> None:
    """Leave the axes that carry numbers."""
    import seaborn

    seaborn.despine(ax=axes, left=left)


def percent_axis(axis: Any) -> None:
    """Ticks at 0, 20, ... 100 %."""
    from matplotlib.ticker import FixedLocator, PercentFormatter

    axis.set_major_locator(FixedLocator([0, 0.2, 0.4, 0.6, 0.8, 1]))
    axis.set_major_formatter(PercentFormatter(1, decimals=0))


def whisker(
    axes: Axes,
    x: float,
    y: float,
    low: float | None,
    high: float | None,
    look: Series,
    *,
    vertical: bool = False,
    marker: str | None = None,
    face: str | None = None,
) -> None:
    """A marker with its interval along x (or along y)."""
    if wording.known(low) and wording.known(high):
        ends: Any = ([x, x], [low, high]) if vertical else ([low, high], [y, y])
        axes.plot(*ends, color=look.colour, linewidth=1.3, solid_capstyle="butt", zorder=3.5)
    axes.plot(
        [x],
        [y],
        marker=marker or look.marker,
        color=look.colour,
        markerfacecolor=look.face if face is None else face,
        markeredgewidth=1.3,
        linestyle="none",
        zorder=4,
    )


def handle(look: Series, label: str | None = None, **changes: Any) -> Any:
    """A legend entry of a series."""
    from matplotlib.lines import Line2D

    options = {
        "color": look.colour,
        "marker": look.marker,
        "markerfacecolor": look.face,
        "markeredgewidth": 1.3,
        "linestyle": "none",
        **changes,
    }
    return Line2D([], [], label=look.label if label is None else label, **options)


def grey(marker: str, label: str, filled: bool = True, **changes: Any) -> Any:
    """A legend entry that explains a marker whatever its colour."""
    look = Series(label, MUTED, marker, MUTED if filled else PAPER, "-")
    return handle(look, **changes)
