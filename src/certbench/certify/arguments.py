"""Checks of what the statistics of certification are given: counts, levels, radii.

Each returns its argument as an array of the right type or raises :class:`CertbenchError`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from certbench.errors import CertbenchError, did_you_mean


def counts(value: Any, name: str) -> np.ndarray:
    """``value`` as int64, or an error: counts rebuilt from frequencies are not counts."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu" and array.size:
        raise CertbenchError(
            f"must hold whole numbers of type integer, not {array.dtype}",
            where=name,
            remedy="pass the vote counts themselves, never frequencies times n",
        )
    array = array.astype(np.int64)
    if np.any(array < 0):
        raise CertbenchError(f"holds the negative count {array.min()}", where=name)
    return array


def counts_of(successes: Any, trials: Any) -> tuple[np.ndarray, np.ndarray]:
    """Successes and trials as int64, never more of the first than of the second."""
    k, n = counts(successes, "successes"), counts(trials, "trials")
    if np.any(k > n):
        raise CertbenchError(
            "more successes than trials",
            where="successes",
            remedy="check that no shard was counted twice and that trials counts every sample",
        )
    return k, n


def real(value: Any, name: str) -> np.ndarray:
    """``value`` as float64 without NaN."""
    try:
        array = np.asarray(value)
        # A text that numpy would read as a number is no number to the code around this check.
        if value is None or array.dtype.kind in "USb":
            raise TypeError
        array = array.astype(np.float64)
    except (TypeError, ValueError):
        raise CertbenchError(f"is {value!r}, not a number", where=name) from None
    if np.any(np.isnan(array)):
        raise CertbenchError("holds NaN", where=name)
    return array


def level(value: Any, name: str = "alpha") -> np.ndarray:
    """A probability strictly between 0 and 1."""
    array = real(value, name)
    if np.any((array <= 0) | (array >= 1)):
        raise CertbenchError(
            f"must lie strictly between 0 and 1, is {value!r}",
            where=name,
            remedy="an error probability such as 0.001",
        )
    return array


def positive(value: Any, name: str) -> np.ndarray:
    """A finite value above 0: a noise level, a scale."""
    array = real(value, name)
    if np.any((array <= 0) | ~np.isfinite(array)):
        raise CertbenchError(f"must be positive and finite, is {value!r}", where=name)
    return array


def not_negative(value: Any, name: str) -> np.ndarray:
    """A finite value that may be 0: a radius."""
    array = real(value, name)
    if np.any((array < 0) | ~np.isfinite(array)):
        raise CertbenchError(f"must be finite and not negative, is {value!r}", where=name)
    return array


def noise_level(value: Any) -> float:
    """The noise level of a smoothed classifier: one for all images, or no proof covers it."""
    array = real(value, "sigma")
    if array.ndim or not 0 < array < np.inf:
        raise CertbenchError(
            f"is {value}",
            where="sigma",
            remedy="give one noise level above 0 for all images, in [0, 1] pixels",
        )
    if array > 10:
        # Nothing is left of an image under ten times its range: a level of 0 to 255 was meant.
        raise CertbenchError(
            f"is {value}, but pixel values lie in [0, 1]",
            where="sigma",
            remedy=f"for noise of {value} levels of 255 give {float(array) / 255:.4g}",
        )
    return float(array)


def lower_probability(value: Any) -> np.ndarray:
    """A lower limit of a probability, in [0, 1)."""
    array = real(value, "p_lower")
    if np.any((array < 0) | (array >= 1)):
        raise CertbenchError(
            "a lower bound on a probability lies in [0, 1), and no finite sample gives 1",
            where="p_lower",
        )
    return array


def whole(value: Any, name: str, minimum: int = 1) -> int:
    """One integer of at least ``minimum``."""
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "iu" or array < minimum:
        raise CertbenchError(f"must be one integer >= {minimum}, is {value!r}", where=name)
    return int(array)


def choice(value: Any, name: str, choices: Collection[str]) -> None:
    """One of the names."""
    if value not in choices:
        raise CertbenchError(
            f"unknown value {value!r}", where=name, remedy=did_you_mean(value, choices)
        )
