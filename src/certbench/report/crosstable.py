"""The cross table: models with and without defence against everything that was done to them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from certbench.figures import wording
from certbench.report.numbers import Numbers, Value, defended

if TYPE_CHECKING:
    from certbench.report.sources import Sources


MOST_VARIANTS = 24
"""With more variants, a column is a shift over all of its severities."""


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: What it says.
        small: A second line: the interval.
        note: A third line.
        sort: Value to sort by, None where there is nothing.
        tone: ``good`` to ``bad`` shading between 0 and 1, or None.
        title: What a pointer shows.
    """

    text: str = wording.MISSING
    small: str = ""
    note: str = ""
    sort: float | None = None
    tone: float | None = None
    title: str = ""


@dataclass
class CrossTable:
    """Rows are models with their defences, columns what was measured.

    Attributes:
        place: Dataset and split.
        items: What the numbers are about, for example ``200 images``.
        synthetic: Whether the images are rendered.
        groups: Title and number of columns of each column group.
        columns: Title of each column, and a second line.
        rows: Name and cells of each row.
    """

    place: str
    items: str
    synthetic: bool = False
    groups: list[tuple[str, int]] = field(default_factory=list)
    columns: list[tuple[str, str]] = field(default_factory=list)
    rows: list[tuple[dict[str, Any], list[Cell]]] = field(default_factory=list)


def build(sources: Sources, numbers: Numbers) -> list[CrossTable]:
    """One cross table for each dataset, split and view."""
    return [_table(sources, numbers, place) for place in numbers.places]


def _table(sources: Sources, numbers: Numbers, place: tuple) -> CrossTable:
    pairs = ordered(numbers.pairs[place], sources.config)
    radii = numbers.radii(place)
    attacks = numbers.attacks.get(place, [])
    variants = [variant for variant in numbers.variants[place] if variant != "clean"]
    names, _ = wording.variants(["clean", *variants])
    families, common = wording.families(variants, MOST_VARIANTS)
    sizes = {row.n for row in _all(numbers, place, pairs)}
    table = CrossTable(
        place=wording.place(place[0], place[1]),
        items=wording.listed([wording.plural(n, "image") for n in sorted(sizes)], "or"),
        synthetic=place[0] in sources.synthetic,
    )
    norm = _norm(sources, place)
    table.groups = [("clean", 1)]
    table.columns = [("right", "")]
    if radii:
        table.groups.append(
            (f"certified to an {norm} radius of" if norm else "certified to", len(radii))
        )
        table.columns += [(f"{radius:g}", "") for radius in radii]
    if attacks:
        table.groups.append(("right under attack", len(attacks)))
        table.columns += [(attack, wording.threat(threat)) for attack, threat in attacks]
    attacked = [
        (attack, variant)
        for attack, _ in attacks
        for variant in variants
        if any(_attacked(numbers, place, pair, attack, variant) for pair in pairs)
    ]
    if variants:
        collapsed = len(families) < len(variants)
        at = ", ".join(filter(None, ["means over severities"] * collapsed + [common]))
        at = f" ({at})" if at else ""
        table.groups.append((f"right under shift{at}", len(families)))
        table.columns += [(name, "") for name, _ in families]
    if attacked:
        table.groups.append(("right under shift and attack", len(attacked)))
        table.columns += [(attack, names[variant]) for attack, variant in attacked]
    if radii:
        table.groups += [("abstains", 1), ("cost of an answer", 2)]
        table.columns += [("clean", ""), ("passes", ""), ("time", "")]
    reference = middle(radii)
    for pair in pairs:
        cells = [_share(_right(numbers, place, pair, "clean"))]
        cells += [
            _share(numbers.get("certified_accuracy", place, pair, parameter=r))
            if defended(pair)
            else Cell()
            for r in radii
        ]
        for attack, _ in attacks:
            found = _attacked(numbers, place, pair, attack)
            cell = _share(found)
            if found is not None and sizes and found.n < max(sizes):
                cell = dataclasses.replace(cell, note=f"of {found.n} images")
            cells.append(cell)
        for _, ids in families:
            cells.append(_shifted(numbers, place, pair, ids, reference))
        for attack, variant in attacked:
            cells.append(_share(_attacked(numbers, place, pair, attack, variant)))
        if radii:
            cells.append(
                _share(numbers.get("abstain_rate", place, pair), tone=False)
                if defended(pair)
                else Cell("never", sort=0.0)
            )
            cells += _cost(sources, place, pair)
        name = {"model": pair[0], "defense": pair[1] if defended(pair) else "bare model"}
        table.rows.append((name, cells))
    return table


def ordered(pairs: list[tuple[str, str]], config: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs in the order of the configuration, the bare model first."""
    models: list[str] = []
    defenses = ["none"]
    for experiment in config["experiments"]:
        models += experiment["models"]
        defenses += experiment["defenses"]

    def place(names: list[str], name: str) -> int:
        return names.index(name) if name in names else len(names)

    return sorted(pairs, key=lambda pair: (place(models, pair[0]), place(defenses, pair[1])))


def middle(radii: list[float]) -> float | None:
    """The radius that stands for all: the middle one (the lower of two)."""
    return radii[(len(radii) - 1) // 2] if radii else None


def _all(numbers: Numbers, place: tuple, pairs: list[tuple[str, str]]) -> list[Value]:
    found = [_right(numbers, place, pair, "clean") for pair in pairs]
    return [value for value in found if value is not None]


def _right(numbers: Numbers, place: tuple, pair: tuple[str, str], variant: str) -> Value | None:
    """Share that is right; for a defence, right and not abstaining."""
    if defended(pair):
        return numbers.get("certified_accuracy", place, pair, variant, parameter=0.0)
    return numbers.get("accuracy", place, pair, variant)


def _attacked(
    numbers: Numbers, place: tuple, pair: tuple[str, str], attack: str, variant: str = "clean"
) -> Value | None:
    return numbers.get("robust_accuracy", place, pair, variant, attack=attack)


def _share(value: Value | None, tone: bool = True) -> Cell:
    if value is None:
        return Cell()
    return Cell(
        wording.percent(value.value),
        value.interval.rstrip("%"),
        sort=value.value,
        tone=value.value if tone else None,
        title=f"of {wording.plural(value.n, 'image')}",
    )


def _shifted(numbers: Numbers, place, pair, ids: list[str], radius: float | None) -> Cell:
    cell = _share(mean([_right(numbers, place, pair, variant) for variant in ids]))
    if not defended(pair) or radius is None:
        return cell
    certified = mean(
        [
            numbers.get("certified_accuracy", place, pair, variant, parameter=radius)
            for variant in ids
        ]
    )
    if certified is None:
        return cell
    return dataclasses.replace(cell, note=f"certified to {radius:g}: {certified.percent}")


def mean(values: list[Value | None]) -> Value | None:
    """Mean over variants of the same images; None unless all of them are known.

    The interval is the mean of the intervals, which holds the mean at least as often: shares of the
    same images hang together.
    """
    found = [value for value in values if value is not None]
    if not found or len(found) < len(values):
        return None
    ends = [
        None
        if any(getattr(value, end) is None for value in found)
        else sum(getattr(value, end) for value in found) / len(found)
        for end in ("low", "high")
    ]
    return Value(
        sum(value.value for value in found) / len(found),
        ends[0],
        ends[1],
        min(value.n for value in found),
    )


def _cost(sources: Sources, place: tuple, pair: tuple[str, str]) -> list[Cell]:
    if not defended(pair):
        return [Cell("1", sort=1.0), Cell()]
    found = per_certificate(sources, place, pair)
    if found is None:
        return [Cell(), Cell()]
    passes, seconds = found
    return [
        Cell(wording.number(passes), sort=passes) if passes is not None else Cell(),
        Cell(wording.duration(seconds), sort=seconds) if seconds is not None else Cell(),
    ]


def per_certificate(
    sources: Sources, place: tuple, pair: tuple[str, str], variant: str = "clean"
) -> tuple[float | None, float | None] | None:
    """Forward passes and device seconds of one certificate, on average."""
    table = sources.certificates
    for name, wanted in zip(
        ("dataset", "split", "view", "model", "defense", "variant_id"),
        (*place, *pair, variant),
        strict=True,
    ):
        table = table[table[name] == wanted]
    if table.empty:
        return None
    row = table.iloc[0]
    values = [row.get("n_forward"), row.get("device_time_s")]
    passes, seconds = (float(v) if v is not None and wording.known(v) else None for v in values)
    return passes, seconds


def _norm(sources: Sources, place: tuple) -> str:
    table = sources.certificates
    for name, wanted in zip(("dataset", "split", "view"), place, strict=True):
        table = table[table[name] == wanted]
    norms = set(table["threat_norm"])
    return wording.norm(norms.pop()) if len(norms) == 1 else ""
