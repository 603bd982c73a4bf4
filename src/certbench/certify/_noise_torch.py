"""The torch backend of ``philox-v1``, and the hand-over to the compiled ones.

All backends do the same float32 operations in the same order, each rounded as IEEE 754 says, and
so give the same bits: no logarithm or cosine of a library is called, which round as they like.

Imported by :mod:`certbench.certify.noise` when tensors are made; it imports torch.
"""

from __future__ import annotations

import logging
import math
import sys
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
# Rows are cut into tiles of 64 blocks (256 elements); the temporaries of a step stay in the cache.
_TILE = 64
_STEP = 256


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
        from certbench.certify import _noise_native

        _noise_native.fill(kind, keys, stream, images, samples, scale, out)
    else:
        with torch.inference_mode():
            _fill_eager(kind, keys, stream, images, samples, scale, out)


def _fill_eager(kind, keys, stream, images, samples, scale, out) -> None:
    """Cut the rows into tiles and generate some of them at a time."""
    lane = torch.arange(_TILE, device=out.device)
    write = _write_normals if kind == "normal" else _write_uniforms
    # Numpy multiplies 32-bit words into 64-bit ones, and its result holds both halves.
    halves = out.device.type == "cpu" and sys.byteorder == "little"
    rows, elements = out.shape
    per_row = -(-elements // (4 * _TILE))
    tile_images = images.repeat_interleave(per_row)
    tile_samples = samples.repeat_interleave(per_row)
    tile_blocks = torch.arange(0, per_row * _TILE, _TILE, device=out.device).repeat(rows)
    whole = elements == per_row * 4 * _TILE
    target = out if whole else out.new_empty(rows, per_row * 4 * _TILE)
    flat = target.view(-1, _TILE, 4)
    for start in range(0, flat.shape[0], _STEP):
        part = slice(start, start + _STEP)
        block, sample, image = (t[part, None] for t in (tile_blocks, tile_samples, tile_images))
        counter = [block + lane, sample, image]
        if halves:
            words = _philox_halves([c.numpy().astype(np.uint32) for c in counter], stream, keys)
        else:
            words = [word.to(torch.int32) for word in _philox([*counter, stream], keys)]
        write(words, scale, flat[part])
    if not whole:
        out.copy_(target[:, :elements])


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


# Near-minimax polynomials, lowest degree last: (ln(1 + f) - f + f^2/2) / f^3 between the roots of
# 1/2 and 2; (sin x / x - 1) / x^2 and (cos x - 1 + x^2/2) / x^4 in x^2, up to pi/4.
_LOG = (
    0.06746640801429749, -0.11675652116537094, 0.11888162046670914, -0.1240558922290802,
    0.14219552278518677, -0.1666799634695053, 0.2000211924314499, -0.25000008940696716,
    0.3333331346511841,
)  # fmt: skip
_SIN = (-0.00019588008581195027, 0.008332748897373676, -0.166666641831398)
_COS = (2.454804052831605e-05, -0.001388830365613103, 0.0416666641831398)
# ln 2 in two parts: a product of the first with an exponent is exact.
_LN2 = (0.693359375, -2.12194440e-4)


def _polynomial(coefficients: tuple[float, ...], at: Tensor) -> Tensor:
    value = at * coefficients[0]
    for coefficient in coefficients[1:-1]:
        value.add_(coefficient).mul_(at)
    return value.add_(coefficients[-1])


def _log_uniform(word: Tensor) -> Tensor:
    """The float32 ln((w + 1/2) / 2^32) of int32 words, accurate near 1 too.

    Beyond one half it is the logarithm of 1 - p, and what float32 rounds off there is carried.
    """
    upper = word >> 31
    part = (word ^ upper).float().add_(0.5).mul_(2.0**-32)
    above = 1.0 - part
    left = (1.0 - above).sub_(part)
    # Choose by bits, which costs less than torch.where.
    bits = part.view(torch.int32)
    bits ^= (bits ^ above.view(torch.int32)).bitwise_and_(upper)
    carried = left.view(torch.int32).bitwise_and_(upper).view(torch.float32)
    # u = 2^k (1 + f) with 1 + f between the roots of 1/2 and 2.
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).view(torch.float32).sub_(1.0)
    k = exponent.float()
    square = f * f
    rest = _polynomial(_LOG, f).mul_(f).mul_(square).add_(square.mul_(-0.5))
    rest.add_(k * _LN2[1]).add_(carried)
    return rest.add_(f).add_(k.mul_(_LN2[0]))


def _waves(word: Tensor) -> tuple[Tensor, Tensor]:
    """The float32 cosine and sine of 2 pi (w + 1/2) / 2^32, from int32 words."""
    # Quarter turns, rounded, and what is left in [-pi/4, pi/4); integers wrap as they should.
    quarter = (word + 2**29) >> 30
    x = (word - (quarter << 30)).float().add_(0.5).mul_(2.0 * math.pi * 2.0**-32)
    z = x * x
    sine = _polynomial(_SIN, z).mul_(z).mul_(x).add_(x).view(torch.int32)
    cosine = _polynomial(_COS, z).mul_(z).mul_(z).add_(z.mul_(-0.5).add_(1.0)).view(torch.int32)
    swap = (sine ^ cosine).bitwise_and_(-(quarter & 1))
    first = (quarter + 1).bitwise_and_(2).bitwise_left_shift_(30)
    cosine.bitwise_xor_(swap).bitwise_xor_(first)
    sine.bitwise_xor_(swap).bitwise_xor_(quarter.bitwise_and_(2).bitwise_left_shift_(30))
    return cosine.view(torch.float32), sine.view(torch.float32)


def _square_root(value: Tensor) -> Tensor:
    """The square root in place, correctly rounded, which torch does not promise on a CPU."""
    if value.device.type != "cpu":
        return value.sqrt_()
    numbers = value.numpy()
    np.sqrt(numbers, out=numbers)
    return value


def _write_normals(words: list[Tensor], scale: float, place: Tensor) -> None:
    """Two pairs of normals times ``scale``, from int32 words, into ``place`` [..., 4]."""
    for pair, (first, second) in enumerate((words[:2], words[2:])):
        radius = _square_root(_log_uniform(first).mul_(-2.0))
        for turn, wave in enumerate(_waves(second)):
            torch.mul(wave.mul_(radius), scale, out=place[..., 2 * pair + turn])


def _write_uniforms(words: list[Tensor], scale: float, place: Tensor) -> None:
    """Uniforms times ``scale`` from int32 words; each step but the last is exact in float32."""
    for i, word in enumerate(words):
        value = (word >> 8).bitwise_and_(0xFFFFFF).sub_(2**23).float().add_(0.5).mul_(2.0**-23)
        torch.mul(value, scale, out=place[..., i])


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
    if worst > 5e-6:
        log.warning("noise backend %s is off by %.2g on %s", backend, worst, device_type)
    return worst <= 5e-6


def resolve(device: Any, requested: str) -> str:
    """See :func:`certbench.certify.noise.resolve_backend`."""
    kind = torch.device(device).type
    if requested == "eager":
        return "eager"
    if requested == "auto":
        wanted = {"cuda": "triton", "cpu": "compiled"}.get(kind, "eager")
        if wanted == "compiled":
            from certbench.certify import _noise_native

            if _noise_native.compiler() is None:
                return "eager"
        return wanted if _works(wanted, kind) else "eager"
    if not _works(requested, kind):
        raise CertbenchError(
            f"noise backend '{requested}' does not work on {kind}",
            where="backend",
            remedy="use auto, or eager, which works everywhere",
        )
    return requested
