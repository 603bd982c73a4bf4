"""Gaussian, shot, impulse and speckle noise, with the parameters of any table.

Every function takes an image (uint8 [H, W, 3]), the entry of its type in
:mod:`certbench.corruptions.severity` and the generator of the image, and returns uint8 [H, W, 3].
Values are truncated to 8 bit, as in the published benchmark (Hendrycks and Dietterich, ICLR 2019).
"""

from __future__ import annotations

import numpy as np


def gaussian_noise(image: np.ndarray, entry: float, rng: np.random.RandomState) -> np.ndarray:
    """Add normal noise of standard deviation ``entry``."""
    x = image / 255.0
    return (np.clip(x + rng.normal(size=x.shape, scale=entry), 0, 1) * 255).astype(np.uint8)


def shot_noise(image: np.ndarray, entry: float, rng: np.random.RandomState) -> np.ndarray:
    """Poisson noise of a sensor that counts ``entry`` photons at full intensity."""
    x = image / 255.0
    return (np.clip(rng.poisson(x * entry) / float(entry), 0, 1) * 255).astype(np.uint8)


def speckle_noise(image: np.ndarray, entry: float, rng: np.random.RandomState) -> np.ndarray:
    """Add normal noise of standard deviation ``entry`` times the value."""
    x = image / 255.0
    return (np.clip(x + x * rng.normal(size=x.shape, scale=entry), 0, 1) * 255).astype(np.uint8)


def impulse_noise(image: np.ndarray, entry: float, rng: np.random.RandomState) -> np.ndarray:
    """Replace each value with probability ``entry``, by black or white alike.

    The published code leaves this to scikit-image, which seeds itself from the operating system;
    the law is the same, the generator is the image's. One uniform number decides both: below
    ``entry / 2`` is pepper, from there to ``entry`` is salt.
    """
    u = rng.random_sample(image.shape)
    out = image.copy()
    out[u < entry] = 255
    out[u < entry / 2] = 0
    return out
