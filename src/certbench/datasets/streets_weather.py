"""What weather and lens do to a rendered street: haze, wet ground, falling drops, glow."""

from __future__ import annotations

from typing import Any

import numpy as np

from certbench.datasets.streets_light import Atmosphere
from certbench.datasets.streets_noise import grain
from certbench.datasets.streets_vectors import single, threefold


def haze(radiance: np.ndarray, depth: np.ndarray, air: Atmosphere) -> np.ndarray:
    """Fade to the air's light with distance: ``t x + (1 - t) airlight``, ``t = exp(-beta z)``.

    Args:
        radiance: Linear RGB, float32 [H, W, 3].
        depth: z-depth in metres, float32 [H, W]; the sky is infinitely far only in fog.
        air: Gives the extinction and the airlight.
    """
    through = np.exp(-np.float32(air.extinction) * depth)
    if air.condition != "fog":
        # Other skies have their own colours, which include the air's light.
        through = np.where(np.isinf(depth), np.float32(1), through)
    rest = 1 - through
    faded = [
        radiance[..., i] * through + rest * light for i, light in enumerate(single(air.airlight))
    ]
    return np.stack(faded, axis=-1)


def mirrored(radiance: np.ndarray, is_ground: np.ndarray) -> np.ndarray:
    """What wet ground mirrors: each column flipped about the foot of what stands above.

    Args:
        radiance: Linear RGB, float32 [H, W, 3].
        is_ground: bool [H, W].

    Returns:
        float32 [n, 3] for the n ground pixels in order.
    """
    height, width = is_ground.shape
    rows = np.arange(height)[:, None]
    foot = np.maximum.accumulate(np.where(is_ground, -1, rows), axis=0)
    row, column = np.nonzero(is_ground)
    source = 2 * foot[row, column] + 1 - row
    flat = radiance.reshape(-1, 3)
    ripple = max(1, 2 * height // 96)
    # Ripples scatter the mirror image vertically.
    total = np.zeros((len(row), 3), np.float32)
    for key in (1, 2):
        shift = ((grain(column, row, key) - 0.5) * (3 * ripple)).astype(np.int64)
        total += 0.5 * flat.take(np.clip(source + shift, 0, height - 1) * width + column, 0)
    return total


def glow(light: np.ndarray) -> np.ndarray:
    """Halo of lamps in the lens: a wide blur, float32 [H, W, 3].

    Args:
        light: Light of lamps, float32 [H, W, 3].
    """
    height, width = light.shape[:2]
    cell = max(1, round(width / 64))
    rows, columns = -(-height // cell), -(-width // cell)
    padded = np.zeros((rows * cell, columns * cell, 3), np.float32)
    padded[:height, :width] = light
    corners = [(i, j) for i in range(cell) for j in range(cell)]
    coarse = np.zeros((rows, columns, 3), np.float32)
    for i, j in corners:
        coarse += padded[i::cell, j::cell] / (cell * cell)
    narrow = _smooth(coarse)
    halo = 0.10 * narrow + 0.28 * _smooth(_smooth(_smooth(narrow)))
    halo = _smooth(halo.repeat(cell, axis=0).repeat(cell, axis=1), max(1, cell // 2))
    return halo[:height, :width]


def _smooth(image: np.ndarray, step: int = 1) -> np.ndarray:
    """Separable (1, 2, 1)/4 kernel with taps ``step`` apart and zero borders."""
    for axis in (0, 1):
        near = np.zeros_like(image)
        shifted = [slice(None)] * image.ndim
        kept = [slice(None)] * image.ndim
        shifted[axis], kept[axis] = slice(step, None), slice(None, -step)
        near[tuple(kept)] += image[tuple(shifted)]
        near[tuple(shifted)] += image[tuple(kept)]
        image = 0.5 * image + 0.25 * near
    return image


def falling(
    display: np.ndarray, depth: np.ndarray, air: Atmosphere, rng: np.random.Generator
) -> np.ndarray:
    """Add falling rain or snow in front of what is farther away than the drops.

    Args:
        display: Display values in [0, 1], float32 [H, W, 3].
        depth: z-depth in metres, float32 [H, W].
        air: Gives the condition.
        rng: Random generator of the scene's drops.
    """
    height, width = depth.shape
    scale = height / 96
    layers: tuple[tuple[float, float, float], ...]
    if air.condition == "rain":
        drops, lean = 150, float(rng.uniform(-0.25, 0.25))
        layers = ((4.0, 9.0, 0.20), (12.0, 5.0, 0.14))
    elif air.condition == "snow":
        drops, lean = 130, float(rng.uniform(-0.3, 0.3))
        layers = ((4.0, 0.85, 0.8), (9.0, 0.5, 0.7), (18.0, 0.3, 0.55))
    else:
        return display
    veil = np.zeros(height * width, np.float32)
    aspect = width / (2 * height)
    for distance, length, strength in layers:
        count = int(drops * aspect * (1.0 if distance < 10 else 1.6))
        x, y = rng.uniform(0, width, count), rng.uniform(0, height, count)
        size = length * scale * rng.uniform(0.6, 1.4, count)
        shade = strength * rng.uniform(0.5, 1.0, count)
        if air.condition == "rain":
            steps, thick = int(np.ceil(length * scale * 1.4)), max(1, round(0.6 * scale))
            dy, dx = (side.reshape(-1, 1) for side in np.mgrid[:steps, :thick])
            strong = np.where(dy <= size, shade, 0.0)
            column, row = (x + lean * dy + dx).astype(int), (y + dy).astype(int)
        else:
            reach = max(1, int(np.ceil(length * scale)))
            span = slice(-reach, reach + 1)
            dy, dx = (side.reshape(-1, 1) for side in np.mgrid[span, span])
            strong = np.clip(size + 0.5 - np.hypot(dx - lean * dy, dy), 0, 1) * shade
            column, row = (x + dx).astype(int), (y + dy).astype(int)
        shown = (strong > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        at = row[shown] * width + column[shown]
        hidden = depth.ravel()[at] <= distance
        np.maximum.at(veil, at, np.where(hidden, 0, strong[shown]).astype(np.float32))
    veil = veil.reshape(height, width)
    white = 0.93 if air.condition == "snow" else 0.80
    return display + threefold(veil) * (white - display)


def lens(image: np.ndarray) -> np.ndarray:
    """Slight softness of a lens: a separable (1, 6, 1)/8 kernel, float32 [H, W, ...]."""
    for axis in (0, 1):
        line: list[Any] = [slice(None)] * image.ndim
        inner, before, after = list(line), list(line), list(line)
        inner[axis], before[axis], after[axis] = slice(1, -1), slice(None, -2), slice(2, None)
        soft = 0.75 * image
        soft[tuple(inner)] += 0.125 * (image[tuple(before)] + image[tuple(after)])
        for edge, other in ((0, 1), (-1, -2)):
            here, there = list(line), list(line)
            here[axis], there[axis] = edge, other
            soft[tuple(here)] += 0.125 * (image[tuple(here)] + image[tuple(there)])
        image = soft
    return image
