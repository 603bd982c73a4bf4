"""Which of two models is better on the same images: exact paired tests.

Shares of two models on one set of images are no independent samples. What decides is the images on
which the two disagree (McNemar's test in its exact binomial form).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certbench.params import param

if TYPE_CHECKING:
    import pandas as pd

version = 1

rows = ("predictions", "certificates")

across = ("model", "defense")

BARE = "none"


@dataclass(frozen=True)
class Params:
    """Where certificates are compared."""

    radii: tuple[float, ...] = param(
        (0.0, 0.5),
        help="radii at which certified answers are compared",
        unit="the certificate's norm",
        minimum=0,
    )


def compute(group: pd.DataFrame, params: Params, context: Any) -> list[dict[str, Any]]:
    """Every pair of bare models, and every pair of defended models at each radius.

    ``paired_difference:<model>/<defence>`` is the share of images that the model of the row gets
    right beyond those of the one named, over the images that both were shown;
    ``paired_p:...`` the two-sided exact p-value of "equally good" for that one pair, not corrected
    for the number of pairs. The row's note counts the images that only one of them gets right.
    Certificates are compared within one norm.
    """
    made = []
    bare = group["defense"].fillna(BARE).astype(str) == BARE
    answers = group[bare & (group["kind"] == "predictions")]
    for first, second in _pairs(answers):
        made += _rows(first, second, None)
    held = group[~bare & (group["kind"] == "certificates")]
    for _, alike in held.groupby(["threat_kind", "threat_norm"], observed=True, dropna=False):
        for radius in params.radii:
            for first, second in _pairs(alike):
                made += _rows(first, second, radius)
    return made


def _pairs(frame: pd.DataFrame) -> Iterator[tuple[Any, Any]]:
    """Pairs of (key, rows), in the order of their names."""
    named = frame.assign(defense=frame["defense"].fillna(BARE).astype(str))
    series = named.groupby(["model", "defense"], observed=True, sort=True)
    return itertools.combinations(series, 2)


def _rows(first: Any, second: Any, radius: float | None) -> list[dict[str, Any]]:
    from certbench.certify.significance import paired_test
    from certbench.metrics.tabulating import value

    (model, defense), a = first
    (other_model, other_defense), b = second
    keys = ["item_id", "seed"]
    both = _right(a, radius).merge(_right(b, radius), on=keys, suffixes=("_a", "_b"))
    if both.empty:
        return []
    found = paired_test(both["right_a"].to_numpy(bool), both["right_b"].to_numpy(bool))
    against = f"{other_model}/{other_defense}"
    note = f"right only here {found.only_a}, right only there {found.only_b}"
    return [
        {"model": model, "defense": defense, **value(name, number, len(both), radius), "note": note}
        for name, number in (
            (f"paired_difference:{against}", found.difference),
            (f"paired_p:{against}", found.p_value),
        )
    ]


def _right(frame: pd.DataFrame, radius: float | None) -> pd.DataFrame:
    # An unknown label of -1 must not agree with an abstention.
    right = (frame["predict"] == frame["label"]) & (frame["predict"] >= 0)
    if radius is not None:
        right &= frame["radius"] >= radius
    return frame[["item_id", "seed"]].assign(right=right)
