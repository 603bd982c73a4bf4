"""The torch backends of ``philox-v1``: eager, compiled, and the hand-over to Triton.

Imported by :mod:`certbench.certify.noise` when tensors are made; it imports torch.
"""

from __future__ import annotations

import itertools
import logging
import math
import shutil
import sys
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
    """Cut the rows into tiles and generate ``step`` of them at a time.

    ``generate(images, samples, first blocks, place)`` takes int64 [tiles] and writes the values
    into ``place``, float32 [tiles, _TILE, 4].
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
        generate(tile_images[part], tile_samples[part], tile_blocks[part], flat[part])
    if not whole:
        out.copy_(target[:, :elements])


def _fill_eager(kind, keys, stream, images, samples, scale, out) -> None:
    lane = torch.arange(_TILE, device=out.device)
    write = _write_normals if kind == "normal" else _write_uniforms
    # Numpy multiplies 32-bit words into 64-bit ones, and its result holds both halves.
    halves = out.device.type == "cpu" and sys.byteorder == "little"

    def generate(image: Tensor, sample: Tensor, block: Tensor, place: Tensor) -> None:
        counter = [block[:, None] + lane, sample[:, None], image[:, None]]
        if halves:
            words = _philox_halves([c.numpy().astype(np.uint32) for c in counter], stream, keys)
        else:
            words = [word.to(torch.int32) for word in _philox([*counter, stream], keys)]
        write(words, scale, place)

    _fill_tiles(generate, _EAGER_TILES, images, samples, out)


def _philox_halves(counter: list[np.ndarray], stream: int, keys: Any) -> list[Tensor]:
    """The words of :func:`_philox` on the CPU, as the int32 [tiles, _TILE] of the same bits.

    Args:
        counter: uint32 words c0 [tiles, _TILE], c1 [tiles, 1], c2 [tiles, 1].
        stream: Word c3.
        keys: The ten round keys.
    """
    shape = counter[0].shape
    last: Any = np.uint32(stream)
    c0, c1, c2, c3 = *counter, last
    for k0, k1 in keys[:2]:
        # The first words are the same for whole tiles: numpy broadcasts them.
        (low0, high0), (low1, high1) = _product(c0, 0), _product(c2, 1)
        c0, c1, c2, c3 = high1 ^ c1 ^ np.uint32(k0), low1, high0 ^ c3 ^ np.uint32(k1), low0
    c0, c2 = c0.reshape(-1), c2.reshape(-1)
    c1, c3 = (np.broadcast_to(word, shape).reshape(-1) for word in (c1, c3))
    # Two pairs of products in turn: the low halves of the one are read while the other is made.
    products = [[np.empty(c0.size, np.uint64) for _ in range(2)] for _ in range(2)]
    for turn, (k0, k1) in enumerate(keys[2:]):
        out0, out1 = products[turn % 2]
        (low0, high0), (low1, high1) = _product(c0, 0, out0), _product(c2, 1, out1)
        np.bitwise_xor(high1, c1, out=c0)
        np.bitwise_xor(high0, c3, out=c2)
        c0 ^= np.uint32(k0)
        c2 ^= np.uint32(k1)
        c1, c3 = low1, low0
    return [torch.from_numpy(word.view(np.int32).reshape(shape)) for word in (c0, c1, c2, c3)]


_FACTORS = [np.uint32(m + 2**32) for m in _MULTIPLIERS]


def _product(
    word: np.ndarray, which: int, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Views of the low and the high words of a multiplier times uint32 words."""
    product = np.multiply(word, _FACTORS[which], dtype=np.uint64, out=out)
    words = product.view(np.uint32)
    return words[..., 0::2], words[..., 1::2]


def _write_normals(words: list[Tensor], scale: float, place: Tensor) -> None:
    """The values of :func:`_normals`, to the bit, from int32 words and with few temporaries."""
    for pair, (first, second) in enumerate((words[:2], words[2:])):
        # All ones where u >= 1/2; there the word's complement is the distance from 1.
        upper = first >> 31
        part = (first ^ upper).float().add_(0.5).mul_(2.0**-32)
        low, high = torch.log(part), part.neg_().log1p_()
        # Choose by bits, which costs less than torch.where.
        chosen = low.view(torch.int32)
        chosen ^= (chosen ^ high.view(torch.int32)).bitwise_and_(upper)
        radius = low.mul_(-2.0).sqrt_()
        angle = second.float().add_(0.5).mul_(2.0 * math.pi * 2.0**-32)
        for turn, wave in enumerate((torch.cos(angle), angle.sin_())):
            torch.mul(wave.mul_(radius), scale, out=place[..., 2 * pair + turn])


def _write_uniforms(words: list[Tensor], scale: float, place: Tensor) -> None:
    """The values of :func:`_uniforms`, to the bit, from int32 words."""
    for i, word in enumerate(words):
        value = (word >> 8).bitwise_and_(0xFFFFFF).sub_(2**23).float().add_(0.5).mul_(2.0**-23)
        torch.mul(value, scale, out=place[..., i])


def _fill_compiled(kind, keys, stream, images, samples, scale, out) -> None:
    device = out.device
    # Numbers travel in tensors: a number in the graph would be compiled in.
    lane = torch.arange(_TILE, device=device)
    words = torch.tensor([*itertools.chain(*keys), stream], dtype=torch.int64, device=device)
    factor = torch.tensor([scale], dtype=torch.float32, device=device)
    compiled = _compiled(kind)

    def generate(image: Tensor, sample: Tensor, block: Tensor, place: Tensor) -> None:
        # Always the one compiled shape, in fresh tensors: a view or another size compiles anew.
        full = [image.new_zeros(_COMPILED_TILES) for _ in range(3)]
        for padded, tile in zip(full, (image, sample, block), strict=True):
            padded[: len(tile)] = tile
        place.copy_(compiled(*full, lane, words, factor)[: len(place)])

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
