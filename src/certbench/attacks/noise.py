"""Random numbers that belong to the image.

A stream is named by the image's seed, a purpose and counters (restart, target rank, block), so an
image's noise does not change with batch size, order, shards or what happened to other images.
Numbers are drawn on the CPU with a counter-based generator and moved by the caller, so they are
equal on all devices.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def image_seeds(seed64: int, item_index: np.ndarray) -> np.ndarray:
    """One seed per image.

    Args:
        seed64: The run's seed for the dataset.
        item_index: int [N], the place of each image in its split.

    Returns:
        int64 [N].
    """
    head = int(seed64).to_bytes(16, "little", signed=True)
    return np.array(
        [
            int.from_bytes(
                hashlib.blake2b(
                    head + int(item).to_bytes(8, "little", signed=True), digest_size=8
                ).digest(),
                "little",
                signed=True,
            )
            for item in np.asarray(item_index)
        ],
        dtype=np.int64,
    )


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """The generator of one image for one purpose.

    Args:
        seed: The image's seed (:func:`image_seeds`).
        purpose: What the numbers are for, for example ``pgd.start``.
        counters: Restart, target rank, block of queries, ...
    """
    text = f"{int(seed)}/{purpose}/{'/'.join(str(int(counter)) for counter in counters)}"
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))


def uniform(
    seeds: np.ndarray, purpose: str, counters: tuple[int, ...], shape: tuple[int, ...]
) -> torch.Tensor:
    """float32 [N, *shape], uniform in [0, 1), on the CPU."""
    drawn = np.empty((len(seeds), *shape), dtype=np.float32)
    for row, seed in enumerate(seeds):
        generator(seed, purpose, *counters).random(dtype=np.float32, out=drawn[row])
    return torch.from_numpy(drawn)


def normal(
    seeds: np.ndarray, purpose: str, counters: tuple[int, ...], shape: tuple[int, ...]
) -> torch.Tensor:
    """float32 [N, *shape], standard normal, on the CPU."""
    drawn = np.empty((len(seeds), *shape), dtype=np.float32)
    for row, seed in enumerate(seeds):
        generator(seed, purpose, *counters).standard_normal(dtype=np.float32, out=drawn[row])
    return torch.from_numpy(drawn)
