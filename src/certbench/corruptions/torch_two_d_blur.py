"""Gaussian, glass, defocus, motion and zoom blur on batches, in torch.

Every function takes images (uint8 [N, 3, H, W]), the entry of its type and the batch's random
numbers, and returns uint8 [N, 3, H, W]. Functions whose name ends in ``_with`` take the random
numbers of the NumPy code in place of the batch's and then give its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from certbench.corruptions import two_d_blur
from certbench.corruptions.imagecorruptions_adapter import package
from certbench.corruptions.torch_two_d_filters import (
    convolved,
    enlarged,
    gaussian,
    levels,
    shifted_sum,
    truncated,
)
from certbench.corruptions.torch_two_d_random import Draws


def gaussian_blur(images: torch.Tensor, entry: float, draws: Draws) -> torch.Tensor:
    """Gaussian filter of standard deviation ``entry`` pixels, edges replicated."""
    return truncated(gaussian(images.to(draws.dtype) / 255, entry))


def defocus_blur(images: torch.Tensor, entry: tuple[float, float], draws: Draws) -> torch.Tensor:
    """Filter with the disc of the benchmark.

    Sums of integers over a disc of n equal weights are integers for one value in n, which float64
    puts just above or below, as the weights (float32) sum to more or less than one. float32 cannot
    resolve that and is moved to the same side.
    """
    disc = _disc(*entry)
    made = convolved(images.to(draws.dtype) / 255, disc)
    if draws.dtype == torch.float32:
        made += float(np.sign(disc.sum(dtype=np.float64) - 1)) * 2.0**-21
    return truncated(made)


@lru_cache(maxsize=16)
def _disc(radius: float, alias_sigma: float) -> np.ndarray:
    return package().disk(radius=radius, alias_blur=alias_sigma)


def motion_blur(images: torch.Tensor, entry: tuple[int, float], draws: Draws) -> torch.Tensor:
    """Average along a line at an angle from (-45, 45) degrees, with half-Gaussian weights."""
    return motion_blur_with(images, entry, draws.scalars(0, -45, 45), draws.dtype)


def motion_blur_with(
    images: torch.Tensor, entry: tuple[int, float], angles: Sequence[float], dtype: torch.dtype
) -> torch.Tensor:
    """Motion blur of every image along its angle in degrees."""
    height, width = images.shape[2:]
    blurred = [
        shifted_sum(image.to(dtype), two_d_blur.motion_taps(height, width, *entry, angle))
        for image, angle in zip(images, angles, strict=True)
    ]
    return levels(torch.stack(blurred))


def zoom_blur(images: torch.Tensor, entry: tuple[float, float], draws: Draws) -> torch.Tensor:
    """Mean of the image (once more) and its central crops enlarged by every factor."""
    x = (images.to(draws.dtype) / 255).float()
    exact = x.to(draws.dtype)
    factors = np.arange(1, *entry)
    total = torch.zeros_like(x)
    for factor in factors:
        total += enlarged(exact, float(factor)).float()
    return truncated((x + total) / (len(factors) + 1))


def glass_blur(images: torch.Tensor, entry: tuple[float, int, int], draws: Draws) -> torch.Tensor:
    """Blur, copy every pixel from a random neighbour ``iterations`` times, blur again."""
    _, delta, iterations = entry
    height, width = images.shape[2:]
    pixels = (height - 2 * delta) * (width - 2 * delta)
    offsets = draws.integers(0, (iterations, pixels, 2), 2 * delta) - delta
    return glass_blur_with(images, entry, offsets, draws.dtype)


def glass_blur_with(
    images: torch.Tensor,
    entry: tuple[float, int, int],
    offsets: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Glass blur by given offsets.

    Args:
        images: uint8 [N, 3, H, W].
        entry: Standard deviation of the blur, largest offset, iterations.
        offsets: int64 [N, iterations, pixels, 2], (right, down), pixels in the order of the visits.
        dtype: float32 or float64.
    """
    sigma, delta, iterations = entry
    height, width = images.shape[2:]
    x = truncated(gaussian(images.to(dtype) / 255, sigma))
    source = None
    for i in range(iterations):
        step = _neighbours(height, width, delta, offsets[:, i])
        source = step if source is None else source.gather(1, step)
    assert source is not None
    x = x.flatten(2).gather(2, source[:, None].expand(-1, 3, -1)).view_as(x)
    return truncated(gaussian(x.to(dtype) / 255, sigma))


def _neighbours(height: int, width: int, delta: int, offset: torch.Tensor) -> torch.Tensor:
    """Where each pixel's value comes from in one pass (``two_d_blur`` explains): int64 [N, H W]."""
    device, batch, count = offset.device, len(offset), height * width
    rows = torch.arange(height - delta, delta, -1, device=device)
    columns = torch.arange(width - delta, delta, -1, device=device)
    pixel = (rows[:, None] * width + columns).flatten()
    neighbour = pixel + offset[..., 1] * width + offset[..., 0]
    visited = torch.zeros(count, dtype=torch.bool, device=device)
    visited[pixel] = True
    # Links to values after the pass are flat indices into the batch, those to values before it,
    # which end a chain, are -1 - pixel.
    first = torch.arange(batch, device=device)[:, None] * count
    known = visited[neighbour] & (neighbour > pixel)
    link = (-1 - torch.arange(count, device=device)).repeat(batch, 1)
    link[:, pixel] = torch.where(known, neighbour + first, -1 - neighbour)
    link = link.flatten()
    unresolved = (link >= 0).nonzero().squeeze(1)
    while len(unresolved):
        link[unresolved] = link[link[unresolved]]
        unresolved = unresolved[link[unresolved] >= 0]
    return (-1 - link).view(batch, count)
