"""Brightness, contrast, elastic, pixelate, JPEG and saturate, with the parameters of any table.

Every function takes an image (uint8 [H, W, 3]), the entry of its type in
:mod:`certbench.corruptions.severity` and the generator of the image, and returns uint8 [H, W, 3].
Values are truncated to 8 bit, as in the published benchmark (Hendrycks and Dietterich, ICLR 2019).
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np

from certbench.corruptions.imagecorruptions_adapter import gaussian

# Rank of each output channel among (largest, middle, smallest) in the six sectors of the hue.
SECTORS = np.array(
    [[0, 1, 2], [1, 0, 2], [2, 0, 1], [2, 1, 0], [1, 2, 0], [0, 2, 1]], dtype=np.intp
)

# Radius in pixels from which a Gaussian filter of an image-sized field is done as matrix products.
WIDE = 48


def brightness(image: np.ndarray, entry: float, rng: Any = None) -> np.ndarray:
    """Add ``entry`` to V in HSV."""
    return _through_hsv(image, 1.0, 0.0, entry)


def saturate(image: np.ndarray, entry: tuple[float, float], rng: Any = None) -> np.ndarray:
    """Multiply S in HSV by a factor and add a constant; grey pixels have hue 0 and turn reddish."""
    return _through_hsv(image, entry[0], entry[1], None)


def contrast(image: np.ndarray, entry: float, rng: Any = None) -> np.ndarray:
    """Move every channel towards its mean over the image."""
    x = image / 255.0
    means = np.mean(x, axis=(0, 1), keepdims=True)
    return (np.clip((x - means) * entry + means, 0, 1) * 255).astype(np.uint8)


def jpeg_compression(image: np.ndarray, entry: int, rng: Any = None) -> np.ndarray:
    """JPEG at quality ``entry`` (chroma 4:2:0) and back."""
    from PIL import Image

    stream = BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=entry)
    return np.array(Image.open(stream))


def pixelate(image: np.ndarray, entry: float, rng: Any = None) -> np.ndarray:
    """Shrink to ``int(size * entry)`` with a box filter, enlarge by nearest neighbour.

    The published scripts enlarge with a box filter too, which gives the same image at 32, 64 and
    224 pixels, and other values for a few pixels at sizes such as 225 or 299.
    """
    from PIL import Image

    height, width = image.shape[:2]
    small = Image.fromarray(image).resize(
        (int(width * entry), int(height * entry)), Image.Resampling.BOX
    )
    return np.array(small.resize((width, height), Image.Resampling.NEAREST))


def elastic_transform(image: np.ndarray, entry: float, rng: np.random.RandomState) -> np.ndarray:
    """The elastic part alone, as in the package imagecorruptions.

    Noise within 0.5 % of the height is smoothed with 1 % of the size and multiplied by ``entry``.
    """
    height, width = image.shape[:2]
    sigma = np.array((height, width)) * 0.01
    reach = height * 0.005
    return _displace(image.astype(np.float32) / 255.0, rng, reach, sigma, entry)


def elastic_transform_imagenet_c(
    image: np.ndarray, entry: tuple[float, float, float], rng: np.random.RandomState
) -> np.ndarray:
    """A random affine map, then elastic displacements, as in the published ImageNet-C files."""
    import cv2

    alpha, sigma, affine = entry
    shape = image.shape[:2]
    center = np.array(shape, dtype=np.float32) // 2
    size = min(shape) // 3
    corners = np.array(
        [center + size, [center[0] + size, center[1] - size], center - size], dtype=np.float32
    )
    moved = corners + rng.uniform(-affine, affine, size=corners.shape).astype(np.float32)
    warped = cv2.warpAffine(
        image.astype(np.float32) / 255.0,
        cv2.getAffineTransform(corners, moved),
        shape[::-1],
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return _displace(warped, rng, 1.0, sigma, alpha)


def _displace(
    x: np.ndarray, rng: np.random.RandomState, reach: float, sigma: Any, alpha: float
) -> np.ndarray:
    """Resample linearly at positions moved by smoothed uniform noise; back to 8 bit."""
    height, width = x.shape[:2]
    dx, dy = (
        (_smoothed(rng.uniform(-reach, reach, size=(height, width)), sigma) * alpha).astype(
            np.float32
        )
        for _ in range(2)
    )
    rows = np.arange(height)[:, np.newaxis] + dy
    columns = np.arange(width)[np.newaxis, :] + dx
    return _to_bytes(_sampled(x, rows, columns))


def _smoothed(noise: np.ndarray, sigma: Any) -> np.ndarray:
    """Gaussian filter of ``noise`` (float64 [H, W]), cut at 3 sigma, reflecting at the edges.

    The recipe of ImageNet-C has filters wider than the image (sigma 171 at 224 pixels), where
    one product with a matrix per axis takes a hundredth of the time of a convolution.
    """
    if np.max(sigma) * 3 < WIDE:
        return gaussian(noise, sigma, mode="reflect", truncate=3)
    rows, columns = (
        reflected_filter(size, float(s), 3.0)
        for size, s in zip(noise.shape, np.broadcast_to(sigma, 2), strict=True)
    )
    return rows @ noise @ columns.T


def gaussian_weights(sigma: float, radius: int) -> np.ndarray:
    """Weights of a Gaussian filter at -radius..radius, as SciPy computes them: sum 1, float64."""
    weights = np.exp(-0.5 / (sigma * sigma) * np.arange(-radius, radius + 1) ** 2)
    return weights / weights.sum()


@lru_cache(maxsize=16)
def reflected_filter(size: int, sigma: float, truncate: float) -> np.ndarray:
    """A Gaussian filter with reflecting edges as a matrix, float64 [size, size].

    Args:
        size: Length of the axis.
        sigma: Standard deviation in pixels, > 0.
        truncate: Radius of the filter in standard deviations.
    """
    radius = int(truncate * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = gaussian_weights(sigma, radius)
    positions = (np.arange(size)[:, np.newaxis] + offsets) % (2 * size)
    positions = np.minimum(positions, 2 * size - 1 - positions)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, np.newaxis], positions), weights)
    return matrix


def _sampled(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Linear interpolation of ``x`` (float32 [H, W, 3]) at float64 positions [H, W], reflecting.

    Bit-equal to ``scipy.ndimage.map_coordinates(order=1, mode="reflect")`` of every channel, whose
    order of products and sums it keeps; positions and weights are worked out once, not per channel.
    """
    height, width = x.shape[:2]
    top, bottom, top_weight, bottom_weight = _reflected_taps(rows, height)
    left, right, left_weight, right_weight = _reflected_taps(columns, width)
    top *= width
    bottom *= width
    corners = (
        (top + left, top_weight, left_weight),
        (top + right, top_weight, right_weight),
        (bottom + left, bottom_weight, left_weight),
        (bottom + right, bottom_weight, right_weight),
    )
    out = np.empty(x.shape, dtype=np.float32)
    for channel in range(3):
        plane = x[:, :, channel].astype(np.float64, order="C").reshape(-1)
        total = np.zeros(rows.shape)
        for index, row_weight, column_weight in corners:
            term = plane.take(index)
            term *= row_weight
            term *= column_weight
            total += term
        out[:, :, channel] = total
    return out


def _reflected_taps(position: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """Indices of the two neighbours of every position on one axis, and their weights.

    Positions outside are reflected about the outer edges of the first and last pixel, by the steps
    (and with the tolerance of 1e-15) of SciPy's C code, because rounding depends on them.
    """
    period = 2 * size
    below = position < 0
    beyond = position > size - 1
    if below.any():
        p = position[below]
        p = np.where(p < -period, period * np.trunc(-p / period) + p, p)
        mirrored = np.where(p > -1e-15, 1e-15, -p) - 1
        position[below] = np.where(p < -size, p + period, mirrored)
    if beyond.any():
        p = position[beyond]
        p = p - period * np.trunc(p / period)
        position[beyond] = np.where(p >= size, period - p - 1, p)
    low = np.floor(position)
    share = position - low
    first = low.astype(np.intp)
    return first.clip(0, size - 1), (first + 1).clip(0, size - 1), 1 - share, share


def _through_hsv(
    image: np.ndarray, s_factor: float, s_added: float, v_added: float | None
) -> np.ndarray:
    """RGB to HSV, change S or V, and back.

    The arithmetic is that of scikit-image's ``rgb2hsv`` and ``hsv2rgb``, operation for operation
    in float64, so that the 8-bit result is the same; but each pixel is worked out in its own sector
    of the hue only, where scikit-image forms all six. (``num / delta`` of a grey pixel is 0/0
    there; here its hue is set to 0 before that can happen.)
    """
    height, width = image.shape[:2]
    red, green, blue = image.reshape(-1, 3).T / 255.0
    v = np.maximum(np.maximum(red, green), blue)
    delta = v - np.minimum(np.minimum(red, green), blue)
    grey = delta == 0.0
    divisor = np.where(grey, 1.0, delta)
    s = delta / np.where(v == 0.0, 1.0, v)

    # Where two channels are largest, scikit-image lets the later one decide.
    is_blue = blue == v
    is_green = (green == v) & ~is_blue
    first = np.where(is_blue, red, np.where(is_green, blue, green))
    second = np.where(is_blue, green, np.where(is_green, red, blue))
    hue = (first - second) / divisor
    hue += np.where(is_blue, 4.0, np.where(is_green, 2.0, 0.0))
    hue /= 6.0
    hue += hue < 0.0
    hue[grey] = 0.0

    if v_added is None:
        s = np.clip(s * s_factor + s_added, 0, 1)
    else:
        v = np.clip(v + v_added, 0, 1)

    hue *= 6
    sector = np.floor(hue)
    fraction = hue - sector
    sector = sector.astype(np.uint8) % 6
    rising = sector % 2 == 0
    values = np.empty((v.size, 3), dtype=np.uint8)
    values[:, 0] = _to_bytes(v)
    values[:, 1] = _to_bytes(v * (1 - np.where(rising, 1 - fraction, fraction) * s))
    values[:, 2] = _to_bytes(v * (1 - s))
    index = SECTORS[sector]
    index += np.arange(0, 3 * v.size, 3)[:, np.newaxis]
    return values.reshape(-1)[index].reshape(height, width, 3)


def _to_bytes(x: np.ndarray) -> np.ndarray:
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)
