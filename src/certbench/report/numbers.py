"""Numbers of the tables by what they are about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certbench.figures import wording

if TYPE_CHECKING:
    import pandas as pd

PLACE = ("dataset", "split", "view")

CHECK = "check:"
"""How rows begin that check an evaluation rather than measure a model."""


@dataclass(frozen=True)
class Value:
    """A number with its interval.

    Attributes:
        value: The number.
        low: Lower end of the interval, or None.
        high: Upper end.
        n: Number of items it is about.
    """

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def percent(self) -> str:
        """As a percentage."""
        return wording.percent(self.value)

    @property
    def interval(self) -> str:
        """The interval in percent; empty where there is none."""
        return wording.interval(self.low, self.high)


class Numbers:
    """Look numbers up by metric and keys.

    Args:
        table: Rows of tables, each number once; checks, and means over variants, are left out.
    """

    def __init__(self, table: pd.DataFrame):
        self._found: dict[tuple, dict[tuple, Value]] = {}
        self.places: list[tuple[str, str, str]] = []
        self.pairs: dict[tuple, list[tuple[str, str]]] = {}
        self.variants: dict[tuple, list[str]] = {}
        self.attacks: dict[tuple, list[tuple[str, str]]] = {}
        for row in table.itertuples():
            if row.metric.startswith(CHECK) or not wording.known(row.variant_id):
                continue
            place = (row.dataset, row.split, row.view)
            _append(self.places, place)
            _append(self.pairs.setdefault(place, []), (row.model, row.defense or "none"))
            _append(self.variants.setdefault(place, []), row.variant_id)
            attack = row.attack if wording.known(row.attack) and row.attack else None
            if attack:
                _append(self.attacks.setdefault(place, []), (attack, row.threat_id))
            if not wording.known(row.value):
                continue
            key = (place, row.variant_id, row.model, row.defense or "none", row.metric)
            more = (attack, _number(row.parameter))
            low, high = (float(x) if wording.known(x) else None for x in (row.low, row.high))
            entry = Value(float(row.value), low, high, int(row.n))
            self._found.setdefault(key, {})[more] = entry

    def get(
        self,
        metric: str,
        place: tuple,
        pair: tuple[str, str],
        variant: str = "clean",
        attack: str | None = None,
        parameter: float | None = None,
    ) -> Value | None:
        """One number, or None where it was not measured."""
        found = self._found.get((place, variant, *pair, metric), {})
        return found.get((attack, _number(parameter)))

    def over(
        self,
        metric: str,
        place: tuple,
        pair: tuple[str, str],
        variant: str = "clean",
    ) -> Mapping[float | None, Value]:
        """All values of a metric by parameter (radius, quantile), in ascending order."""
        found = self._found.get((place, variant, *pair, metric), {})
        return {key[1]: found[key] for key in sorted(found, key=_by_parameter)}

    def metrics(self, place: tuple, pair: tuple[str, str], variant: str = "clean") -> list[str]:
        """Names of what was measured."""
        return [key[-1] for key in self._found if key[:-1] == (place, variant, *pair)]

    def radii(self, place: tuple) -> list[float]:
        """Radii above 0 at which certified accuracy is reported."""
        found = {
            parameter
            for key, values in self._found.items()
            if key[0] == place and key[-1] == "certified_accuracy"
            for _, parameter in values
            if parameter
        }
        return sorted(found)

    def variants_of(self, place: tuple, pair: tuple[str, str]) -> list[str]:
        """Variants on which a pair was measured."""
        return [
            variant
            for variant in self.variants.get(place, [])
            if any(key[:4] == (place, variant, *pair) for key in self._found)
        ]


def defended(pair: tuple[str, str]) -> bool:
    """Whether the pair of model and defence has a defence."""
    return not wording.bare(pair[1])


def _append(found: list, entry: Any) -> None:
    if entry not in found:
        found.append(entry)


def _number(value: Any) -> float | None:
    return round(float(value), 9) if wording.known(value) else None


def _by_parameter(key: tuple[str | None, float | None]) -> tuple[str, float]:
    return key[0] or "", key[1] if key[1] is not None else -1.0
