"""Certified accuracy, average certified radius and their company, from rows of certificates.

Rows are a pandas DataFrame or a pyarrow Table with at least ``label``, ``predict`` and ``radius``,
one row per item of one defended model. A prediction of -1 is an abstention; it certifies nothing
and stays in the denominator, as does every other row. ``correct`` is recomputed from ``predict``
and ``label``, because published logs are known to fill that column with a running total.

A metric of no rows is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from certbench.errors import CertbenchError, did_you_mean

# A pandas DataFrame or a pyarrow Table; neither is imported here.
Rows: TypeAlias = Any

ABSTAIN = -1


def certified_accuracy(rows: Rows, radii: Any) -> Any:
    """Share of all rows that are right and certified at least to each radius.

    Args:
        rows: Certificates.
        radii: One radius or an array, in the certificates' units; compared with ``>=`` in float64.

    Returns:
        A float for one radius, an array for an array; NaN without rows.

    Raises:
        CertbenchError: A column is missing, or a radius is NaN.

    Source: Cohen et al., ICML 2019, section 4.
    """
    wanted = _radii(radii)
    certified, total = _certified(rows)
    if not total:
        return _nan(wanted)
    return (_at_least(certified, wanted) / total)[()]


def certified_accuracy_interval(
    rows: Rows, radii: Any, confidence: float = 0.95, method: str = "cp"
) -> tuple[Any, Any]:
    """Confidence interval of certified accuracy over the choice of items.

    It covers sampling of items, not the error probability of the certificates themselves.

    Args:
        rows: Certificates.
        radii: One radius or an array.
        confidence: Coverage, in (0, 1).
        method: ``cp`` or ``wilson``, see ``certify.intervals.binomial_interval``.

    Returns:
        ``(low, high)``, each like ``radii``; NaN without rows.

    Raises:
        CertbenchError: A column is missing or an argument is out of range.
    """
    from certbench.certify.intervals import binomial_interval

    wanted = _radii(radii)
    certified, total = _certified(rows)
    low, high = binomial_interval(_at_least(certified, wanted), total, confidence, method)
    return (low, high) if total else (_nan(wanted), _nan(wanted))


def high_probability_certified_accuracy(rows: Rows, radii: Any, alpha: float, rho: float) -> Any:
    """Certified accuracy less what wrong certificates may contribute to it.

    With probability at least 1 - rho over the noise the smoothed classifier is right and robust on
    at least this share of these items, if each certificate holds with probability 1 - alpha and the
    items' noise is independent. Never below 0.

    Args:
        rows: Certificates.
        radii: One radius or an array.
        alpha: Error probability of each certificate, in (0, 1).
        rho: Error probability of the statement about all items, in (0, 1).

    Returns:
        Like ``radii``; NaN without rows.

    Raises:
        CertbenchError: A column is missing or an argument is out of range.
    """
    from certbench.certify.significance import high_probability_slack

    wanted = _radii(radii)
    certified, total = _certified(rows)
    if not total:
        return _nan(wanted)
    slack = high_probability_slack(total, alpha, rho)
    # Both terms are counts over the same total; subtract there, where it is exact.
    return (np.maximum(_at_least(certified, wanted) - round(slack * total), 0) / total)[()]


def average_certified_radius(rows: Rows) -> float:
    """Mean over all rows of the radius where the prediction is right, 0 elsewhere.

    Equals the integral of certified accuracy over the radius. It grows with the sampling budget and
    is dominated by easy items (Sun et al., arXiv 2410.06895): report :func:`p_a_quantiles` and
    :func:`cap_share` with it.

    Args:
        rows: Certificates.

    Returns:
        A float in the certificates' units; NaN without rows.

    Raises:
        CertbenchError: A column is missing.

    Source: Zhai et al., ICLR 2020 (MACER).
    """
    certified, total = _certified(rows)
    return float(certified.sum() / total) if total else float("nan")


def abstain_rate(rows: Rows) -> float:
    """Share of rows that abstain; NaN without rows.

    Args:
        rows: Certificates.

    Raises:
        CertbenchError: A column is missing.
    """
    predict = _integers(rows, "predict")
    return float(np.mean(predict == ABSTAIN)) if predict.size else float("nan")


def cap_share(rows: Rows) -> float:
    """Share of rows whose radius the sample budget limits (all votes agree), of those that tell.

    Args:
        rows: Certificates; column ``radius_capped``, null where unknown (imported logs).

    Returns:
        A float; NaN where no row tells.
    """
    capped = _optional(rows, "radius_capped")
    return float(np.mean(capped)) if capped.size else float("nan")


def p_a_quantiles(rows: Rows, qs: Any) -> Any:
    """Quantiles of the lower bound on the top class's probability, over the rows that tell.

    Args:
        rows: Certificates; column ``p_lower``, null where unknown (imported logs).
        qs: One quantile or an array, in [0, 1].

    Returns:
        Like ``qs``; NaN where no row tells.

    Raises:
        CertbenchError: A quantile lies outside [0, 1].
    """
    wanted = np.asarray(qs, dtype=np.float64)
    if np.any(~((wanted >= 0) & (wanted <= 1))):
        raise CertbenchError(f"must lie in [0, 1], is {qs!r}", where="qs")
    bounds = _optional(rows, "p_lower")
    return np.quantile(bounds, wanted)[()] if bounds.size else _nan(wanted)


def radius_grid(step: float, count: int) -> np.ndarray:
    """The radii 0, step, 2 step, ...: integers times the step, so that no rounding adds up.

    Args:
        step: Distance of neighbours, > 0.
        count: Number of radii, >= 1.

    Raises:
        CertbenchError: An argument is out of range.
    """
    if not (np.isfinite(step) and step > 0):
        raise CertbenchError(f"must be positive, is {step}", where="step")
    if count < 1:
        raise CertbenchError(f"must be at least 1, is {count}", where="count")
    return np.arange(count) * float(step)


# --- reading rows ------------------------------------------------------------------------------


def _certified(rows: Rows) -> tuple[np.ndarray, int]:
    """Ascending radii of the rows that are right, and the number of all rows."""
    predict, label = _integers(rows, "predict"), _integers(rows, "label")
    radius = np.asarray(_column(rows, "radius"), dtype=np.float64)
    # An unknown label of -1 must not agree with an abstention.
    ok = (predict == label) & (predict != ABSTAIN)
    if np.any(np.isnan(radius[ok])):
        raise CertbenchError(
            "holds nulls in rows that do not abstain",
            where="rows: radius",
            remedy="give every certificate a radius (0 where nothing is certified)",
        )
    return np.sort(radius[ok]), predict.size


def _at_least(ascending: np.ndarray, radii: np.ndarray) -> np.ndarray:
    return np.asarray(ascending.size - np.searchsorted(ascending, radii, side="left"))


def _names(rows: Rows) -> Sequence[str]:
    return rows.column_names if hasattr(rows, "column_names") else list(rows.columns)


def _column(rows: Rows, name: str) -> np.ndarray:
    names = _names(rows)
    if name not in names:
        raise CertbenchError(
            f"has no column '{name}'", where="rows", remedy=did_you_mean(name, names)
        )
    # Tables give nulls as NaN, which turns integer columns that have them into floats.
    return rows[name].to_numpy()


def _integers(rows: Rows, name: str) -> np.ndarray:
    column = _column(rows, name)
    if column.size and column.dtype.kind not in "iu":
        raise CertbenchError(
            f"must hold integers without nulls, is {column.dtype}",
            where=f"rows: {name}",
            remedy="write -1 where the method abstains",
        )
    return column


def _optional(rows: Rows, name: str) -> np.ndarray:
    """Values of a column that are not null, as float64; empty where the column is missing."""
    if name not in _names(rows):
        return np.empty(0)
    column = rows[name]
    known = column.drop_null() if hasattr(column, "drop_null") else column.dropna()
    return known.to_numpy().astype(np.float64)


def _radii(radii: Any) -> np.ndarray:
    wanted = np.asarray(radii, dtype=np.float64)
    if np.any(np.isnan(wanted)):
        raise CertbenchError("holds NaN", where="radii")
    return wanted


def _nan(like: np.ndarray) -> Any:
    return np.full(like.shape, np.nan)[()]
