"""What corruptions leave, in tables: means over a complete set, the worst type, mCE."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from certbench.figures import wording
from certbench.report import crosstable
from certbench.report.crosstable import Cell
from certbench.report.numbers import defended

if TYPE_CHECKING:
    import pandas as pd

    from certbench.report.sources import Sources

_KEYS = ("experiment", "dataset", "split", "view", "severity_table")


@dataclass
class ShiftTable:
    """One experiment's corruptions of one dataset, by one table of severities.

    Attributes:
        title: Dataset, table of severities, experiment.
        over: The set that means are over; empty where none is complete.
        reasons: Why numbers are missing, each once.
        columns: Names of the columns.
        rows: Model with defence, and its cells.
        types: Names of the models (columns) of the table by type.
        by_type: Type, and its cells.
    """

    title: str
    over: str = ""
    reasons: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: list[tuple[dict[str, str], list[Cell]]] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    by_type: list[tuple[str, list[Cell]]] = field(default_factory=list)


def build(found: Sources) -> list[ShiftTable]:
    """A table for every experiment, dataset and table of severities that has corruptions."""
    rows = found.reported
    rows = rows[rows["variant_id"].isna() & rows["severity_table"].notna()]
    made = []
    for key, own in rows.groupby(list(_KEYS), sort=False):
        made.append(_table(found, dict(zip(_KEYS, key, strict=True)), own))
    return made


def _table(found: Sources, keys: dict[str, str], own: pd.DataFrame) -> ShiftTable:
    pairs = crosstable.ordered(
        list(dict.fromkeys((r.model, r.defense or "none") for r in own.itertuples())), found.config
    )
    table = ShiftTable(
        f"{wording.place(keys['dataset'], keys['split'])}, severity table "
        f"{keys['severity_table']} (experiment {keys['experiment']})"
    )
    lookup = _Lookup(own)
    radius = crosstable.middle(lookup.radii())
    references = lookup.references()
    overall = [row for pair in pairs for row in lookup.overall(pair)]
    table.over = next((row.note for row in overall if wording.known(row.value)), "")
    complete = bool(table.over)
    has_types = any(lookup.get(f"mean_{lookup.score(pair)}", pair, kind=any) for pair in pairs)
    if complete:
        table.columns += ["mIoU" if lookup.pixels else "right", "of clean (rPC)"]
        if radius is not None:
            table.columns += [f"certified to {radius:g}", "average certified radius", "abstains"]
    table.columns.append("worst type")
    if complete:
        for name in references:
            error = "mean CD" if lookup.pixels else "mCE"
            table.columns += [f"{error} against {name}", f"relative {error} against {name}"]
    for pair in pairs:
        cells = []
        if complete:
            cells += [
                _share(lookup.get(f"mean_{lookup.score(pair)}", pair, radius=_zero(pair))),
                _share(
                    lookup.get(f"{lookup.prefix(pair)}rpc", pair, radius=_zero(pair)), tone=False
                ),
            ]
            if radius is not None:
                cells += [
                    _share(lookup.get("mean_certified_accuracy", pair, radius=radius)),
                    _number(lookup.get("mean_acr", pair)),
                    _share(lookup.get("mean_abstain_rate", pair), tone=False),
                ]
        cells.append(_worst(lookup, pair, radius))
        for name in references if complete else ():
            cells += [_error(lookup, pair, f"{kind}:{name}", radius) for kind in lookup.errors]
        table.rows.append((_name(pair), cells))
    table.reasons = lookup.reasons()
    if has_types:
        table.types = [wording.series(*pair) for pair in pairs]
        table.by_type = _by_type(lookup, pairs, radius)
    return table


def _by_type(
    lookup: _Lookup, pairs: list[tuple[str, str]], radius: float | None
) -> list[tuple[str, list[Cell]]]:
    made = []
    for kind in lookup.types():
        cells = []
        for pair in pairs:
            row = lookup.get(f"mean_{lookup.score(pair)}", pair, radius=_zero(pair), kind=kind)
            certified = (
                lookup.get("mean_certified_accuracy", pair, radius=radius, kind=kind)
                if defended(pair) and radius is not None
                else None
            )
            note = (
                f"certified to {radius:g}: {wording.percent(certified.value)}" if certified else ""
            )
            cells.append(_share(row, note=note))
        made.append((kind.replace("_", " "), cells))
    return made


def _zero(pair: tuple[str, str]) -> float | None:
    """A defended model is right at radius 0: correct and not abstaining."""
    return 0.0 if defended(pair) else None


def _name(pair: tuple[str, str]) -> dict[str, str]:
    return {"model": pair[0], "defense": pair[1] if defended(pair) else "bare model"}


def _share(row: Any, tone: bool = True, note: str = "") -> Cell:
    if row is None or not wording.known(row.value):
        return Cell(title=row.note or "" if row is not None else "")
    return Cell(
        wording.percent(row.value),
        wording.interval(row.low, row.high).rstrip("%"),
        note=note,
        sort=row.value,
        tone=row.value if tone else None,
        title=row.note or "",
    )


def _number(row: Any, note: str = "") -> Cell:
    if row is None or not wording.known(row.value):
        return Cell(title=row.note or "" if row is not None else "")
    return Cell(f"{row.value:.3f}", note=note, sort=row.value, title=row.note or "")


def _worst(lookup: _Lookup, pair: tuple[str, str], radius: float | None) -> Cell:
    row = lookup.get(f"worst_{lookup.score(pair)}", pair, radius=_zero(pair), kind=any)
    if row is None:
        return Cell()
    interval = wording.interval(row.low, row.high).rstrip("%")
    return Cell(
        row.corruption.replace("_", " "),
        f"{wording.percent(row.value)} {f'({interval})' if interval else ''}".strip(),
        sort=row.value,
        title=row.note or "",
    )


def _error(lookup: _Lookup, pair: tuple[str, str], metric: str, radius: float | None) -> Cell:
    certified = "certified_" if defended(pair) else ""
    row = lookup.get(f"{certified}{metric}", pair, radius=_zero(pair))
    if row is None or not wording.known(row.value):
        return Cell(title=row.note or "" if row is not None else "")
    held = lookup.get(f"certified_{metric}", pair, radius=radius) if defended(pair) else None
    note = (
        f"certified to {radius:g}: {held.value:.1f}" if held and wording.known(held.value) else ""
    )
    return Cell(f"{row.value:.1f}", note=note, sort=row.value, title=row.note or "")


class _Lookup:
    """Rows of one table by metric, model and what they are a mean over."""

    def __init__(self, own: pd.DataFrame):
        self._rows = list(own.itertuples())
        self._found: dict[tuple, Any] = {}
        for row in self._rows:
            if wording.known(row.severity):
                continue
            radius = float(row.parameter) if wording.known(row.parameter) else None
            kind = row.corruption if wording.known(row.corruption) else None
            pair = (row.model, row.defense or "none")
            self._found[row.metric, pair, radius, kind] = row
            if kind is not None:
                self._found.setdefault((row.metric, pair, radius, any), row)

        self.pixels = any("miou" in key[0] for key in self._found)
        self.errors = ("mean_cd", "relative_mean_cd") if self.pixels else ("mce", "relative_mce")

    def score(self, pair: tuple[str, str]) -> str:
        """What a model is measured by."""
        if defended(pair):
            return "certified_accuracy"
        return "miou" if self.pixels else "accuracy"

    def prefix(self, pair: tuple[str, str]) -> str:
        """How the names of its relative numbers begin."""
        return {"accuracy": "", "miou": "miou_"}.get(self.score(pair), "certified_")

    def get(
        self, metric: str, pair: tuple[str, str], radius: float | None = None, kind: Any = None
    ) -> Any:
        """One row, or None; ``kind`` is a type, ``any`` for the first, None for all together."""
        return self._found.get((metric, pair, radius, kind))

    def overall(self, pair: tuple[str, str]) -> list[Any]:
        """Rows that are means over types and severities."""
        return [
            row
            for (metric, own, _, kind), row in self._found.items()
            if own == pair and kind is None and metric.startswith("mean_") and ":" not in metric
        ]

    def radii(self) -> list[float]:
        """Radii above 0 of certified accuracy."""
        return sorted(
            {
                key[2]
                for key in self._found
                if key[0] in ("mean_certified_accuracy", "worst_certified_accuracy") and key[2]
            }
        )

    def references(self) -> list[str]:
        """What mCE is relative to, where there is any."""
        names = (
            key[0].partition(":")[2]
            for key, row in self._found.items()
            if key[0].startswith(("mce:", "certified_mce:", "mean_cd:"))
            and wording.known(row.value)
        )
        return list(dict.fromkeys(names))

    def types(self) -> list[str]:
        """Types with means over their severities."""
        return list(
            dict.fromkeys(
                key[3]
                for key, row in self._found.items()
                if key[0].startswith("mean_") and isinstance(key[3], str)
            )
        )

    def reasons(self) -> list[str]:
        """Why means are missing, each once."""
        notes = [
            row.note
            for key, row in self._found.items()
            if key[3] is None and row.note and not wording.known(row.value)
        ]
        return list(dict.fromkeys(notes))
