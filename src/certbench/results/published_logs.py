"""Published certification logs as rows, and whether they were made as they claim.

The logs of Cohen et al. (ICML 2019) and of the repositories that follow it are tab-separated text,
``idx label predict radius correct time``; sigma, data set and model are in the path. What is known
about them is handled here: two formats of ``time``, ``correct`` columns that hold a running total,
radii rounded to three digits (up as well as down), logs of a header alone, and logs made at another
alpha than stated (:func:`ladder_check`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from certbench.errors import CertbenchError
from certbench.results import rows

if TYPE_CHECKING:
    import pyarrow as pa

ABSTAIN = -1

# Columns beyond those of every certificate. A log knows its time; the rest stays null.
COLUMNS = {
    "sigma": "float64",
    "n0": "int64",
    "n": "int64",
    "n_top": "int64",
    "alpha": "float64",
    "p_lower": "float64",
    "radius_capped": "bool",
    "time_s": "float64",
}

# Sample sizes and alphas that published logs may have been made with.
CANDIDATES: tuple[tuple[int, float], ...] = (
    *((100_000, alpha) for alpha in (0.001, 0.01, 0.0005, 0.002, 0.005)),
    (10_000, 0.001),
)

_TIME = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d*)?)")


def read_log(
    path: str | Path,
    sigma: float,
    dataset: str,
    model: str,
    *,
    split: str | None = None,
    norm: str = "l2",
) -> pa.Table:
    """A published log as certificate rows; of a prediction log (no radii) as prediction rows.

    Radii stay as logged. ``correct`` is recomputed from ``predict`` and ``label``. Columns that the
    log does not tell (n0, n, counts, alpha, ...) are null.

    Args:
        path: The log.
        sigma: Smoothing noise level, from the log's path.
        dataset: Identifier of the data set.
        model: Identifier of the model.
        split: Split of the data set, where known.
        norm: Norm of the radii.

    Returns:
        One row per item, in the order of the log; no rows for a log of a header alone.

    Raises:
        CertbenchError: Not such a log; says file and line.
    """
    if not (math.isfinite(sigma) and sigma > 0):
        raise CertbenchError(f"must be positive, is {sigma}", where="sigma")
    header, body = _lines(Path(path))
    certified = "radius" in header
    values: dict[str, list[Any]] = {name: [] for name in header}
    for number, line in body:
        fields = line.split("\t")
        if len(fields) != len(header):
            raise CertbenchError(
                f"has {len(fields)} fields, not {len(header)}",
                where=f"{path}, line {number}",
                remedy="a job that was killed leaves a torn last line: remove it",
            )
        for name, field in zip(header, fields, strict=True):
            try:
                values[name].append(_READERS.get(name, str)(field.strip()))
            except ValueError:
                raise CertbenchError(
                    f"'{field}' is no {name}", where=f"{path}, line {number}"
                ) from None
    index = np.array(values["idx"], np.int64)
    unique, times = np.unique(index, return_counts=True)
    if np.any(times > 1):
        raise CertbenchError(
            f"item {unique[times > 1][0]} appears more than once",
            where=str(path),
            remedy="keep one row per item: repeated rows would count twice",
        )
    label, predict = (np.array(values[name], np.int32) for name in ("label", "predict"))
    columns: dict[str, Any] = {
        "item_index": index,
        "item_id": [str(i) for i in index.tolist()],
        "label": label,
        "predict": predict,
        "correct": (predict == label) & (predict != ABSTAIN),
        "time_s": values.get("time", [None] * len(index)),
    }
    keys: dict[str, Any] = {
        "task": "classification",
        "dataset": dataset,
        "split": split,
        "model": model,
        "sigma": float(sigma),
    }
    if not certified:
        declared = {"sigma": "float64", "time_s": "float64"}
        return rows.table("predictions", columns, keys, declared, length=len(index))
    columns["radius"] = np.array(values["radius"], np.float64)
    columns["abstain"] = predict == ABSTAIN
    keys |= {
        "threat_id": f"lp-{norm}",
        "threat_kind": "lp",
        "threat_norm": norm,
        "threat_space": "pixel01",
        "threat_unit": "item",
        "threat_guarantee": "probabilistic",
    }
    return rows.table("certificates", columns, keys, COLUMNS, length=len(index))


class LadderMatch(NamedTuple):
    """How well radii fit one claim about a log.

    Attributes:
        n: Samples claimed.
        alpha: Error probability claimed.
        share: Share of the positive radii that this claim can produce; NaN without any.
    """

    n: int
    alpha: float
    share: float


def ladder_check(
    radii: Any, sigma: float, candidates: Iterable[tuple[int, float]] = CANDIDATES
) -> list[LadderMatch]:
    """Which (n, alpha) can have made the radii of a log, best first.

    With n samples only n + 1 radii exist. A log made as claimed has a share of exactly 1; small
    radii fit many claims, so several may reach it.

    Args:
        radii: Radii as logged; abstentions (<= 0) are ignored.
        sigma: Noise level, > 0.
        candidates: Pairs of samples and alpha to try; ties keep their order.

    Raises:
        CertbenchError: A value is out of range.
    """
    from certbench.certify.attainable import ladder_share

    found = [LadderMatch(n, a, ladder_share(radii, sigma, n, a)) for n, a in candidates]
    return sorted(found, key=lambda match: -match.share if match.share == match.share else 0.0)


def recertify(radii: Any, sigma: float, n: int, alpha: float, new_alpha: float) -> Any:
    """Radii as they would be at another alpha, from the counts behind them.

    Args:
        radii: One-bound radii of n samples at ``alpha``, as logged; 0 where they abstain.
        sigma: Noise level, > 0.
        n: Samples of the log.
        alpha: Error probability that the log was made with (see :func:`ladder_check`).
        new_alpha: Error probability wanted.

    Returns:
        Radii in full precision, 0.0 where the counts certify nothing.

    Raises:
        CertbenchError: A radius lies above what n samples at ``alpha`` can give.
    """
    from certbench.certify.attainable import ladder_inverse
    from certbench.certify.intervals import cp_lower
    from certbench.certify.radii import radius_one

    counts = ladder_inverse(radii, sigma, n, alpha)
    return radius_one(cp_lower(np.maximum(counts, 0), n, new_alpha), sigma)


def seconds(text: str) -> float:
    """Seconds of a log's ``time``: ``16.9``, ``0:02:13.5``, ``1 day, 0:00:01``.

    Args:
        text: The field.

    Raises:
        ValueError: Neither a number nor a duration.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        return _finite(text)
    days, hours, minutes, rest = match.groups()
    return int(days or 0) * 86400 + int(hours) * 3600 + int(minutes) * 60 + float(rest)


def _finite(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(text)
    return value


def _whole(text: str, least: int, largest: int) -> int:
    value = int(text)
    if not least <= value <= largest:
        raise ValueError(text)
    return value


# ``correct`` is read as text and forgotten: some logs keep a running total there.
_READERS: dict[str, Any] = {
    "idx": partial(_whole, least=0, largest=2**32 - 1),
    "label": partial(_whole, least=-1, largest=2**31 - 1),
    "predict": partial(_whole, least=ABSTAIN, largest=2**31 - 1),
    "radius": _finite,
    "time": seconds,
}


def _lines(path: Path) -> tuple[list[str], list[tuple[int, str]]]:
    """Header and numbered lines of a log, blank ones left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows editors put a mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise CertbenchError(f"cannot be read: {error}", where=str(path)) from error
    numbered = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    header = [name.strip() for name in numbered[0][1].split("\t")] if numbered else []
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise CertbenchError(f"has two columns {twice[0]}", where=str(path))
    missing = [name for name in ("idx", "label", "predict") if name not in header]
    if missing:
        raise CertbenchError(
            f"is no certification log: its first line lacks {', '.join(missing)}",
            where=str(path),
            remedy="expected tab-separated idx, label, predict, radius, correct, time",
        )
    return header, numbered[1:]
