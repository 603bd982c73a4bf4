"""What n samples at a level can certify at all: the largest radius, the rungs below it, and n.

With n samples only n + 1 counts are possible, so the radii that a one-bound certificate can report
form a *ladder*. It tells how many samples a radius needs, and whether a published log was made with
the samples and the level that it claims.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import special

from certbench.certify import arguments
from certbench.certify.intervals import cp_lower
from certbench.certify.radii import radius_one
from certbench.certify.significance import predict_pvalue
from certbench.errors import CertbenchError


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
    total = arguments.whole(n, "n")
    wanted = float(arguments.not_negative(radius, "radius"))
    arguments.positive(sigma, "sigma")

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
    level = float(arguments.level(alpha))
    z = float(arguments.not_negative(radius, "radius")) / float(arguments.positive(sigma, "sigma"))
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
    level = float(arguments.level(alpha))
    n = 1
    while predict_pvalue(n, 0) > level:
        n += 1
    return n


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
    scale = float(arguments.positive(sigma, "sigma"))
    return scale * _unit_ladder(arguments.whole(n, "n"), float(arguments.level(alpha)))


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
    values = arguments.real(radii, "radii")
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
    values = np.atleast_1d(arguments.real(radii, "radii"))
    printed = _printed_ladder(
        arguments.whole(n, "n"),
        float(arguments.level(alpha)),
        float(arguments.positive(sigma, "sigma")),
    )
    values = values[values > 0]
    if not values.size:
        return math.nan
    return float(np.mean([f"{value:.3g}" in printed for value in values.tolist()]))


@lru_cache(maxsize=64)
def _printed_ladder(n: int, alpha: float, sigma: float) -> frozenset[str]:
    return frozenset(f"{rung:.3g}" for rung in ladder(n, alpha, sigma).tolist() if rung > 0)
