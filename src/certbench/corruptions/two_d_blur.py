"""Gaussian, glass, defocus, motion and zoom blur, with the parameters of any table.

Every function takes an image (uint8 [H, W, 3]), the entry of its type in
:mod:`certbench.corruptions.severity` and the generator of the image, and returns uint8 [H, W, 3].
Values are truncated to 8 bit, as in the published benchmark (Hendrycks and Dietterich, ICLR 2019).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from certbench.corruptions.imagecorruptions_adapter import gaussian, package

_BAND_VALUES = 24_000


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
    height, width, channels = image.shape
    taps = motion_taps(height, width, radius, sigma, angle)
    above, below, left, right = (max(side) for side in zip(*(_sides(t) for t in taps), strict=True))
    padded = np.pad(image, ((above, below), (left, right), (0, 0)), mode="edge")
    values = padded.reshape(len(padded), -1).astype(np.float64)
    out = np.empty((height, width * channels), dtype=np.uint8)
    # Bands of rows, so that the sum stays in the processor's cache over all taps.
    band = max(1, _BAND_VALUES // (width * channels))
    for start in range(0, height, band):
        stop = min(start + band, height)
        total = np.zeros((stop - start, width * channels))
        term = np.empty_like(total)
        for weight, dy, dx in taps:
            first = (left - dx) * channels
            window = values[start + above - dy : stop + above - dy, first : first + total.shape[1]]
            np.multiply(window, weight, out=term)
            total += term
        out[start:stop] = np.clip(total, 0, 255)
    return out.reshape(image.shape)


def motion_taps(
    height: int, width: int, radius: int, sigma: float, angle: float
) -> list[tuple[float, int, int]]:
    """Weights and offsets (down, right) of the shifted copies that a motion blur adds up.

    A tap that would leave the image ends the list and its weight is lost: at 32 pixels the
    entries for 224 darken the image.
    """
    weights = package().getMotionBlurKernel(2 * radius + 1, sigma)
    count = len(weights)
    point = (count * np.sin(np.deg2rad(angle)), count * np.cos(np.deg2rad(angle)))
    length = math.hypot(point[0], point[1])
    taps = []
    for i, weight in enumerate(weights):
        dy = -math.ceil(((i * point[0]) / length) - 0.5)
        dx = -math.ceil(((i * point[1]) / length) - 0.5)
        if abs(dy) >= height or abs(dx) >= width:
            break
        taps.append((weight, dy, dx))
    return taps


def _sides(tap: tuple[float, int, int]) -> tuple[int, int, int, int]:
    """Padding (above, below, left, right) that an offset reaches into."""
    _, dy, dx = tap
    return max(dy, 0), max(-dy, 0), max(dx, 0), max(-dx, 0)


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
    """Mean of the image (once more) and its central crops enlarged by every factor of the entry.

    Bit-equal to linear ``scipy.ndimage.zoom`` of every crop: products and sums are formed in the
    same order in float64, each layer is rounded to float32. What is faster is that weights are made
    once per image size and that whole rows are gathered instead of single values.
    """
    x = (image / 255.0).astype(np.float32)
    height, width = x.shape[:2]
    factors = np.arange(1, *entry)
    out = np.empty((3, width, height), dtype=np.float32)
    for channel in range(3):
        # Columns first: gathering along the first axis copies contiguous memory.
        plane = x[:, :, channel].T.astype(np.float64, order="C")
        total = np.zeros((width, height), dtype=np.float32)
        for factor in factors:
            total += _enlarged(plane, float(factor)).astype(np.float32)
        out[channel] = (plane.astype(np.float32) + total) / (len(factors) + 1)
    return _to_bytes(out.transpose(2, 1, 0))


def _enlarged(plane: np.ndarray, factor: float) -> np.ndarray:
    """Central part of ``plane`` (float64 [W, H]), enlarged, cropped at the top left to its size."""
    left, right, left_weight, right_weight = linear_taps(plane.shape[0], factor)
    top, bottom, top_weight, bottom_weight = linear_taps(plane.shape[1], factor)
    first = left[0]
    part = plane[first : right[-1] + 1]
    left, right = left - first, right - first
    left_weight, right_weight = left_weight[:, np.newaxis], right_weight[:, np.newaxis]
    upper = part.take(top, axis=1)
    upper *= top_weight
    lower = part.take(bottom, axis=1)
    lower *= bottom_weight
    layer = upper.take(left, axis=0)
    layer *= left_weight
    term = upper.take(right, axis=0)
    term *= right_weight
    layer += term
    for side, weight in ((left, left_weight), (right, right_weight)):
        lower.take(side, axis=0, out=term, mode="clip")
        term *= weight
        layer += term
    return layer


@lru_cache(maxsize=256)
def linear_taps(size: int, factor: float, whole: bool = False) -> tuple[np.ndarray, ...]:
    """Indices of the two neighbours of every output position on one axis, and their weights.

    The crop has ``ceil(size / factor)`` values, the enlarged axis the rounded product with
    ``factor``, which is never less than ``size``; first and last positions coincide. Where
    rounding puts the last position beyond the crop, SciPy's rule for the outside (zero) holds.

    Args:
        size: Length of the axis.
        factor: Enlargement, at least 1.
        whole: All positions of the enlarged axis, not the first ``size`` only.
    """
    part = int(np.ceil(size / factor))
    start = (size - part) // 2
    enlarged = round(part * factor)
    position = np.arange(enlarged if whole else size) * ((part - 1) / (enlarged - 1))
    inside = position <= part - 1
    low = np.floor(position)
    share = position - low
    first = np.minimum(low.astype(np.intp), part - 1)
    second = np.minimum(first + 1, part - 1)
    return start + first, start + second, (1 - share) * inside, share * inside


def _to_bytes(x: np.ndarray) -> np.ndarray:
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)
