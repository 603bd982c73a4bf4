"""Snow, frost, fog and spatter on batches, in torch.

Every function takes images (uint8 [N, 3, H, W]), the entry of its type and the batch's random
numbers, and returns uint8 [N, 3, H, W]. Functions whose name ends in ``_with`` take the random
numbers of the NumPy code in place of the batch's and then give its result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch

from certbench.corruptions import two_d_blur, two_d_weather
from certbench.corruptions.torch_two_d_filters import (
    enlarged,
    gaussian,
    levels,
    shifted_sum,
    truncated,
)
from certbench.corruptions.torch_two_d_random import Draws

_LUMA = (0.299, 0.587, 0.114)


def snow(images: torch.Tensor, entry: tuple, draws: Draws) -> torch.Tensor:
    """Whiten the image and add a layer of flakes, zoomed and blurred along a random direction."""
    noise = draws.normal(0, images.shape[2:]).mul_(entry[1]).add_(entry[0])
    return snow_with(images, entry, noise, draws.scalars(1, -135, -45))


def snow_with(
    images: torch.Tensor, entry: tuple, noise: torch.Tensor, angles: Sequence[float]
) -> torch.Tensor:
    """Snow of a given layer of noise (float [N, H, W]) and given directions in degrees."""
    _, _, zoom, threshold, radius, sigma, mix = entry
    height, width = images.shape[2:]
    flakes = enlarged(noise[:, None], zoom, whole=True)
    flakes = torch.where(flakes < threshold, 0, flakes).clamp_(0, 1)
    rows, columns = flakes.shape[2:]
    blurred = [
        shifted_sum(layer, two_d_blur.motion_taps(rows, columns, radius, sigma, angle))
        for layer, angle in zip(flakes, angles, strict=True)
    ]
    layer = torch.stack(blurred).mul_(255).round_().div_(255)[:, :, :height, :width]
    x = images.to(noise.dtype) / 255
    red, green, blue = (weight * x[:, i : i + 1] for i, weight in enumerate(_LUMA))
    grey = red + green + blue
    x = mix * x + (1 - mix) * torch.maximum(x, grey * 1.5 + 0.5)
    return truncated(x + layer + layer.flip(2, 3))


def frost(images: torch.Tensor, entry: tuple, draws: Draws) -> torch.Tensor:
    """Blend with a random crop of one of five photographs of frost."""
    weight, frost_weight, scale = entry
    height, width = images.shape[2:]
    out = torch.empty_like(images)
    # One word per image gives the photograph, one the row and one the column.
    chosen = draws.choices(0, 5)
    photographs = [_photograph(i, scale, height, width, images.device) for i in chosen]
    tops = draws.scalars(1, 0, 1)
    lefts = draws.scalars(2, 0, 1)
    for i, photograph in enumerate(photographs):
        top = int(tops[i] * (photograph.shape[1] - height))
        left = int(lefts[i] * (photograph.shape[2] - width))
        crop = photograph[:, top : top + height, left : left + width].to(draws.dtype)
        out[i] = levels(images[i].to(draws.dtype).mul_(weight).add_(crop.mul_(frost_weight)))
    return out


@lru_cache(maxsize=10)
def _photograph(
    index: int, scale: float, height: int, width: int, device: torch.device
) -> torch.Tensor:
    """A photograph as uint8 [3, rows, columns] on the device."""
    photograph = two_d_weather.frost_photograph(index, scale, height, width)
    return torch.from_numpy(photograph.transpose(2, 0, 1).copy()).to(device)


def fog(images: torch.Tensor, entry: tuple, draws: Draws) -> torch.Tensor:
    """Add a diamond-square fractal, scaled so that the largest value stays."""
    side = 1 << (max(images.shape[2:]) - 1).bit_length()
    uniform = draws.uniform(0, (side * side,))
    taken = 0

    def next_uniform(rows: int, columns: int) -> torch.Tensor:
        nonlocal taken
        part = uniform[:, taken : taken + rows * columns]
        taken += rows * columns
        return part.view(-1, rows, columns) * 2 - 1

    return fog_with(images, entry, next_uniform, draws.dtype)


def fog_with(
    images: torch.Tensor,
    entry: tuple,
    next_uniform: Callable[[int, int], torch.Tensor],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Fog whose noise, uniform on (-1, 1), is given step by step.

    Args:
        images: uint8 [N, 3, H, W].
        entry: Strength and decay.
        next_uniform: Called with rows and columns, returns float [N, rows, columns].
        dtype: float32 or float64.
    """
    strength, decay = entry
    height, width = images.shape[2:]
    side = 1 << (max(height, width) - 1).bit_length()
    x = images.to(dtype) / 255
    largest = x.amax(dim=(1, 2, 3), keepdim=True)
    fractal = torch.zeros(len(images), side, side, dtype=dtype, device=images.device)
    step, wibble = side, 100.0
    while step >= 2:
        half = step // 2
        corners = fractal[:, ::step, ::step]

        def noisy_mean(total: torch.Tensor, wibble: float = wibble) -> torch.Tensor:
            noise = next_uniform(*total.shape[1:]).to(total) * wibble
            return total / 4 + wibble * noise

        total = corners + corners.roll(-1, 1)
        total = total + total.roll(-1, 2)
        fractal[:, half::step, half::step] = noisy_mean(total)
        centers = fractal[:, half::step, half::step]
        total = (centers + centers.roll(1, 1)) + (corners + corners.roll(-1, 2))
        fractal[:, ::step, half::step] = noisy_mean(total)
        total = (centers + centers.roll(1, 2)) + (corners + corners.roll(-1, 1))
        fractal[:, half::step, ::step] = noisy_mean(total)
        step //= 2
        wibble /= decay
    fractal -= fractal.amin(dim=(1, 2), keepdim=True)
    fractal /= fractal.amax(dim=(1, 2), keepdim=True)
    x = x + strength * fractal[:, None, :height, :width]
    return truncated(x * largest / (largest + strength))


def spatter(images: torch.Tensor, entry: tuple, draws: Draws) -> torch.Tensor:
    """Drops of water, or splashes of mud, where smoothed noise exceeds a threshold."""
    noise = draws.normal(0, images.shape[2:]).mul_(entry[1]).add_(entry[0])
    return spatter_with(images, entry, noise)


def spatter_with(images: torch.Tensor, entry: tuple, noise: torch.Tensor) -> torch.Tensor:
    """Spatter of a given layer of noise, float [N, H, W].

    The refraction of water needs an edge detector and a distance transform, for which its layer
    goes through OpenCV on the host.
    """
    _, _, sigma, threshold, gain, mud = entry
    x = images.to(noise.dtype) / 255
    layer = gaussian(noise, sigma)
    layer = torch.where(layer < threshold, 0, layer)
    if mud:
        mask = gaussian((layer > threshold).to(noise.dtype), gain)
        mask = torch.where(mask < 0.8, 0, mask)[:, None]
        return truncated(x * (1 - mask) + _color(two_d_weather.MUD, x) * mask)
    water = np.stack([two_d_weather.refraction(one) for one in layer.double().cpu().numpy()])
    drops = torch.from_numpy(water).to(x)
    largest = drops.amax(dim=(1, 2), keepdim=True)
    drops = torch.where(largest > 0, drops / largest.clamp_min(1e-30), 0)
    return truncated(x + drops[:, None] * gain * _color(two_d_weather.WATER, x))


def _color(rgb: tuple[float, float, float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(rgb, dtype=like.dtype, device=like.device).view(1, 3, 1, 1)
