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
    return a + (b - a) * share[:, None]
