"""Counter-based random numbers for corruptions on any device.

Every number is a function of the image's 64-bit key, the purpose it is drawn for, and its position:
SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) of ``key' + position * golden ratio``, where
``key'`` mixes key and purpose. It is integer arithmetic, so that CPU and GPU draw the same words,
in any batch and order. Numbers made of a word with logarithms and cosines may differ between
devices in their last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_MASK64 = (1 << 64) - 1
_MASK32 = (1 << 32) - 1


class Draws:
    """Random numbers for the images of one batch.

    Args:
        keys: One 64-bit key per image.
        device: Where tensors are made.
        dtype: float32 or float64, of uniform and normal numbers.
    """

    def __init__(self, keys: Sequence[int], device: torch.device, dtype: torch.dtype):
        self.keys = list(keys)
        self.device = device
        self.dtype = dtype

    def scalars(self, purpose: int, low: float, high: float) -> list[float]:
        """One number per image, uniform on [low, high), on the host."""
        words = (self._word(key, purpose) for key in self.keys)
        return [low + (high - low) * ((word >> 11) * 2.0**-53) for word in words]

    def choices(self, purpose: int, bound: int) -> list[int]:
        """One integer per image, uniform on 0..bound - 1, on the host."""
        return [self._word(key, purpose) * bound >> 64 for key in self.keys]

    def halves(self, purpose: int, shape: Sequence[int]) -> torch.Tensor:
        """Integers uniform on 0..2^32 - 1: int64 [N, *shape]."""
        count = math.prod(shape)
        words = self._words(purpose, -(-count // 2))
        halves = torch.cat((_shifted(words, 32), words & _MASK32), dim=1)
        return halves[:, :count].view(len(self.keys), *shape)

    def uniform(self, purpose: int, shape: Sequence[int]) -> torch.Tensor:
        """Numbers uniform on (0, 1), in steps of 2^-32 (float32 rounds the last to 1)."""
        return self.halves(purpose, shape).to(self.dtype).add_(0.5).mul_(2.0**-32)

    def normal(self, purpose: int, shape: Sequence[int]) -> torch.Tensor:
        """Standard normal numbers by the Box-Muller transform: [N, *shape]."""
        count = math.prod(shape)
        words = self._words(purpose, -(-count // 2))
        radius = _shifted(words, 32).to(self.dtype).add_(0.5).mul_(2.0**-32)
        radius = radius.log_().mul_(-2.0).sqrt_()
        angle = (words & _MASK32).to(self.dtype).mul_(2.0 * math.pi * 2.0**-32)
        pairs = torch.cat((radius * angle.cos(), radius * angle.sin()), dim=1)
        return pairs[:, :count].view(len(self.keys), *shape)

    def integers(self, purpose: int, shape: Sequence[int], bound: int) -> torch.Tensor:
        """Integers uniform on 0..bound - 1: int64 [N, *shape]."""
        return (self.halves(purpose, shape) * bound) >> 32

    def _words(self, purpose: int, count: int) -> torch.Tensor:
        starts = [_signed(_mixed(key ^ _mixed(purpose * _GOLDEN))) for key in self.keys]
        start = torch.tensor(starts, dtype=torch.int64, device=self.device)
        z = start[:, None] + _steps(count, self.device)
        z = (z ^ _shifted(z, 30)).mul_(_signed(_FIRST))
        z = (z ^ _shifted(z, 27)).mul_(_signed(_SECOND))
        return z ^ _shifted(z, 31)

    def _word(self, key: int, purpose: int) -> int:
        """The first word of a purpose, as :meth:`_words` makes it."""
        return _mixed(_mixed(key ^ _mixed(purpose * _GOLDEN)) + _GOLDEN)


@lru_cache(maxsize=16)
def _steps(count: int, device: torch.device) -> torch.Tensor:
    return torch.arange(1, count + 1, dtype=torch.int64, device=device) * _signed(_GOLDEN)


def _mixed(z: int) -> int:
    """The output function of SplitMix64."""
    z &= _MASK64
    z = (z ^ z >> 30) * _FIRST & _MASK64
    z = (z ^ z >> 27) * _SECOND & _MASK64
    return z ^ z >> 31


def _shifted(z: torch.Tensor, places: int) -> torch.Tensor:
    """Logical shift to the right (that of torch keeps the sign)."""
    return (z >> places).bitwise_and_((1 << (64 - places)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
