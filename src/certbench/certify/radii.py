"""From bounds on the classes' probabilities under noise to certified radii, norm by norm.

Float64, vectorised by broadcasting: scalars give 0-d values, arrays give arrays. A radius is 0.0
where the method abstains.

Sources: Cohen, Rosenfeld and Kolter, ICML 2019 (l2 under Gaussian noise); Ugare et al., ICLR 2024
(a modified model); Yang et al., ICML 2020 and Teng et al., 2020 (other noise and norms).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import special

from certbench.certify import arguments
from certbench.certify.intervals import cp_lower, cp_upper
from certbench.errors import CertbenchError


def radius_one(p_lower: Any, sigma: Any) -> Any:
    """l2 radius sigma Phi^-1(pA_low) of the one-bound certificate; 0.0 where pA_low <= 1/2.

    Args:
        p_lower: Lower bounds on the top class's probability, in [0, 1).
        sigma: Noise level in the units of the image, > 0.

    Raises:
        CertbenchError: A value is out of range.

    Source: Cohen et al., ICML 2019, section 3.2.
    """
    p = arguments.lower_probability(p_lower)
    scale = arguments.positive(sigma, "sigma")
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
    p = arguments.lower_probability(p_lower)
    q = arguments.real(p_upper_runner, "p_upper_runner")
    if np.any((q <= 0) | (q > 1)):
        raise CertbenchError(
            "an upper bound on a probability lies in (0, 1]", where="p_upper_runner"
        )
    scale = arguments.positive(sigma, "sigma")
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
    x = arguments.real(radius, "radius")
    return np.where(x > 0, np.nextafter(x * (1 - 1e-12), 0.0), x)[()]


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
    total = arguments.level(alpha)
    part = total / 2 if alpha_disagreement is None else arguments.level(alpha_disagreement)
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
    inputs = arguments.whole(dimension, "dimension")
    return (arguments.not_negative(radius, "radius") / math.sqrt(inputs))[()]


def radius_l1_uniform(p_lower: Any, half_width: Any) -> Any:
    """The l1 radius 2 lambda (pA_low - 1/2) under uniform noise of half-width lambda.

    Args:
        p_lower: Lower bounds on the top class, in [0, 1).
        half_width: lambda > 0, which is sqrt(3) times the standard deviation per input.

    Raises:
        CertbenchError: A value is out of range.

    Source: Yang et al., ICML 2020.
    """
    p = arguments.lower_probability(p_lower)
    return np.maximum(2 * arguments.positive(half_width, "half_width") * (p - 0.5), 0.0)[()]


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
    p = np.maximum(arguments.lower_probability(p_lower), 0.5)
    shrink = -np.expm1(np.log(1.5 - p) / arguments.whole(dimension, "dimension"))
    return np.where(p > 0.5, 2 * arguments.positive(half_width, "half_width") * shrink, 0.0)[()]


def radius_l1_laplace(p_lower: Any, scale: Any) -> Any:
    """The l1 radius -b ln(2 (1 - pA_low)) under Laplace noise of scale b; 0.0 where pA_low <= 1/2.

    Args:
        p_lower: Lower bounds on the top class, in [0, 1).
        scale: b > 0 (the standard deviation is sqrt(2) b).

    Raises:
        CertbenchError: A value is out of range.

    Source: Teng et al., 2020.
    """
    p = np.maximum(arguments.lower_probability(p_lower), 0.5)
    return np.where(p > 0.5, -arguments.positive(scale, "scale") * np.log(2 * (1 - p)), 0.0)[()]
