"""Exact p-values of predictions, radii and comparisons, and what holds of many at once.

Pure functions of counts, in float64. Scalars give 0-d values, arrays give arrays.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from certbench.certify import arguments
from certbench.errors import CertbenchError


def predict_pvalue(n1: Any, n2: Any) -> Any:
    """Two-sided exact binomial p-value of PREDICT for the two largest counts; 1.0 for (0, 0).

    min(1, 2 P[Bin(n1 + n2, 1/2) >= max(n1, n2)]). Return the top class where it is <= alpha,
    abstain elsewhere.

    Args:
        n1: Largest counts, integers.
        n2: Second largest counts, integers.

    Raises:
        CertbenchError: Counts are not integers >= 0.

    Source: Cohen et al., ICML 2019, section 3.2 (PREDICT).
    """
    a, b = np.broadcast_arrays(arguments.counts(n1, "n1"), arguments.counts(n2, "n2"))
    most, least = np.maximum(a, b), np.minimum(a, b)
    # P[Bin(N, 1/2) >= k] is the regularised incomplete beta function I_1/2(k, N - k + 1).
    tail = special.betainc(np.maximum(most, 1), least + 1, 0.5)
    return np.where(most > 0, np.minimum(1.0, 2 * tail), 1.0)[()]


def radius_pvalue(successes: Any, trials: Any, radius: Any, sigma: Any) -> Any:
    """p-value of "the radius is at least r": P[Bin(n, Phi(r / sigma)) >= nA].

    It is at most alpha exactly where the CP radius at level alpha is at least r (r > 0).

    Args:
        successes: Votes nA of the class under test.
        trials: Samples n.
        radius: Radii r >= 0 in the units of the image.
        sigma: Noise level, > 0.

    Raises:
        CertbenchError: A value is out of range.
    """
    k, n = arguments.counts_of(successes, trials)
    p = special.ndtr(arguments.not_negative(radius, "radius") / arguments.positive(sigma, "sigma"))
    k, n, p = np.broadcast_arrays(k, n, p)
    return np.where(k > 0, special.betainc(np.maximum(k, 1), n - k + 1, p), 1.0)[()]


class PairedTest(NamedTuple):
    """Outcome of :func:`paired_test`: how often only one of two models is right, and how unlikely.

    Attributes:
        only_a: Items that only model A has right.
        only_b: Items that only model B has right.
        difference: Accuracy of A minus accuracy of B (NaN without items).
        p_value: Two-sided exact p-value of "equally accurate".
    """

    only_a: int
    only_b: int
    difference: float
    p_value: float


def paired_test(correct_a: Any, correct_b: Any) -> PairedTest:
    """Exact McNemar test of two models on the same items.

    Args:
        correct_a: Booleans [m], per item, of model A.
        correct_b: Booleans [m], the same items in the same order, of model B.

    Raises:
        CertbenchError: Not booleans, or of different length.

    Source: McNemar, Psychometrika 1947, in its exact binomial form.
    """
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    for name, array in (("correct_a", a), ("correct_b", b)):
        if array.dtype != bool and array.size:
            raise CertbenchError(f"must hold booleans, not {array.dtype}", where=name)
    if a.shape != b.shape or a.ndim != 1:
        raise CertbenchError(
            f"need one value per item from both models, got shapes {a.shape} and {b.shape}",
            where="correct_b",
            remedy="join the two tables on the item before testing",
        )
    a, b = a.astype(bool), b.astype(bool)
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    difference = (only_a - only_b) / a.size if a.size else math.nan
    return PairedTest(only_a, only_b, difference, float(predict_pvalue(only_a, only_b)))


def holm(p_values: Any, alpha: float) -> np.ndarray:
    """Holm's step-down rule: which of m statements hold together at level alpha.

    Args:
        p_values: p-values [m] in [0, 1].
        alpha: Probability of even one false rejection, in (0, 1).

    Returns:
        Booleans [m]: True where the hypothesis is rejected (the statement is certified).

    Raises:
        CertbenchError: A value is out of range.

    Source: Holm, Scandinavian Journal of Statistics 1979.
    """
    p = np.atleast_1d(arguments.real(p_values, "p_values"))
    if p.ndim != 1 or np.any((p < 0) | (p > 1)):
        raise CertbenchError("must be a list of probabilities", where="p_values")
    order = np.argsort(p, kind="stable")
    passes = p[order] <= float(arguments.level(alpha)) / np.arange(p.size, 0, -1)
    rejected = np.zeros(p.size, dtype=bool)
    rejected[order] = np.logical_and.accumulate(passes)
    return rejected


def high_probability_slack(m: Any, alpha: float, rho: float) -> float:
    """What to take off certified accuracy so that it covers all m items at once.

    At most q of m independent certificates at level alpha are wrong, except with probability
    rho, where q is the smallest integer with P[Bin(m, alpha) > q] <= rho. The slack is q / m. It is
    smaller than the Bernstein slack in print, and exact. Items need independent noise.

    Args:
        m: Items.
        alpha: Error probability of each certificate, in (0, 1).
        rho: Error probability of the statement about the data set, in (0, 1).

    Raises:
        CertbenchError: A value is out of range.
    """
    # A second of import time that only this function needs.
    from scipy import stats

    total = arguments.whole(m, "m")
    a, r = float(arguments.level(alpha)), float(arguments.level(rho, "rho"))
    q = int(stats.binom.isf(r, total, a))
    while q > 0 and stats.binom.sf(q - 1, total, a) <= r:
        q -= 1
    while stats.binom.sf(q, total, a) > r:
        q += 1
    return q / total
