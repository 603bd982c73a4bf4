"""The torch backends of ``philox-v1``: eager, compiled, and the hand-over to Triton.

Imported by :mod:`certbench.certify.noise` when tensors are made; it imports torch.
"""

from __future__ import annotations

import itertools
import logging
import math
import shutil
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from certbench.certify.noise import ESTIMATION, philox_normal, round_keys
from certbench.errors import CertbenchError

log = logging.getLogger(__name__)

Tensor = torch.Tensor

_MASK = 0xFFFFFFFF
# The multipliers less 2^32: products of a 32-bit word with these fit a signed 64-bit integer.
_MULTIPLIERS = (0xD2511F53 - 2**32, 0xCD9E8D57 - 2**32)
# Rows are cut into tiles of 64 blocks (256 elements). Whole tiles fill the widest CPU vectors, so
# that no vectorised loop has a scalar tail, whose logarithm would round differently.
_TILE = 64
# Tiles per step: temporaries that stay in the cache, bounded memory, and for the compiled version
# the one shape it is compiled for.
_EAGER_TILES = 256
_COMPILED_TILES = 256


def _philox(counter: list[Any], keys: Any) -> list[Tensor]:
    """Ten rounds on int64 counter words that broadcast to [B, blocks]: four words in [0, 2^32)."""
    c0, c1, c2, c3 = counter
    for k0, k1 in keys:
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        # c m = c (m - 2^32) + 2^32 c: the high word gets c back, the low word is unchanged.
        c0, c1, c2, c3 = (
            (((p1 >> 32) + c2) ^ c1 ^ k0) & _MASK,
            p1 & _MASK,
            (((p0 >> 32) + c0) ^ c3 ^ k1) & _MASK,
            p0 & _MASK,
        )
    return [c0, c1, c2, c3]


def _log_uniform(word: Tensor) -> Tensor:
    """The float32 ln((w + 1/2) / 2^32), accurate near u = 1, where float32 would round u to 1."""
    upper = word >= 2**31
    nearest = torch.where(upper, _MASK - word, word).float()
    part = (nearest + 0.5) * 2.0**-32
    return torch.where(upper, torch.log1p(-part), torch.log(part))


def _angle(word: Tensor) -> Tensor:
    """2 pi u as an angle in [-pi, pi), where float32 resolves it best."""
    signed = word - ((word >> 31) << 32)
    return (signed.float() + 0.5) * (2.0 * math.pi * 2.0**-32)


def _normals(words: list[Tensor], scale: Any) -> list[Tensor]:
    made = []
    for first, second in ((words[0], words[1]), (words[2], words[3])):
        radius = torch.sqrt(-2.0 * _log_uniform(first))
        angle = _angle(second)
        made += [radius * torch.cos(angle) * scale, radius * torch.sin(angle) * scale]
    return made


def _uniforms(words: list[Tensor], scale: Any) -> list[Tensor]:
    # Below 2^24 every step is exact in float32 but the product with the scale.
    return [((word >> 8) - 2**23).float().add(0.5).mul(2.0**-23) * scale for word in words]


_TRANSFORMS: dict[str, Callable[[list[Tensor], Any], list[Tensor]]] = {
    "normal": _normals,
    "uniform": _uniforms,
}


def fill(
    backend: str,
    kind: str,
    keys: list[tuple[int, int]],
    stream: int,
    images: Tensor,
    samples: Tensor,
    scale: float,
    out: Tensor,
) -> None:
    """Write the noise of each (image, sample) pair into the rows of ``out``.

    Args:
        backend: A name that :func:`resolve` returned for this device.
        kind: ``normal`` or ``uniform``.
        keys: The ten round keys.
        stream: The stream word.
        images: int64 [B] on the device of ``out``.
        samples: int64 [B] on the device of ``out``.
        scale: Standard deviation or half-width.
        out: float32 [B, elements], contiguous, at least one element.
    """
    if backend == "triton":
        from certbench.certify import _noise_triton

        _noise_triton.fill(kind, keys[0], stream, images, samples, scale, out)
    elif backend == "compiled":
        with torch.inference_mode():
            _fill_compiled(kind, keys, stream, images, samples, scale, out)
    else:
        with torch.inference_mode():
            _fill_eager(kind, keys, stream, images, samples, scale, out)


def _fill_tiles(generate, step: int, images: Tensor, samples: Tensor, out: Tensor) -> None:
    """Cut the rows into tiles, generate ``step`` tiles at a time, and put them in their places.

    ``generate(images, samples, first blocks)`` gives float32 [tiles, _TILE, 4] from int64 [tiles].
    """
    rows, elements = out.shape
    per_row = -(-elements // (4 * _TILE))
    tile_images = images.repeat_interleave(per_row)
    tile_samples = samples.repeat_interleave(per_row)
    tile_blocks = torch.arange(0, per_row * _TILE, _TILE, device=out.device).repeat(rows)
    whole = elements == per_row * 4 * _TILE
    target = out if whole else out.new_empty(rows, per_row * 4 * _TILE)
    flat = target.view(-1, _TILE, 4)
    for start in range(0, flat.shape[0], step):
        part = slice(start, start + step)
        place = flat[part]
        made = generate(tile_images[part], tile_samples[part], tile_blocks[part])
        place.copy_(made[: place.shape[0]])
    if not whole:
        out.copy_(target[:, :elements])


def _fill_eager(kind, keys, stream, images, samples, scale, out) -> None:
    lane = torch.arange(_TILE, device=out.device)

    def generate(image: Tensor, sample: Tensor, block: Tensor) -> Tensor:
        counter = [block[:, None] + lane, sample[:, None], image[:, None], stream]
        return torch.stack(_TRANSFORMS[kind](_philox(counter, keys), scale), dim=-1)

    _fill_tiles(generate, _EAGER_TILES, images, samples, out)


def _fill_compiled(kind, keys, stream, images, samples, scale, out) -> None:
    device = out.device
    # Numbers travel in tensors: a number in the graph would be compiled in.
    lane = torch.arange(_TILE, device=device)
    words = torch.tensor([*itertools.chain(*keys), stream], dtype=torch.int64, device=device)
    factor = torch.tensor([scale], dtype=torch.float32, device=device)
    compiled = _compiled(kind)

    def generate(*tiles: Tensor) -> Tensor:
        # Always the one compiled shape, in fresh tensors: a view or another size compiles anew.
        full = [tile.new_zeros(_COMPILED_TILES) for tile in tiles]
        for place, tile in zip(full, tiles, strict=True):
            place[: tile.shape[0]] = tile
        return compiled(*full, lane, words, factor)

    _fill_tiles(generate, _COMPILED_TILES, images, samples, out)


@cache
def _compiled(kind: str) -> Callable[..., Tensor]:
    transform = _TRANSFORMS[kind]

    def make(image, sample, block, lane, words, factor):
        keys = [(words[2 * i], words[2 * i + 1]) for i in range(10)]
        counter = [block[:, None] + lane, sample[:, None], image[:, None], words[20]]
        return torch.stack(transform(_philox(counter, keys), factor[0]), dim=-1)

    return torch.compile(make, dynamic=False, fullgraph=True)


@cache
def _works(backend: str, device_type: str) -> bool:
    """Whether a backend reproduces the reference on this kind of device, tried once per process."""
    device = torch.device(device_type)
    seed, images, samples = 0x0123456789ABCDEF, [7, 8, 2**32 - 1], [42, 0, 2**32 - 1]
    try:
        out = torch.empty(3, 300, device=device)
        fill(
            backend,
            "normal",
            round_keys(seed),
            ESTIMATION,
            torch.tensor(images, device=device),
            torch.tensor(samples, device=device),
            1.0,
            out,
        )
    except Exception as error:  # whatever a compiler may raise
        log.warning("noise backend %s fails on %s: %s", backend, device_type, error)
        return False
    reference = np.stack(
        [philox_normal(seed, ESTIMATION, i, s, 300) for i, s in zip(images, samples, strict=True)]
    )
    worst = float(np.abs(out.cpu().numpy() - reference).max())
    if worst > 5e-4:
        log.warning("noise backend %s is off by %.2g on %s", backend, worst, device_type)
    return worst <= 5e-4


def resolve(device: Any, requested: str) -> str:
    """See :func:`certbench.certify.noise.resolve_backend`."""
    kind = torch.device(device).type
    if requested == "eager":
        return "eager"
    if requested == "auto":
        wanted = {"cuda": "triton", "cpu": "compiled"}.get(kind, "eager")
        if wanted == "compiled" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
            return "eager"
        return wanted if _works(wanted, kind) else "eager"
    if not _works(requested, kind):
        raise CertbenchError(
            f"noise backend '{requested}' does not work on {kind}",
            where="backend",
            remedy="use auto, or eager, which works everywhere",
        )
    return requested
