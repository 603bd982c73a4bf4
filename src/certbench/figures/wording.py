"""Numbers and identifiers as people read them; figures and the report use the same words.

A missing number is an en dash. Nothing here imports more than the standard library.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

MISSING = "–"

_NORMS = {"l1": "ℓ₁", "l2": "ℓ₂", "linf": "ℓ∞"}
_SEVERITY = re.compile(r"(.*\D) \d+")
_HASH = re.compile(r"-[0-9a-f]{6}$")

STAGES = {
    "train": "train models",
    "fetch": "fetch models",
    "predict": "predict",
    "collect": "collect votes",
    "decide": "decide certificates",
    "fit": "fit attacks",
    "attack": "attack",
}
"""What each stage of the cost table does, in the order of the workflow."""

VERDICTS = {
    "violation": "violation: broken inside its certified region",
    "proven": "proven: certified at the budget",
    "unknown": "unknown: neither certified nor broken",
    "refuted": "refuted: broken, and not certified there",
    "outside": "outside the certificate's threat model: nothing is compared",
    "clean_error": "wrong without any attack",
}
"""The verdicts of an audit, worst news first."""


def known(value: object) -> bool:
    """Whether a cell of a table holds something (no None, no NaN)."""
    return value is not None and value == value


def percent(share: float | None, digits: int = 1) -> str:
    """A share of one as a percentage."""
    return f"{100 * share:.{digits}f}%" if share is not None and share == share else MISSING


def points(difference: float, digits: int = 1) -> str:
    """A difference of two shares in percentage points, without sign."""
    amount = f"{abs(100 * difference):.{digits}f}"
    return f"{amount} percentage point{'' if float(amount) == 1 else 's'}"


def interval(low: float | None, high: float | None, digits: int = 1) -> str:
    """An interval of shares, for example ``81.5–91.3%``; empty where there is none."""
    if not (known(low) and known(high)):
        return ""
    assert low is not None and high is not None
    return f"{100 * low:.{digits}f}–{100 * high:.{digits}f}%"


def number(value: float | None) -> str:
    """A number with at most four significant digits, thousands separated."""
    if value is None or value != value:
        return MISSING
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """A duration: ``0.40 ms``, ``3.2 s``, ``6 min 20 s``, ``2 h 05 min``, ``3.4 days``."""
    if seconds is None or seconds != seconds:
        return MISSING
    if seconds == 0:
        return "0 s"
    if seconds < 0.0995:
        return f"{seconds * 1000:.2g} ms"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{seconds / 86400:.1f} days"


def norm(name: str | None) -> str:
    """A norm with its sign: ``ℓ₂``."""
    return _NORMS.get(name or "", name or "")


def size(value: float) -> str:
    """A budget or radius; multiples of one grey level as fractions of 255."""
    levels = value * 255
    if 0 < value < 1 and abs(levels - round(levels)) < 1e-6 and len(f"{value:g}") > 5:
        return f"{round(levels)}/255"
    return f"{value:g}"


def threat(threat_id: str | None) -> str:
    """A threat as a reader knows it: ``lp-linf-8of255`` is ``ℓ∞ ≤ 8/255``, unbroken."""
    if not threat_id or not known(threat_id):
        return ""
    parts = threat_id.split("-")
    if parts[0] == "lp" and len(parts) >= 2:
        rest = [part.replace("of", "/") for part in parts[2:3]]
        more = f" ({', '.join(parts[3:])})" if len(parts) > 3 else ""
        return norm(parts[1]) + (f"\u00a0≤\u00a0{rest[0]}" if rest else "") + more
    if parts[0] == "patch" and len(parts) == 4 and parts[3] == "pixels":
        shape = f"{parts[2]}×{parts[2]}" if parts[1] == "square" else f"{parts[1]} {parts[2]}"
        return f"{shape} patch"
    return " ".join(parts)


def series(model: str, defense: str | None) -> str:
    """A model, bare or with its defence."""
    return f"{model}, bare" if bare(defense) else f"{model} + {defense}"


def bare(defense: str | None) -> bool:
    """Whether there is no defence."""
    return not known(defense) or defense in ("none", "")


def variants(ids: Iterable[str]) -> tuple[dict[str, str], str]:
    """Short names of dataset variants, and what all of them share.

    The hash goes; so do the trailing parts that all variants but ``clean`` have in common (a
    severity, a table of severities), which are returned once.

    Args:
        ids: Variant ids.

    Returns:
        Name by id, and the common part (empty where there is none). Names are unique: where two
        would be alike, they keep their hashes.
    """
    found = list(dict.fromkeys(ids))
    plain = {one: _HASH.sub("", one).split("-") for one in found if one != "clean"}
    common: list[str] = []
    if len(plain) > 1:
        while all(len(parts) > 1 for parts in plain.values()):
            tails = {parts[-1] for parts in plain.values()}
            if len(tails) > 1:
                break
            common.insert(0, tails.pop())
            plain = {one: parts[:-1] for one, parts in plain.items()}
    names = {one: " ".join(parts).replace("_", " ") for one, parts in plain.items()}
    alike = [name for name in names.values() if list(names.values()).count(name) > 1]
    names = {one: one.replace("_", " ") if name in alike else name for one, name in names.items()}
    if "clean" in found:
        names = {"clean": "clean", **names}
    return {one: names[one] for one in found}, " ".join(common).replace("_", " ")


def families(ids: Iterable[str], most: int) -> tuple[list[tuple[str, list[str]]], str]:
    """Variants one by one, or, where they are more than ``most``, over their severities.

    Args:
        ids: Variant ids.
        most: How many are shown one by one.

    Returns:
        Name and ids of each family in the order given (``clean`` is a family of its own), and what
        all of them share.
    """
    names, common = variants(ids)
    found: dict[str, list[str]] = {}
    for one, name in names.items():
        match = _SEVERITY.fullmatch(name) if len(names) > most else None
        found.setdefault(match[1] if match else name, []).append(one)
    return list(found.items()), common


def listed(words: Sequence[str], last: str = "and") -> str:
    """``a, b and c``."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def plural(count: int, one: str, many: str | None = None) -> str:
    """``1 image``, ``1,200 images``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def standard_error(n: int, share: float = 0.5) -> float:
    """Standard error of a share of ``n`` items."""
    return math.sqrt(share * (1 - share) / n) if n else math.nan


def place(dataset: str, split: str | None = None, variant: str | None = None) -> str:
    """Where a number was measured: dataset, split, and the variant unless it is clean."""
    parts = [dataset if not known(split) else f"{dataset} ({split})"]
    if known(variant) and variant != "clean":
        parts.append(next(iter(variants([str(variant)])[0].values())))
    return ", ".join(parts)
