"""Gaussian, shot, impulse and speckle noise on batches, in torch.

Every function takes images (uint8 [N, 3, H, W]), the entry of its type and the batch's random
numbers, and returns uint8 [N, 3, H, W]. The laws are those of the NumPy code, the numbers are not.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from certbench.corruptions.torch_two_d_filters import truncated
from certbench.corruptions.torch_two_d_random import Draws


def gaussian_noise(images: torch.Tensor, entry: float, draws: Draws) -> torch.Tensor:
    """Add normal noise of standard deviation ``entry``."""
    x = images.to(draws.dtype) / 255
    return truncated(draws.normal(0, images.shape[1:]).mul_(entry).add_(x))


def speckle_noise(images: torch.Tensor, entry: float, draws: Draws) -> torch.Tensor:
    """Add normal noise of standard deviation ``entry`` times the value."""
    x = images.to(draws.dtype) / 255
    return truncated(draws.normal(0, images.shape[1:]).mul_(entry).mul_(x).add_(x))


def impulse_noise(images: torch.Tensor, entry: float, draws: Draws) -> torch.Tensor:
    """Replace each value with probability ``entry``, by black or white alike."""
    words = draws.halves(0, images.shape[1:])
    out = images.masked_fill(words < round(entry * 2**32), 255)
    return out.masked_fill_(words < round(entry * 2**31), 0)


def shot_noise(images: torch.Tensor, entry: float, draws: Draws) -> torch.Tensor:
    """Poisson noise of a sensor that counts ``entry`` photons at full intensity.

    Drawn by Walker's alias method from one table per level: of the 32 random bits of a value the
    upper ones choose a column, the lower ones between the column's two outcomes. Probabilities are
    exact to 2^-22.
    """
    threshold, outcome = _alias_table(entry, images.device)
    columns = threshold.shape[1]
    bits = 32 - (columns.bit_length() - 1)
    words = draws.halves(0, images.shape[1:])
    cell = words >> bits
    cell += images.long() * columns
    second = (words & ((1 << bits) - 1)) >= threshold.view(-1).take(cell)
    return outcome.view(-1).take(cell * 2 + second)


@lru_cache(maxsize=8)
def _alias_table(photons: float, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Thresholds int64 [256, columns] and outcomes uint8 [256, columns, 2] of shot noise.

    Outcome k of level v is trunc(255 k / photons), with the probability that Poisson(photons v/255)
    is k; all counts from ``photons`` on are white.
    """
    last = int(np.ceil(photons))
    columns = 1 << last.bit_length()
    counts = np.arange(1, last)
    law = np.zeros((256, columns))
    rate = np.arange(256)[:, None] / 255 * photons
    logarithms = np.concatenate([[0.0], np.cumsum(np.log(counts))])
    with np.errstate(divide="ignore", invalid="ignore"):
        law[:, 0] = np.exp(-rate[:, 0])
        law[:, 1:last] = np.exp(counts * np.log(rate) - rate - logarithms[1:])
    law[0, 1:] = 0
    law[:, last] = np.clip(1 - law[:, :last].sum(axis=1), 0, None)
    law /= law.sum(axis=1, keepdims=True)
    levels = np.zeros(columns, dtype=np.uint8)
    levels[: last + 1] = (np.clip(np.arange(last + 1) / float(photons), 0, 1) * 255).astype(
        np.uint8
    )

    bits = 32 - (columns.bit_length() - 1)
    threshold = np.empty((256, columns))
    alias = np.empty((256, columns), dtype=np.int64)
    for level in range(256):
        threshold[level], alias[level] = _vose(law[level])
    outcome = np.stack([np.broadcast_to(levels, alias.shape), levels[alias]], axis=-1)
    return (
        torch.from_numpy(np.round(threshold * 2**bits).astype(np.int64)).to(device),
        torch.from_numpy(np.ascontiguousarray(outcome)).to(device),
    )


def _vose(law: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Alias table of a law on 0..n - 1: share of each column's own outcome, and its other one.

    Source: Vose, IEEE Transactions on Software Engineering 17, 1991.
    """
    share = (law * len(law)).tolist()
    alias = list(range(len(law)))
    small = [i for i, s in enumerate(share) if s < 1]
    large = [i for i, s in enumerate(share) if s >= 1]
    while small and large:
        less, more = small.pop(), large[-1]
        alias[less] = more
        share[more] += share[less] - 1
        if share[more] < 1:
            small.append(large.pop())
    for i in (*small, *large):  # one up to rounding
        share[i] = 1.0
        alias[i] = i
    return np.array(share), np.array(alias)
