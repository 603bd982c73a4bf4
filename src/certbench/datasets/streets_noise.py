"""Procedural textures: random numbers and smooth noise as functions of position."""

from __future__ import annotations

from functools import cache

import numpy as np

_SIZE = 256


@cache
def _white() -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(0x57EE75))
    return rng.random(1 << 16, dtype=np.float32)


@cache
def _clouds() -> np.ndarray:
    """Tileable fractal noise, float32 [256, 256], equalised to be uniform in [0, 1]."""
    rng = np.random.Generator(np.random.PCG64(0xC10D5))
    total = np.zeros((_SIZE, _SIZE))
    for octave, amplitude in ((8, 1.0), (16, 0.6), (32, 0.4), (64, 0.28), (128, 0.2)):
        lattice = rng.random((octave, octave))
        at = np.arange(_SIZE) * octave / _SIZE
        cell = at.astype(int)
        share = at - cell
        share = share * share * (3 - 2 * share)
        following = (cell + 1) % octave
        rows = lattice[cell] * (1 - share)[:, None] + lattice[following] * share[:, None]
        total += amplitude * (rows[:, cell] * (1 - share) + rows[:, following] * share)
    ranks = np.empty(_SIZE * _SIZE, np.float32)
    ranks[np.argsort(total.ravel(), kind="stable")] = np.linspace(0, 1, _SIZE * _SIZE)
    return ranks.reshape(_SIZE, _SIZE)


def grain(i, j, key) -> np.ndarray:
    """A random number in [0, 1) for each lattice cell (i, j) and key.

    Args:
        i: Integer array.
        j: Integer array.
        key: Unsigned integers, one per pixel or one for all.
    """
    mixed = np.asarray(i, np.int64) * 7919 + np.asarray(j, np.int64) * 104729
    mixed = mixed + np.asarray(key, np.int64) * 31
    mixed ^= mixed >> 13
    return _white()[(mixed * 40503) & 0xFFFF]


def mottled(x, y, smooth: bool = True) -> np.ndarray:
    """Fractal noise, uniform in [0, 1], that repeats every 16 units in x and in y.

    Args:
        x: Coordinates; the coarsest features span two units, the finest an eighth.
        y: Coordinates of the same shape.
        smooth: Interpolate between texels (slower; visible only in large images).
    """
    texture = _clouds()
    scale = _SIZE / 16
    x, y = np.asarray(x) * scale, np.asarray(y) * scale
    left, top = np.floor(x), np.floor(y)
    i, j = left.astype(np.int64) & (_SIZE - 1), top.astype(np.int64) & (_SIZE - 1)
    if not smooth:
        return texture[j, i]
    a, b = (x - left).astype(np.float32), (y - top).astype(np.float32)
    k, m = (i + 1) & (_SIZE - 1), (j + 1) & (_SIZE - 1)
    upper = texture[j, i] * (1 - a) + texture[j, k] * a
    lower = texture[m, i] * (1 - a) + texture[m, k] * a
    return upper * (1 - b) + lower * b
