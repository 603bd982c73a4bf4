"""Noise schedules of diffusion models, and the timestep that belongs to a noise level.

A diffusion model takes x_t = sqrt(abar_t) x + sqrt(1 - abar_t) z with x in [-1, 1] and standard
normal z. An image in [0, 1] with noise of std sigma is, in [-1, 1], an image with noise 2 sigma;
times sqrt(abar_t) it is an x_t (Carlini et al., "(Certified!!) Adversarial Robustness for Free!",
ICLR 2023, section 3.2). No torch here.
"""

from __future__ import annotations

import math

from certbench.errors import CertbenchError

SCHEDULES = ("linear", "cosine")
_COSINE_OFFSET = 0.008
_LARGEST_BETA = 0.999


def cumulative_alphas(schedule: str, timesteps: int) -> list[float]:
    """abar_t for t = 0 ... timesteps - 1: the share of the image's variance, falling.

    Args:
        schedule: ``linear`` (Ho et al., NeurIPS 2020, scaled to any number of steps) or ``cosine``
            (Nichol and Dhariwal, ICML 2021, equation 17).
        timesteps: Number of steps of the model.
    """
    if schedule == "linear":
        scale = 1000 / timesteps
        first, last = 1e-4 * scale, 0.02 * scale
        betas = [first + (last - first) * t / (timesteps - 1) for t in range(timesteps)]
    else:

        def share(t: int) -> float:
            angle = (t / timesteps + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2
            return math.cos(angle) ** 2

        betas = [min(1 - share(t + 1) / share(t), _LARGEST_BETA) for t in range(timesteps)]
    alphas, product = [], 1.0
    for beta in betas:
        product *= 1 - beta
        alphas.append(product)
    return alphas


def timestep(sigma: float, alphas: list[float], where: str = "diffusion") -> int:
    """The first t whose noise, relative to the image, is at least that of ``sigma``.

    Smallest t with sqrt(1 - abar_t) / sqrt(abar_t) >= 2 sigma.

    Args:
        sigma: Std of the noise on images in [0, 1].
        alphas: abar_t of each timestep.
        where: Prefix for the message.

    Raises:
        CertbenchError: Even the last timestep has less noise.
    """
    for t, alpha in enumerate(alphas):
        if math.sqrt(1 - alpha) >= 2 * sigma * math.sqrt(alpha):
            return t
    largest = math.sqrt((1 - alphas[-1]) / alphas[-1]) / 2
    raise CertbenchError(
        f"sigma {sigma} is more noise than the schedule has (at most {largest:.3g})",
        where=where,
        remedy="lower sigma, or use a model with another schedule",
    )
