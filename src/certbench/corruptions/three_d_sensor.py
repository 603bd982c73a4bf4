"""3D corruptions of the sensor, which need no depth: low light, ISO noise, colour quantisation.

Formulas and constants: Kar et al., CVPR 2022, and the released ImageNet-3DCC.
"""

from __future__ import annotations

import numpy as np

ISO_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)
LOW_LIGHT = (0.60, 0.50, 0.40, 0.30, 0.20)

PHOTONS = 25
"""Expected photons of a white pixel in :func:`iso_noise`."""


def color_quant(image: np.ndarray, severity: int) -> np.ndarray:
    """Keep the ``6 - severity`` highest bits of every value.

    Args:
        image: uint8 [H, W, 3].
        severity: 1 to 5.
    """
    return image & np.uint8(256 - (1 << (2 + severity)))


def iso_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Photon noise of 25 photons, then read-out noise of standard deviation 0.7 c.

    Args:
        image: uint8 [H, W, 3].
        severity: 1 to 5.
        rng: Random generator of the image.

    Returns:
        float64 [H, W, 3] in [0, 1].
    """
    counted = np.clip(rng.poisson(PHOTONS * (image / 255.0)) / PHOTONS, 0, 1)
    return np.clip(counted + 0.7 * ISO_NOISE[severity - 1] * rng.standard_normal(image.shape), 0, 1)


def darkened(image: np.ndarray, severity: int) -> np.ndarray:
    """The image of :func:`low_light` before noise: ``c u^2`` of the stretched image ``u``.

    A constant image has no contrast to stretch and is used as it is.

    Returns:
        float64 [H, W, 3] in [0, 1].
    """
    x = image / 255.0
    low, high = x.min(), x.max()
    stretched = (x - low) / (high - low) if high > low else x
    return LOW_LIGHT[severity - 1] * stretched**2


def low_light(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Darken, then add the noise of 120 photons and a read-out of standard deviation 0.018.

    Args:
        image: uint8 [H, W, 3].
        severity: 1 to 5.
        rng: Random generator of the image.

    Returns:
        float64 [H, W, 3] in [0, 1].
    """
    counted = np.clip(rng.poisson(120 * darkened(image, severity)) / 120, 0, 1)
    return np.clip(counted + 0.018 * rng.standard_normal(image.shape), 0, 1)
