"""Arithmetic on arrays of single-precision vectors, one per row."""

from __future__ import annotations

from typing import Any

import numpy as np


def single(values: Any) -> np.ndarray:
    """Single-precision array of numbers."""
    return np.asarray(values, dtype=np.float32)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row-wise inner product of [n, 3] arrays (much faster than a reduction over axis 1)."""
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


def wrap(values: np.ndarray, period: Any) -> np.ndarray:
    """Remainder in [0, period) up to rounding (``np.mod`` is several times slower)."""
    return values - np.floor(values / period) * period


def mix(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Blend rows: ``a`` where ``share`` is 0, ``b`` where it is 1; ``share`` is [n]."""
    if b.ndim == 1:
        b = np.tile(b, len(a)).reshape(-1, 3)
    return a + (b - a) * threefold(share)


def threefold(values: np.ndarray) -> np.ndarray:
    """Each number three times, [n, 3] of [n]: as a factor, much faster than ``values[:, None]``."""
    return np.repeat(values, 3).reshape(*values.shape, 3)


def tinted(rows: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """``rows * colour`` for [..., n, 3] and [3], without inner loops of three steps."""
    wide = rows.shape[-2] * 3
    flat = rows.reshape(*rows.shape[:-2], wide) * np.tile(colour, rows.shape[-2])
    return flat.reshape(rows.shape)


def outer(values: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """``values[:, None] * colour`` for [n] and [3], channel by channel."""
    return np.stack([values * channel for channel in colour], axis=-1)
