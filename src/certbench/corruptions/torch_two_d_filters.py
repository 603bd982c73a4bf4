"""Filters and sampling on batches of images, in float64 or float32, on any device.

In float64 products and sums are formed one by one and in the order of the NumPy code (and of
SciPy), so that results are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from certbench.corruptions import two_d_blur, two_d_digital

Tap = tuple[float, int, int]


def truncated(x: torch.Tensor) -> torch.Tensor:
    """Values in [0, 1] (clipped) as 8-bit levels, truncated as in the benchmark: uint8."""
    return (x.clamp(0, 1) * 255).to(torch.uint8)


def levels(x: torch.Tensor) -> torch.Tensor:
    """Values in [0, 255] (clipped) truncated to uint8."""
    return x.clamp(0, 255).to(torch.uint8)


def gaussian(
    x: torch.Tensor, sigma: Any, truncate: float = 4.0, reflect: bool = False
) -> torch.Tensor:
    """Gaussian filter over the last two axes.

    Args:
        x: float [..., H, W].
        sigma: Standard deviation in pixels, or one for rows and one for columns.
        truncate: Radius of the filter in standard deviations.
        reflect: Reflect about the edge of the last pixel, instead of replicating it.
    """
    sigmas = [float(s) for s in np.broadcast_to(sigma, 2)]
    if not any(int(truncate * s + 0.5) for s in sigmas):
        return x

    def both_axes(part: torch.Tensor) -> torch.Tensor:
        for axis, s in zip((-2, -1), sigmas, strict=True):
            part = _filtered(part, axis, s, truncate, reflect)
        return part

    return _planewise(both_axes, x)


def _planewise(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Apply to [..., H, W]; on a CPU to one plane at a time, which then stays in its cache."""
    if x.device.type != "cpu":
        return function(x)
    planes = [function(plane) for plane in x.flatten(0, -3)]
    return torch.stack(planes).view(*x.shape[:-2], *planes[0].shape)


def smoothed(noise: torch.Tensor, sigma: Any) -> torch.Tensor:
    """Gaussian filter of a field [N, H, W], cut at 3 sigma, reflecting at the edges.

    Filters wider than ``two_d_digital.WIDE`` pixels are matrix products, in float64 always, because
    accelerators may round the factors of a float32 product.
    """
    if np.max(sigma) * 3 < two_d_digital.WIDE:
        return gaussian(noise, sigma, truncate=3.0, reflect=True)
    rows, columns = (
        torch.from_numpy(two_d_digital.reflected_filter(size, float(s), 3.0)).to(noise.device)
        for size, s in zip(noise.shape[-2:], np.broadcast_to(sigma, 2), strict=True)
    )
    return (rows @ noise.double() @ columns.T).to(noise.dtype)


def _filtered(
    x: torch.Tensor, axis: int, sigma: float, truncate: float, reflect: bool
) -> torch.Tensor:
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return x
    size = x.shape[axis]
    padded = x.index_select(x.ndim + axis, _padding(size, radius, reflect, x.device))
    weights = two_d_digital.gaussian_weights(sigma, radius)
    total = padded.narrow(axis, radius, size) * float(weights[radius])
    for offset in range(radius, 0, -1):
        pair = padded.narrow(axis, radius - offset, size) + padded.narrow(
            axis, radius + offset, size
        )
        total += pair.mul_(float(weights[radius - offset]))
    return total


@lru_cache(maxsize=64)
def _padding(size: int, radius: int, reflect: bool, device: torch.device) -> torch.Tensor:
    """Indices of an axis padded by ``radius`` on both sides."""
    positions = np.arange(-radius, size + radius)
    if reflect:
        positions %= 2 * size
        positions = np.minimum(positions, 2 * size - 1 - positions)
    else:
        positions = positions.clip(0, size - 1)
    return torch.from_numpy(positions).to(device)


def enlarged(x: torch.Tensor, factor: float, whole: bool = False) -> torch.Tensor:
    """Central crop of ``x``, enlarged linearly to its size.

    Args:
        x: float [N, C, H, W].
        factor: Enlargement, at least 1.
        whole: Keep what the enlarged crop exceeds the size by (at most a pixel or so).
    """
    if x.dtype == torch.float32:
        return _interpolated(x, factor, whole)
    top, bottom, top_weight, bottom_weight = _taps(x.shape[2], factor, whole, x.device, x.dtype)
    left, right, left_weight, right_weight = _taps(x.shape[3], factor, whole, x.device, x.dtype)

    def both_axes(part: torch.Tensor) -> torch.Tensor:
        upper = part.index_select(-2, top).mul_(top_weight[:, None])
        lower = part.index_select(-2, bottom).mul_(bottom_weight[:, None])
        total = upper.index_select(-1, left).mul_(left_weight)
        total += upper.index_select(-1, right).mul_(right_weight)
        total += lower.index_select(-1, left).mul_(left_weight)
        total += lower.index_select(-1, right).mul_(right_weight)
        return total

    return _planewise(both_axes, x)


def _interpolated(x: torch.Tensor, factor: float, whole: bool) -> torch.Tensor:
    """The same by torch's own kernel: faster, and as exact as float32 is."""
    height, width = x.shape[2:]
    parts = [int(np.ceil(size / factor)) for size in (height, width)]
    top, left = (height - parts[0]) // 2, (width - parts[1]) // 2
    made = torch.nn.functional.interpolate(
        x[:, :, top : top + parts[0], left : left + parts[1]],
        size=[round(part * factor) for part in parts],
        mode="bilinear",
        align_corners=True,
    )
    return made if whole else made[:, :, :height, :width]


@lru_cache(maxsize=256)
def _taps(
    size: int, factor: float, whole: bool, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    first, second, first_weight, second_weight = (
        torch.from_numpy(taps) for taps in two_d_blur.linear_taps(size, factor, whole)
    )
    return (
        first.to(device),
        second.to(device),
        first_weight.to(device, dtype),
        second_weight.to(device, dtype),
    )


def shifted_sum(x: torch.Tensor, taps: Sequence[Tap]) -> torch.Tensor:
    """Weighted sum of shifted copies of one image, edges replicated.

    Args:
        x: float [C, H, W].
        taps: Weight and offset (down, right) of every copy.
    """
    height, width = x.shape[1:]
    above, below = (max(0, *(sign * dy for _, dy, _ in taps)) for sign in (1, -1))
    left, right = (max(0, *(sign * dx for _, _, dx in taps)) for sign in (1, -1))
    rows = torch.arange(-above, height + below, device=x.device).clamp_(0, height - 1)
    columns = torch.arange(-left, width + right, device=x.device).clamp_(0, width - 1)
    padded = x.index_select(1, rows).index_select(2, columns)
    total = torch.zeros_like(x)
    for weight, dy, dx in taps:
        copy = padded[:, above - dy : above - dy + height, left - dx : left - dx + width]
        total += copy * float(weight)
    return total


def convolved(x: torch.Tensor, kernel: np.ndarray) -> torch.Tensor:
    """Correlation of every channel with a kernel, reflecting without repeating the edge.

    Done by Fourier transform, as OpenCV does for kernels of this size.

    Args:
        x: float [N, C, H, W].
        kernel: float [K, K], K odd.
    """
    radius = kernel.shape[0] // 2
    padded = torch.nn.functional.pad(x, (radius,) * 4, mode="reflect")
    shape = [_fast_length(size) for size in padded.shape[2:]]
    spectrum = _kernel_spectrum(
        kernel.tobytes(), kernel.shape[0], shape[0], shape[1], x.device, x.dtype
    )
    made = torch.fft.irfft2(torch.fft.rfft2(padded, s=shape) * spectrum, s=shape)
    return made[:, :, : x.shape[2], : x.shape[3]]


@lru_cache(maxsize=16)
def _kernel_spectrum(
    kernel: bytes, size: int, rows: int, columns: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    values = torch.from_numpy(np.frombuffer(kernel, dtype=np.float32).reshape(size, size).copy())
    return torch.fft.rfft2(values.double(), s=(rows, columns)).conj().to(device, dtype.to_complex())


def _fast_length(size: int) -> int:
    """The next length whose prime factors are 2, 3 and 5."""
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1


def sampled(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Linear interpolation at given positions, reflecting about the edges of the outer pixels.

    Args:
        x: float [N, C, H, W].
        rows: Row positions [N, H, W].
        columns: Column positions [N, H, W].
    """
    height, width = x.shape[2:]
    if x.dtype == torch.float32:
        # torch's own kernel wants positions scaled to [-1, 1] between the outer pixels' edges.
        grid = torch.stack(((2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1), dim=-1)
        return torch.nn.functional.grid_sample(
            x, grid, mode="bilinear", padding_mode="reflection", align_corners=False
        )
    top, bottom, top_weight, bottom_weight = _reflected(rows, height)
    left, right, left_weight, right_weight = _reflected(columns, width)
    top, bottom = top * width, bottom * width
    flat = x.flatten(2)
    total = torch.zeros_like(flat)
    for row, row_weight in ((top, top_weight), (bottom, bottom_weight)):
        for column, column_weight in ((left, left_weight), (right, right_weight)):
            index = (row + column).flatten(1)[:, None].expand(-1, x.shape[1], -1)
            value = flat.gather(2, index).mul_(row_weight.flatten(1)[:, None])
            total += value.mul_(column_weight.flatten(1)[:, None])
    return total.view_as(x)


def _reflected(position: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """Neighbours of every position on an axis, and weights, as ``two_d_digital`` has them."""
    period = 2 * size
    p = position
    below = torch.where(p < -period, period * torch.trunc(-p / period) + p, p)
    mirrored = torch.where(below > -1e-15, torch.full_like(p, 1e-15), -below) - 1
    below = torch.where(below < -size, below + period, mirrored)
    beyond = p - period * torch.trunc(p / period)
    beyond = torch.where(beyond >= size, period - beyond - 1, beyond)
    p = torch.where(p < 0, below, torch.where(p > size - 1, beyond, p))
    low = torch.floor(p)
    share = p - low
    first = low.long()
    return first.clamp(0, size - 1), (first + 1).clamp(0, size - 1), 1 - share, share
