"""The torch backends of ``philox-v1``: eager, compiled, and the hand-over to Triton.

Imported by :mod:`certbench.certify.noise` when tensors are made; it imports torch.
"""

from __future__ import annotations

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
# Rows are padded to whole multiples of 16 blocks (the widest CPU vector of float32), so that no
# vectorised loop has a scalar tail, whose logarithm would round differently.
_PAD = 16
# Blocks per eager step: temporaries that stay in the cache, and bounded memory.
_CHUNK = 1 << 16


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
        with torch.no_grad():
            _fill_compiled(kind, keys, stream, images, samples, scale, out)
    else:
        with torch.no_grad():
            _fill_eager(kind, keys, stream, images, samples, scale, out)


def _padded_blocks(elements: int) -> int:
    return -(-elements // (4 * _PAD)) * _PAD


def _fill_eager(kind, keys, stream, images, samples, scale, out) -> None:
    rows, elements = out.shape
    count = _padded_blocks(elements)
    blocks = torch.arange(count, device=out.device).unsqueeze(0)
    step = max(1, _CHUNK // count)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        counter = [blocks, samples[part, None], images[part, None], stream]
        words = _philox(counter, keys)
        noise = torch.stack(_TRANSFORMS[kind](words, scale), dim=-1)
        out[part] = noise.view(noise.shape[0], -1)[:, :elements]


def _fill_compiled(kind, keys, stream, images, samples, scale, out) -> None:
    rows, elements = out.shape
    count = _padded_blocks(elements)
    device = out.device
    blocks = torch.arange(count, device=device)
    key_words = torch.tensor(keys, dtype=torch.int64, device=device).view(-1)
    scalar = torch.tensor([scale], dtype=torch.float32, device=device)
    words = torch.tensor([stream], dtype=torch.int64, device=device)
    if rows == 1:  # a size of 1 would be compiled apart
        images, samples = images.expand(2).contiguous(), samples.expand(2).contiguous()
    direct = rows > 1 and elements == 4 * count
    target = out if direct else out.new_empty(images.shape[0], 4 * count)
    _compiled(kind)(target.view(-1, count, 4), blocks, samples, images, words, key_words, scalar)
    if not direct:
        out.copy_(target[:rows, :elements])


@cache
def _compiled(kind: str) -> Callable[..., None]:
    transform = _TRANSFORMS[kind]

    def make(out, blocks, samples, images, stream, keys, scale):
        pairs = [(keys[2 * i], keys[2 * i + 1]) for i in range(10)]
        counter = [blocks[None, :], samples[:, None], images[:, None], stream]
        words = _philox(counter, pairs)
        out.copy_(torch.stack(transform(words, scale[0]), dim=-1))

    return torch.compile(make, dynamic=True, fullgraph=True)


@cache
def _works(backend: str, device_type: str) -> bool:
    """Whether a backend reproduces the reference on this kind of device, tried once per process."""
    device = torch.device(device_type)
    seed, images, samples = 0x0123456789ABCDEF, [7, 8, 2**32 - 1], [42, 0, 2**32 - 1]
    out = torch.empty(3, 300, device=device)
    try:
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
