"""Confidence limits of a proportion from counts of votes.

Pure functions of integer counts, in float64, vectorised by broadcasting. Scalars give 0-d values
(``numpy.float64`` is a ``float``), arrays give arrays. CP stands for Clopper-Pearson.

Sources: Clopper and Pearson, Biometrika 1934; Cohen, Rosenfeld and Kolter, ICML 2019 (the limits of
CERTIFY); Voracek, NeurIPS 2024 (randomised limit); Wilson, JASA 1927.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

from certbench.certify import arguments
from certbench.errors import CertbenchError

#: How far float64 limits may lie from the exact ones: measured, 2e-14 for up to 2 million trials
#: against 45-digit arithmetic. Certificates take it off, so that no radius is overstated.
LIMIT_ERROR = 1e-13


def cp_lower(successes: Any, trials: Any, alpha: Any) -> Any:
    """One-sided lower Clopper-Pearson limit: P[limit > p] <= alpha for every true p.

    Args:
        successes: Counts nA, integers with 0 <= nA <= n.
        trials: Counts n, integers.
        alpha: Error probability of this one side, in (0, 1).

    Returns:
        Limits in [0, 1): 0 where nA = 0, alpha^(1/n) where nA = n.

    Raises:
        CertbenchError: Counts are not integers, nA > n, or alpha is out of range.
    """
    k, n = arguments.counts_of(successes, trials)
    k, n, a = np.broadcast_arrays(k, n, arguments.level(alpha))
    inner = (k > 0) & (k < n)
    # The beta quantile is undefined at the ends of the range: closed forms there.
    limit = special.betaincinv(np.where(inner, k, 1), np.where(inner, n - k + 1, 1), a)
    all_agree = np.exp(np.log(a) / np.maximum(n, 1))
    return np.where(inner, limit, np.where(k == 0, 0.0, all_agree))[()]


def cp_upper(successes: Any, trials: Any, alpha: Any) -> Any:
    """One-sided upper Clopper-Pearson limit: P[limit < p] <= alpha for every true p.

    Args:
        successes: Counts, integers with 0 <= successes <= trials.
        trials: Counts n, integers.
        alpha: Error probability of this one side, in (0, 1).

    Returns:
        Limits in (0, 1]: 1 where successes = n, 1 - alpha^(1/n) where successes = 0.

    Raises:
        CertbenchError: Counts are not integers, successes > trials, or alpha is out of range.
    """
    k, n = arguments.counts_of(successes, trials)
    k, n, a = np.broadcast_arrays(k, n, arguments.level(alpha))
    inner = (k > 0) & (k < n)
    # The complemented inverse takes alpha itself, so that 1 - alpha is never rounded.
    limit = special.betainccinv(np.where(inner, k + 1, 1), np.where(inner, n - k, 1), a)
    none_agree = -np.expm1(np.log(a) / np.maximum(n, 1))
    return np.where(inner, limit, np.where(k == n, 1.0, none_agree))[()]


def cp_lower_randomised(successes: Any, trials: Any, alpha: Any, u: Any) -> Any:
    """Lower limit with exact coverage, for one uniform coin ``u`` fixed per item before sampling.

    Solves P[Bin(n, p) > nA] + u P[Bin(n, p) = nA] = alpha for p; ``u = 1`` is :func:`cp_lower` and
    a smaller coin gives a larger limit. Where all votes agree, a coin below 2 alpha counts as
    2 alpha: the equation would give limits up to 1, which no finite sample supports (rounding the
    coin up is conservative).

    Args:
        successes: Counts nA, integers with 0 <= nA <= n.
        trials: Counts n, integers.
        alpha: Error probability, in (0, 1).
        u: Coins in (0, 1], drawn once per item and kept (see ``noise.uniform_coin``).

    Raises:
        CertbenchError: A value is out of range.

    Source: Voracek, NeurIPS 2024 (arXiv 2406.17830).
    """
    k, n = arguments.counts_of(successes, trials)
    coin = arguments.real(u, "u")
    if np.any((coin <= 0) | (coin > 1)):
        raise CertbenchError(f"must lie in (0, 1], is {u!r}", where="u")
    k, n, a, coin = np.broadcast_arrays(k, n, arguments.level(alpha), coin)

    none_agree = np.zeros(k.shape)
    with np.errstate(divide="ignore"):
        shrink = np.log1p(-a) - np.log1p(-coin)
    positive = (k == 0) & (coin < a) & (n > 0)
    none_agree[positive] = -np.expm1(shrink[positive] / n[positive])
    clipped = np.minimum(1.0, np.maximum(coin, 2 * a))
    all_agree = np.exp(np.log(a / clipped) / np.maximum(n, 1))

    # Inside, bisect between the CP limits of nA (coin 1) and nA + 1 (coin 0); keep the lower end.
    inner = (k > 0) & (k < n)
    ki, ni = np.where(inner, k, 1), np.where(inner, n, 2)
    low, high = np.asarray(cp_lower(ki, ni, a)), np.asarray(cp_lower(ki + 1, ni, a))
    for _ in range(60):
        middle = 0.5 * (low + high)
        tail = coin * special.betainc(ki, ni - ki + 1, middle)
        tail = tail + (1 - coin) * special.betainc(ki + 1, ni - ki, middle)
        low = np.where(tail <= a, middle, low)
        high = np.where(tail <= a, high, middle)
    return np.where(inner, low, np.where(k == 0, none_agree, all_agree))[()]


def two_bounds(successes: Any, runner_up: Any, trials: Any, alpha: Any) -> tuple[Any, Any]:
    """Lower bound on the top class and upper bound on every other, together at level alpha.

    Each side takes alpha / 2. No union over the other classes is needed: the upper limit grows with
    the count, so that of the largest other count dominates that of the truly strongest other class.

    Args:
        successes: Votes of the class under test (chosen independently of these samples).
        runner_up: Largest count among all other classes.
        trials: Samples n, including invalid votes.
        alpha: Error probability of both statements together, in (0, 1).

    Returns:
        ``(p_lower, p_upper_runner)``, the latter at most 1 - p_lower, for ``radii.radius_two``.

    Raises:
        CertbenchError: A value is out of range, or the two counts exceed n.
    """
    k, n = arguments.counts_of(successes, trials)
    other, _ = arguments.counts_of(runner_up, trials)
    if np.any(k + other > n):
        raise CertbenchError("top and runner-up votes exceed the trials", where="runner_up")
    half = arguments.level(alpha) / 2
    p_lower = cp_lower(k, n, half)
    return p_lower, np.minimum(cp_upper(other, n, half), 1 - p_lower)[()]


def binomial_interval(
    successes: Any, trials: Any, confidence: float = 0.95, method: str = "cp"
) -> tuple[Any, Any]:
    """Two-sided confidence interval of a proportion; (0, 1) without trials.

    Args:
        successes: Counts, integers.
        trials: Counts, integers.
        confidence: Coverage, in (0, 1).
        method: ``cp`` (never below the stated coverage) or ``wilson`` (close to it on average).

    Returns:
        ``(low, high)``.

    Raises:
        CertbenchError: A value is out of range or the method is unknown.

    Source: Clopper and Pearson, 1934; Wilson, JASA 1927.
    """
    k, n = arguments.counts_of(successes, trials)
    tail = (1 - float(arguments.level(confidence, "confidence"))) / 2
    if method == "cp":
        return cp_lower(k, n, tail), cp_upper(k, n, tail)
    if method != "wilson":
        raise CertbenchError(
            f"unknown interval '{method}'", where="method", remedy="choices: cp, wilson"
        )
    k, n = np.broadcast_arrays(k, n)
    z2 = float(special.ndtri(tail)) ** 2
    m = np.maximum(n, 1)
    centre = (k + z2 / 2) / (m + z2)
    half = np.sqrt(z2 * (k * (m - k) / m + z2 / 4)) / (m + z2)
    # The ends are exactly 0 and 1 at the ends of the range; the formula leaves rounding there.
    low = np.where((k == 0) | (n == 0), 0.0, centre - half)
    high = np.where((k == n) | (n == 0), 1.0, centre + half)
    return low[()], high[()]
