"""From vote counts to bounds, radii and decisions: the statistics of randomized smoothing.

Everything here is a pure function of integer counts, in float64, vectorised by broadcasting, and
needs numpy and scipy only. Scalars give 0-d values (``numpy.float64`` is a ``float``), arrays give
arrays. Radii are 0.0 where the method abstains. CP stands for Clopper-Pearson.

Sources: Cohen, Rosenfeld and Kolter, ICML 2019 (certify and predict); Clopper and Pearson,
Biometrika 1934; Voracek, NeurIPS 2024 (randomised limit); Ugare et al., ICLR 2024 (incremental
certification); Yang et al., ICML 2020 and Teng et al., 2020 (other norms); Chiang et al.,
NeurIPS 2020 (median smoothing).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from certbench.errors import CertbenchError

ABSTAIN = -1


# --- checks of the input ---------------------------------------------------------------------


def _counts(value: Any, name: str) -> np.ndarray:
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


def _counts_of(successes: Any, trials: Any) -> tuple[np.ndarray, np.ndarray]:
    k, n = _counts(successes, "successes"), _counts(trials, "trials")
    if np.any(k > n):
        raise CertbenchError(
            "more successes than trials",
            where="successes",
            remedy="check that no shard was counted twice and that trials counts every sample",
        )
    return k, n


def _real(value: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise CertbenchError(f"is {value!r}, not a number", where=name) from None
    if np.any(np.isnan(array)):
        raise CertbenchError("holds NaN", where=name)
    return array


def _level(value: Any, name: str = "alpha") -> np.ndarray:
    array = _real(value, name)
    if np.any((array <= 0) | (array >= 1)):
        raise CertbenchError(
            f"must lie strictly between 0 and 1, is {value!r}",
            where=name,
            remedy="an error probability such as 0.001",
        )
    return array


def _positive(value: Any, name: str) -> np.ndarray:
    array = _real(value, name)
    if np.any((array <= 0) | ~np.isfinite(array)):
        raise CertbenchError(f"must be positive and finite, is {value!r}", where=name)
    return array


def _not_negative(value: Any, name: str) -> np.ndarray:
    array = _real(value, name)
    if np.any((array < 0) | ~np.isfinite(array)):
        raise CertbenchError(f"must be finite and not negative, is {value!r}", where=name)
    return array


def _lower_probability(value: Any) -> np.ndarray:
    array = _real(value, "p_lower")
    if np.any((array < 0) | (array >= 1)):
        raise CertbenchError(
            "a lower bound on a probability lies in [0, 1), and no finite sample gives 1",
            where="p_lower",
        )
    return array


def _whole(value: Any, name: str, minimum: int = 1) -> int:
    array = _counts(value, name)
    if array.ndim or array < minimum:
        raise CertbenchError(f"must be one integer >= {minimum}, is {value!r}", where=name)
    return int(array)


# --- bounds on a probability -----------------------------------------------------------------


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
    k, n = _counts_of(successes, trials)
    k, n, a = np.broadcast_arrays(k, n, _level(alpha))
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
    k, n = _counts_of(successes, trials)
    k, n, a = np.broadcast_arrays(k, n, _level(alpha))
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
    k, n = _counts_of(successes, trials)
    coin = _real(u, "u")
    if np.any((coin <= 0) | (coin > 1)):
        raise CertbenchError(f"must lie in (0, 1], is {u!r}", where="u")
    k, n, a, coin = np.broadcast_arrays(k, n, _level(alpha), coin)

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
        ``(p_lower, p_upper_runner)``, the latter at most 1 - p_lower, for :func:`radius_two`.

    Raises:
        CertbenchError: A value is out of range, or the two counts exceed n.
    """
    k, n = _counts_of(successes, trials)
    other, _ = _counts_of(runner_up, trials)
    if np.any(k + other > n):
        raise CertbenchError("top and runner-up votes exceed the trials", where="runner_up")
    half = _level(alpha) / 2
    p_lower = cp_lower(k, n, half)
    return p_lower, np.minimum(cp_upper(other, n, half), 1 - p_lower)[()]


# --- radii -----------------------------------------------------------------------------------


def radius_one(p_lower: Any, sigma: Any) -> Any:
    """l2 radius sigma Phi^-1(pA_low) of the one-bound certificate; 0.0 where pA_low <= 1/2.

    Args:
        p_lower: Lower bounds on the top class's probability, in [0, 1).
        sigma: Noise level in the units of the image, > 0.

    Raises:
        CertbenchError: A value is out of range.

    Source: Cohen et al., ICML 2019, section 3.2.
    """
    p = _lower_probability(p_lower)
    scale = _positive(sigma, "sigma")
    return np.where(p > 0.5, scale * special.ndtri(np.maximum(p, 0.5)), 0.0)[()]


def radius_two(p_lower: Any, p_upper_runner: Any, sigma: Any) -> Any:
    """l2 radius of the two-bound certificate; 0.0 where pA_low <= pB_up.

    (sigma / 2) (Phi^-1(pA_low) - Phi^-1(pB_up)) with pB_up capped at 1 - pA_low, where it equals
    :func:`radius_one`.

    Args:
        p_lower: Lower bounds on the top class, in [0, 1).
        p_upper_runner: Upper bounds on every other class, in (0, 1].
        sigma: Noise level in the units of the image, > 0.

    Raises:
        CertbenchError: A value is out of range.

    Source: Cohen et al., ICML 2019, theorem 1.
    """
    p = _lower_probability(p_lower)
    q = _real(p_upper_runner, "p_upper_runner")
    if np.any((q <= 0) | (q > 1)):
        raise CertbenchError(
            "an upper bound on a probability lies in (0, 1]", where="p_upper_runner"
        )
    scale = _positive(sigma, "sigma")
    p, q = np.broadcast_arrays(p, q)
    holds = p > q
    safe_p, safe_q = np.where(holds, p, 0.75), np.where(holds, q, 0.25)
    above = special.ndtri(safe_p)
    below = np.where(safe_q >= 1 - safe_p, -above, special.ndtri(safe_q))
    # At p <= 1/2 the cap 1 - p is not below p: it can bind only where the bound abstains anyway.
    return np.where(holds & (above > below), scale / 2 * (above - below), 0.0)[()]


def round_down(radius: Any) -> Any:
    """Radii made slightly smaller, so that rounding in their computation cannot overstate them.

    Positive radii become x (1 - 1e-12), then the next float64 towards 0; others stay.

    Args:
        radius: Radii, float64.

    Raises:
        CertbenchError: A radius is NaN.
    """
    x = _real(radius, "radius")
    return np.where(x > 0, np.nextafter(x * (1 - 1e-12), 0.0), x)[()]


def radius_cap(n: Any, alpha: Any, sigma: Any) -> Any:
    """The largest one-bound radius that n samples can certify: all of them agree.

    Args:
        n: Samples.
        alpha: Error probability, in (0, 1).
        sigma: Noise level, > 0.

    Raises:
        CertbenchError: A value is out of range.
    """
    return radius_one(cp_lower(n, n, alpha), sigma)


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
    k, n = _counts_of(successes, trials)
    p = special.ndtr(_not_negative(radius, "radius") / _positive(sigma, "sigma"))
    k, n, p = np.broadcast_arrays(k, n, p)
    return np.where(k > 0, special.betainc(np.maximum(k, 1), n - k + 1, p), 1.0)[()]


def vote_threshold(n: Any, alpha: float, radius: float, sigma: float) -> int | None:
    """The smallest count of n that certifies ``radius``, or None if not even n does.

    Args:
        n: Samples.
        alpha: Error probability, in (0, 1).
        radius: Radius r >= 0; 0 asks for the smallest count that does not abstain.
        sigma: Noise level, > 0.

    Raises:
        CertbenchError: A value is out of range.
    """
    total = _whole(n, "n")
    wanted = float(_not_negative(radius, "radius"))
    _positive(sigma, "sigma")

    def certifies(count: int) -> bool:
        reached = float(radius_one(cp_lower(count, total, alpha), sigma))
        return reached > 0 and reached >= wanted

    if not certifies(total):
        return None
    low, high = 0, total  # low never certifies: its limit is 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if certifies(middle) else (middle, high)
    return high


def minimum_samples(alpha: float, radius: float = 0.0, sigma: float = 1.0) -> int:
    """The fewest samples with which CERTIFY can answer (and reach ``radius``) at level alpha.

    Args:
        alpha: Error probability, in (0, 1).
        radius: Radius that must be within reach; 0 asks only for not abstaining.
        sigma: Noise level of that radius, > 0.

    Raises:
        CertbenchError: A value is out of range, or the radius needs more than 2^62 samples.
    """
    level = float(_level(alpha))
    z = float(_not_negative(radius, "radius")) / float(_positive(sigma, "sigma"))
    needed = math.log(level) / float(special.log_ndtr(z)) if special.log_ndtr(z) < 0 else math.inf
    if needed > 2**62:
        raise CertbenchError(f"no feasible number of samples reaches {z:.4g} sigma", where="radius")
    n = max(1, math.ceil(needed) - 2)  # the quotient may be off by rounding: step up and look
    while not (radius_cap(n, level, 1.0) > 0 and radius_cap(n, level, 1.0) >= z):
        n += 1
    return n


def minimum_predict_samples(alpha: float) -> int:
    """The fewest samples with which PREDICT can answer: 2 (1/2)^n <= alpha.

    Args:
        alpha: Error probability, in (0, 1).

    Raises:
        CertbenchError: Alpha is out of range.
    """
    level = float(_level(alpha))
    n = 1
    while predict_pvalue(n, 0) > level:
        n += 1
    return n


# --- decisions and tests -----------------------------------------------------------------------


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
    a, b = np.broadcast_arrays(_counts(n1, "n1"), _counts(n2, "n2"))
    most, least = np.maximum(a, b), np.minimum(a, b)
    # P[Bin(N, 1/2) >= k] is the regularised incomplete beta function I_1/2(k, N - k + 1).
    tail = special.betainc(np.maximum(most, 1), least + 1, 0.5)
    return np.where(most > 0, np.minimum(1.0, 2 * tail), 1.0)[()]


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
    p = np.atleast_1d(_real(p_values, "p_values"))
    if p.ndim != 1 or np.any((p < 0) | (p > 1)):
        raise CertbenchError("must be a list of probabilities", where="p_values")
    order = np.argsort(p, kind="stable")
    passes = p[order] <= float(_level(alpha)) / np.arange(p.size, 0, -1)
    rejected = np.zeros(p.size, dtype=bool)
    rejected[order] = np.logical_and.accumulate(passes)
    return rejected


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
    k, n = _counts_of(successes, trials)
    tail = (1 - float(_level(confidence, "confidence"))) / 2
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
    # A second of import time that only these two functions need.
    from scipy import stats

    total = _whole(m, "m")
    a, r = float(_level(alpha)), float(_level(rho, "rho"))
    q = int(stats.binom.isf(r, total, a))
    while q > 0 and stats.binom.sf(q - 1, total, a) <= r:
        q -= 1
    while stats.binom.sf(q, total, a) > r:
        q += 1
    return q / total


# --- the ladder of attainable radii ------------------------------------------------------------


@lru_cache(maxsize=16)
def _unit_ladder(n: int, alpha: float) -> np.ndarray:
    rungs = np.asarray(radius_one(cp_lower(np.arange(n + 1), n, alpha), 1.0))
    rungs.setflags(write=False)
    return rungs


def ladder(n: Any, alpha: float, sigma: float) -> np.ndarray:
    """All one-bound radii that n samples can give, for the counts 0..n (0.0 where they abstain).

    Args:
        n: Samples.
        alpha: Error probability, in (0, 1).
        sigma: Noise level, > 0.

    Returns:
        float64 [n + 1], non-decreasing.

    Raises:
        CertbenchError: A value is out of range.
    """
    scale = float(_positive(sigma, "sigma"))
    return scale * _unit_ladder(_whole(n, "n"), float(_level(alpha)))


def ladder_inverse(radii: Any, sigma: float, n: Any, alpha: float) -> Any:
    """The counts behind radii: the nearest rung of the ladder, -1 where the radius is not positive.

    Exact for radii in full precision; for logs of three digits, one of the counts that print alike.

    Args:
        radii: One-bound radii in the units of the image.
        sigma: Noise level, > 0.
        n: Samples.
        alpha: Error probability, in (0, 1).

    Raises:
        CertbenchError: A value is out of range, or a radius lies above the ladder's top.
    """
    values = _real(radii, "radii")
    rungs = ladder(n, alpha, sigma)
    if values.size and values.max() > rungs[-1] * 1.005:
        raise CertbenchError(
            f"radius {values.max():.6g} lies above {rungs[-1]:.6g}, the largest that {n} samples "
            f"give at alpha {alpha:g} and sigma {sigma:g}",
            where="radii",
            remedy="compare alphas with published_logs.ladder_check",
        )
    right = np.clip(np.searchsorted(rungs, values), 1, rungs.size - 1)
    nearer_left = values - rungs[right - 1] <= rungs[right] - values
    # Rung 0.0 stands for every abstaining count: a positive radius never maps to it.
    nearer_left &= rungs[right - 1] > 0
    return np.where(values > 0, right - nearer_left, -1)[()]


def ladder_share(radii: Any, sigma: float, n: Any, alpha: float) -> float:
    """The share of positive radii that n samples at this alpha can give, to three digits as logged.

    Args:
        radii: Radii as logged (three significant digits) or finer; abstentions (<= 0) are ignored.
        sigma: Noise level, > 0.
        n: Samples claimed.
        alpha: Error probability claimed, in (0, 1).

    Returns:
        A value in [0, 1], NaN without positive radii. Below 1 the log was not made as claimed.

    Raises:
        CertbenchError: A value is out of range.
    """
    values = np.atleast_1d(_real(radii, "radii"))
    printed = _printed_ladder(
        _whole(n, "n"), float(_level(alpha)), float(_positive(sigma, "sigma"))
    )
    values = values[values > 0]
    if not values.size:
        return math.nan
    return float(np.mean([f"{value:.3g}" in printed for value in values.tolist()]))


@lru_cache(maxsize=64)
def _printed_ladder(n: int, alpha: float, sigma: float) -> frozenset[str]:
    return frozenset(f"{rung:.3g}" for rung in ladder(n, alpha, sigma).tolist() if rung > 0)


# --- incremental certification, other norms, median smoothing ------------------------------------


def incremental_radius(
    successes: Any,
    trials: Any,
    disagreements: Any,
    pairs: Any,
    sigma: Any,
    alpha: Any,
    alpha_disagreement: Any = None,
) -> Any:
    """Radius of a modified model from the counts of the original and their rate of disagreement.

    pA' >= pA - zeta, where zeta is the probability that the two disagree under the noise, bounded
    from pairs that share their noise: R' = sigma Phi^-1(pA_low - zeta_up). 0.0 where it abstains.

    Args:
        successes: Votes nA of the original model.
        trials: Its samples n.
        disagreements: Pairs on which the two models vote differently.
        pairs: Pairs of samples compared.
        sigma: Noise level, > 0.
        alpha: Error probability of the whole statement, in (0, 1).
        alpha_disagreement: The part of alpha spent on zeta; half of it by default.

    Raises:
        CertbenchError: A value is out of range.

    Source: Ugare et al., ICLR 2024 (arXiv 2305.19521).
    """
    total = _level(alpha)
    part = total / 2 if alpha_disagreement is None else _level(alpha_disagreement)
    if np.any(part >= total):
        raise CertbenchError("must leave a part of alpha for pA", where="alpha_disagreement")
    p_lower = cp_lower(successes, trials, total - part)
    zeta = cp_upper(disagreements, pairs, part)
    return radius_one(np.maximum(p_lower - zeta, 0.0), sigma)


def radius_linf_from_l2(radius: Any, dimension: Any) -> Any:
    """The linf radius implied by an l2 radius: R / sqrt(d).

    Args:
        radius: l2 radii >= 0.
        dimension: Number of inputs d = C x H x W.

    Raises:
        CertbenchError: A value is out of range.
    """
    return (_not_negative(radius, "radius") / math.sqrt(_whole(dimension, "dimension")))[()]


def radius_l1_uniform(p_lower: Any, half_width: Any) -> Any:
    """The l1 radius 2 lambda (pA_low - 1/2) under uniform noise of half-width lambda.

    Args:
        p_lower: Lower bounds on the top class, in [0, 1).
        half_width: lambda > 0, which is sqrt(3) times the standard deviation per input.

    Raises:
        CertbenchError: A value is out of range.

    Source: Yang et al., ICML 2020.
    """
    p = _lower_probability(p_lower)
    return np.maximum(2 * _positive(half_width, "half_width") * (p - 0.5), 0.0)[()]


def radius_linf_uniform(p_lower: Any, half_width: Any, dimension: Any) -> Any:
    """The linf radius 2 lambda (1 - (3/2 - pA_low)^(1/d)) under uniform noise of half-width lambda.

    Args:
        p_lower: Lower bounds on the top class, in [0, 1).
        half_width: lambda > 0.
        dimension: Number of inputs d.

    Raises:
        CertbenchError: A value is out of range.

    Source: Yang et al., ICML 2020.
    """
    p = np.maximum(_lower_probability(p_lower), 0.5)
    shrink = -np.expm1(np.log(1.5 - p) / _whole(dimension, "dimension"))
    return np.where(p > 0.5, 2 * _positive(half_width, "half_width") * shrink, 0.0)[()]


def radius_l1_laplace(p_lower: Any, scale: Any) -> Any:
    """The l1 radius -b ln(2 (1 - pA_low)) under Laplace noise of scale b; 0.0 where pA_low <= 1/2.

    Args:
        p_lower: Lower bounds on the top class, in [0, 1).
        scale: b > 0 (the standard deviation is sqrt(2) b).

    Raises:
        CertbenchError: A value is out of range.

    Source: Teng et al., 2020.
    """
    p = np.maximum(_lower_probability(p_lower), 0.5)
    return np.where(p > 0.5, -_positive(scale, "scale") * np.log(2 * (1 - p)), 0.0)[()]


def median_smoothing_indices(
    n: Any, percentile: float, epsilon: float, sigma: float, alpha: float
) -> tuple[int | None, int | None]:
    """Order statistics that enclose a percentile-smoothed value under every shift up to epsilon.

    For p = ``percentile`` the smoothed value at any point within l2 distance epsilon lies between
    the percentiles Phi(Phi^-1(p) -/+ epsilon / sigma) at the centre. The sorted samples at the two
    returned places enclose those, each side failing with probability at most alpha / 2.

    Args:
        n: Samples.
        percentile: p in (0, 1); 0.5 is the median.
        epsilon: l2 size of the shift, >= 0.
        sigma: Noise level, > 0.
        alpha: Error probability of both sides together, in (0, 1).

    Returns:
        ``(lower, upper)``, 1-based places in ascending order; None where n samples give no bound.

    Raises:
        CertbenchError: A value is out of range.

    Source: Chiang et al., NeurIPS 2020.
    """
    # A second of import time that only these two functions need.
    from scipy import stats

    total = _whole(n, "n")
    tail = float(_level(alpha)) / 2
    centre = float(special.ndtri(float(_level(percentile, "percentile"))))
    shift = float(_not_negative(epsilon, "epsilon")) / float(_positive(sigma, "sigma"))
    low_p, high_p = float(special.ndtr(centre - shift)), float(special.ndtr(centre + shift))
    # Lower place: the largest q with P[Bin(n, low_p) <= q - 1] <= tail.
    below = int(stats.binom.ppf(tail, total, low_p))
    while below > 0 and stats.binom.cdf(below - 1, total, low_p) > tail:
        below -= 1
    while below < total and stats.binom.cdf(below, total, low_p) <= tail:
        below += 1
    # Upper place: the smallest q with P[Bin(n, high_p) >= q] <= tail.
    above = int(stats.binom.isf(tail, total, high_p)) + 1
    while above > 1 and stats.binom.sf(above - 2, total, high_p) <= tail:
        above -= 1
    while above <= total and stats.binom.sf(above - 1, total, high_p) > tail:
        above += 1
    return (below if below > 0 else None), (above if above <= total else None)
