"""Gaussian, glass, defocus, motion and zoom blur, with the parameters of any table.

Every function takes an image (uint8 [H, W, 3]), the entry of its type in
:mod:`certbench.corruptions.severity` and the generator of the image, and returns uint8 [H, W, 3].
Values are truncated to 8 bit, as in the published benchmark (Hendrycks and Dietterich, ICLR 2019).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from certbench.corruptions.imagecorruptions_adapter import gaussian, package


def gaussian_blur(image: np.ndarray, entry: float, rng: Any = None) -> np.ndarray:
    """Gaussian filter of standard deviation ``entry`` pixels, edges replicated."""
    return _to_bytes(gaussian(image / 255.0, entry, multichannel=True))


def defocus_blur(image: np.ndarray, entry: tuple[float, float], rng: Any = None) -> np.ndarray:
    """Filter with a disc; from radius 8 on its smoothed kernel sums to a little more than one."""
    import cv2

    radius, alias_sigma = entry
    kernel = package().disk(radius=radius, alias_blur=alias_sigma)
    return _to_bytes(cv2.filter2D(image / 255.0, -1, kernel))


def motion_blur(
    image: np.ndarray,
    entry: tuple[int, float],
    rng: np.random.RandomState | None = None,
    angle: float | None = None,
) -> np.ndarray:
    """Average along a line, with half-Gaussian weights.

    Args:
        image: uint8 [H, W, 3].
        entry: Radius and standard deviation in pixels.
        rng: Draws the angle from (-45, 45) degrees, if ``angle`` is None.
        angle: Direction in degrees.
    """
    radius, sigma = entry
    if angle is None:
        if rng is None:
            raise TypeError("motion_blur needs an angle or a generator")
        angle = rng.uniform(-45, 45)
    blurred = package()._motion_blur(image, radius=radius, sigma=sigma, angle=angle)
    return np.clip(blurred, 0, 255).astype(np.uint8)


def glass_blur(
    image: np.ndarray, entry: tuple[float, int, int], rng: np.random.RandomState
) -> np.ndarray:
    """Blur, copy every pixel from a random neighbour ``iterations`` times, blur again."""
    sigma, delta, iterations = entry
    x = (gaussian(image / 255.0, sigma, multichannel=True) * 255).astype(np.uint8)
    height, width = x.shape[:2]
    source = np.arange(height * width)
    for _ in range(iterations):
        source = source[_neighbours(height, width, delta, rng)]
    x = x.reshape(-1, 3)[source].reshape(x.shape)
    return _to_bytes(gaussian(x / 255.0, sigma, multichannel=True))


def _neighbours(height: int, width: int, delta: int, rng: np.random.RandomState) -> np.ndarray:
    """Where each pixel's value comes from in one pass of the glass blur (flat indices).

    The published loop visits pixels from the bottom right upwards and copies each from a neighbour
    at most ``delta`` away: from its new value if the neighbour was visited before, else from its
    old one. (It is written as a swap, but both sides are views into one array, so that it copies.)
    That is a forest of links, which pointer doubling resolves for all pixels together; since about
    half of the neighbours were not visited, chains are short. One draw of shape (n, 2) takes the
    same numbers from the generator as the n draws of the loop.
    """
    rows = np.arange(height - delta, delta, -1)
    columns = np.arange(width - delta, delta, -1)
    pixels = height * width
    pixel = (rows[:, np.newaxis] * width + columns).reshape(-1)
    offset = rng.randint(-delta, delta, size=(pixel.size, 2))
    neighbour = pixel + offset[:, 1] * width + offset[:, 0]

    visited = np.zeros(pixels, dtype=bool)
    visited[pixel] = True
    link = np.arange(pixels)
    # A later flat index in the visited region means an earlier visit. Links to old values are
    # written as -1 - pixel, so that they are told apart and end the chain.
    link[pixel] = np.where(visited[neighbour] & (neighbour > pixel), neighbour, -1 - neighbour)
    link[~visited] = -1 - link[~visited]
    open_ = pixel[link[pixel] >= 0]
    while open_.size:
        link[open_] = link[link[open_]]
        open_ = open_[link[open_] >= 0]
    return -1 - link


def zoom_blur(image: np.ndarray, entry: tuple[float, float], rng: Any = None) -> np.ndarray:
    """Mean of the image and its central crops enlarged by every factor of the entry."""
    x = (image / 255.0).astype(np.float32)
    factors = np.arange(1, *entry)
    total = np.zeros_like(x)
    for factor in factors:
        layer = package().clipped_zoom(x, factor)[: x.shape[0], : x.shape[1]]
        total[: layer.shape[0], : layer.shape[1]] += layer
    return _to_bytes((x + total) / (len(factors) + 1))


def _to_bytes(x: np.ndarray) -> np.ndarray:
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)
