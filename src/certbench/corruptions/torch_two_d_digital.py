"""Brightness, contrast, elastic, pixelate, JPEG and saturate on batches, in torch.

Every function takes images (uint8 [N, 3, H, W]), the entry of its type and the batch's random
numbers, and returns uint8 [N, 3, H, W]. Functions whose name ends in ``_with`` take the random
numbers of the NumPy code in place of the batch's and then give its result.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from certbench.corruptions import two_d_digital
from certbench.corruptions.torch_two_d_filters import sampled, smoothed, truncated
from certbench.corruptions.torch_two_d_random import Draws

_PRECISION = 22  # bits of Pillow's fixed-point weights


def brightness(images: torch.Tensor, entry: float, draws: Draws) -> torch.Tensor:
    """Add ``entry`` to V in HSV."""
    return _through_hsv(images, 1.0, 0.0, entry)


def saturate(images: torch.Tensor, entry: tuple[float, float], draws: Draws) -> torch.Tensor:
    """Multiply S in HSV by a factor and add a constant."""
    return _through_hsv(images, entry[0], entry[1], None)


def contrast(images: torch.Tensor, entry: float, draws: Draws) -> torch.Tensor:
    """Move every channel towards its mean over the image.

    The mean is exact, a sum of integers. In float64 always: for the same reason as saturate.
    """
    pixels = images.shape[2] * images.shape[3]
    sums = images.sum(dim=(2, 3), keepdim=True, dtype=torch.int64)
    means = sums.double() / (255.0 * pixels)
    return truncated((images.double() / 255 - means) * entry + means)


def jpeg_compression(images: torch.Tensor, entry: int, draws: Draws) -> torch.Tensor:
    """JPEG at quality ``entry`` and back, by Pillow on the host (codecs of GPUs differ)."""
    host = images.permute(0, 2, 3, 1).cpu().numpy()
    coded = np.stack([two_d_digital.jpeg_compression(image, entry) for image in host])
    return torch.from_numpy(coded).permute(0, 3, 1, 2).contiguous().to(images.device)


def pixelate(images: torch.Tensor, entry: float, draws: Draws) -> torch.Tensor:
    """Shrink with a box filter, enlarge by nearest neighbour; integer arithmetic, as Pillow's."""
    height, width = images.shape[2:]
    small = images
    for axis in _order_of_passes(height, width, int(height * entry), int(width * entry)):
        small = _boxed(small, axis, int(images.shape[axis] * entry))
    for axis in (2, 3):
        index = _nearest(small.shape[axis], images.shape[axis], images.device)
        small = small.index_select(axis, index)
    return small


def _boxed(images: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """One pass of Pillow's box filter along an axis, rounded to 8 bit."""
    taps, weights = _box_taps(images.shape[axis], size, images.device)
    # The last index of an axis stands for "no pixel" and reads a zero.
    padded = torch.nn.functional.pad(images, (0, 1) if axis == 3 else (0, 0, 0, 1)).int()
    total = padded.index_select(axis, taps[0])
    for tap in taps[1:]:
        total += padded.index_select(axis, tap)
    shape = [1, 1, 1, 1]
    shape[axis] = size
    total = total * weights.view(shape) + (1 << (_PRECISION - 1))
    return (total >> _PRECISION).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=32)
def _box_taps(size: int, small: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Source pixels int64 [taps, small] of every output, and its fixed-point weight int32 [small].

    Source pixel j counts for output o if -0.5 < (j + 0.5 - (o + 0.5) r) / r <= 0.5, r the ratio of
    the sizes, and if it is in the window that Pillow looks at (rounding at the ends of the interval
    decides differently in the two); all that count weigh the same.
    """
    ratio = size / small
    center = (np.arange(small)[:, None] + 0.5) * ratio
    first = (center - 0.5 * ratio + 0.5).astype(int).clip(0)
    last = (center + 0.5 * ratio + 0.5).astype(int).clip(None, size)
    pixel = np.arange(size)
    distance = (pixel - center + 0.5) * (1.0 / ratio)
    inside = (distance > -0.5) & (distance <= 0.5) & (pixel >= first) & (pixel < last)
    counts = inside.sum(axis=1)
    taps = np.full((counts.max(), small), size)
    for o in range(small):
        taps[: counts[o], o] = np.flatnonzero(inside[o])
    weights = np.floor(0.5 + (1.0 / counts) * (1 << _PRECISION)).astype(np.int32)
    return torch.from_numpy(taps).to(device), torch.from_numpy(weights).to(device)


@lru_cache(maxsize=32)
def _order_of_passes(height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    """Axes in the order in which Pillow shrinks them.

    Each pass rounds to 8 bit, so that the order shows. Columns come first, but from Pillow 13 on
    not where the height shrinks much more than the width (github.com/python-pillow/Pillow, pull
    request 9549); the Pillow at hand is asked by an example.
    """
    from PIL import Image

    noise = np.random.RandomState(0).randint(0, 256, (height, width)).astype(np.uint8)
    shrunk = Image.fromarray(noise).resize((columns, rows), Image.Resampling.BOX)
    x = torch.from_numpy(noise)[None, None]
    by_rows_first = _boxed(_boxed(x, 2, rows), 3, columns)
    return (2, 3) if np.array_equal(by_rows_first[0, 0].numpy(), np.array(shrunk)) else (3, 2)


@lru_cache(maxsize=32)
def _nearest(small: int, size: int, device: torch.device) -> torch.Tensor:
    """Source index of every output of Pillow's nearest-neighbour enlargement, asked of Pillow."""
    from PIL import Image

    ramp = Image.fromarray(np.arange(small, dtype=np.int32)[None])
    index = np.array(ramp.resize((size, 1), Image.Resampling.NEAREST))[0]
    return torch.from_numpy(index.astype(np.int64)).to(device)


def elastic_transform(images: torch.Tensor, entry: float, draws: Draws) -> torch.Tensor:
    """The elastic part alone, as in the package imagecorruptions."""
    height = images.shape[2]
    reach = height * 0.005
    noise = draws.uniform(0, (2, *images.shape[2:])).mul_(2 * reach).sub_(reach)
    return elastic_transform_with(images, entry, noise)


def elastic_transform_with(images: torch.Tensor, entry: float, noise: torch.Tensor) -> torch.Tensor:
    """Elastic transform of given noise: float [N, 2, H, W], for columns and for rows."""
    sigma = np.array(images.shape[2:]) * 0.01
    return _displaced(images.to(noise.dtype) / 255, noise, sigma, entry)


def elastic_transform_imagenet_c(
    images: torch.Tensor, entry: tuple[float, float, float], draws: Draws
) -> torch.Tensor:
    """A random affine map, then elastic displacements, as in the published ImageNet-C files."""
    alpha, sigma, affine = entry
    moves = [draws.scalars(1 + i, -affine, affine) for i in range(6)]
    x = torch.cat(
        [
            _warped(image, np.array([move[n] for move in moves]).reshape(3, 2))
            for n, image in enumerate((images.to(draws.dtype) / 255).split(1))
        ]
    )
    noise = draws.uniform(0, (2, *images.shape[2:])).mul_(2).sub_(1)
    return _displaced(x, noise, sigma, alpha)


def _warped(x: torch.Tensor, moves: np.ndarray) -> torch.Tensor:
    """The affine map that moves three points around the centre, reflecting between edge pixels.

    Points and moves are (first coordinate, second coordinate) in the words of the published script,
    which takes the height for the first and OpenCV takes for x.
    """
    shape = x.shape[2:]
    center = np.array(shape, dtype=np.float32) // 2
    size = min(shape) // 3
    corners = np.array(
        [center + size, [center[0] + size, center[1] - size], center - size], dtype=np.float64
    )
    ones = np.ones((3, 1))
    inverse = np.linalg.solve(np.hstack([corners + moves, ones]), corners)
    rows, columns = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    at = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ inverse
    at_columns, at_rows = (
        torch.from_numpy(_reflected_101(at[..., i], shape[1 - i]))[None].to(x) for i in range(2)
    )
    return sampled(x, at_rows, at_columns)


def _reflected_101(position: np.ndarray, size: int) -> np.ndarray:
    """Positions reflected about the centres of the first and last pixel, into 0..size - 1."""
    period = 2 * (size - 1)
    position = np.abs(position) % period
    return np.minimum(position, period - position)


def _displaced(x: torch.Tensor, noise: torch.Tensor, sigma: Any, alpha: float) -> torch.Tensor:
    """Resample linearly at positions moved by smoothed noise."""
    height, width = x.shape[2:]
    # The published displacements are float32, positions and products float64.
    dx, dy = (
        (smoothed(noise[:, i], sigma) * alpha).float().to(x.dtype)
        if alpha
        else torch.zeros_like(noise[:, i])
        for i in range(2)
    )
    rows = torch.arange(height, device=x.device, dtype=x.dtype)[:, None] + dy
    columns = torch.arange(width, device=x.device, dtype=x.dtype) + dx
    # As there, the image and the result are float32.
    return truncated(sampled(x.float().to(x.dtype), rows, columns).float())


def _through_hsv(
    images: torch.Tensor,
    s_factor: float,
    s_added: float,
    v_added: float | None,
) -> torch.Tensor:
    """RGB to HSV, change S or V, and back, operation for operation as ``two_d_digital``.

    In float64 always: many results are integers but for rounding (S doubled, say), so that float32
    would move up to a third of the values by a level.
    """
    red, green, blue = (images.double() / 255).unbind(1)
    v = torch.maximum(torch.maximum(red, green), blue)
    delta = v - torch.minimum(torch.minimum(red, green), blue)
    grey = delta == 0
    s = delta / v.masked_fill(v == 0, 1)

    is_blue = blue == v
    is_green = (green == v) & ~is_blue
    first = torch.where(is_blue, red, torch.where(is_green, blue, green))
    second = torch.where(is_blue, green, torch.where(is_green, red, blue))
    hue = (first - second).div_(delta.masked_fill(grey, 1))
    hue += is_blue * 4 + is_green * 2
    hue /= 6
    hue += hue < 0
    hue.masked_fill_(grey, 0)

    if v_added is None:
        s = (s * s_factor + s_added).clamp_(0, 1)
    else:
        v = (v + v_added).clamp_(0, 1)

    hue *= 6
    sector = torch.floor(hue)
    fraction = hue.sub_(sector)
    sector = sector.long().remainder_(6)
    fraction = torch.where(sector % 2 == 0, 1 - fraction, fraction)
    values = torch.stack((v, v * (1 - fraction.mul_(s)), v * (1 - s)), dim=1)
    return truncated(values).gather(1, _sectors(images.device)[sector].movedim(-1, 1))


@lru_cache(maxsize=4)
def _sectors(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(two_d_digital.SECTORS).to(device)
