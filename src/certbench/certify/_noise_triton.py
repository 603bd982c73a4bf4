"""The Triton backend of ``philox-v1``: one kernel from counter to float32 noise on CUDA.

Triton's own ``randint4x`` runs the same rounds but with another counter layout, so the rounds are
written out here. Logarithms near u = 1 take a series in the integer complement of the word, which
keeps their relative accuracy where float32 would round u to 1.

Imported by :mod:`certbench.certify._noise_torch` when the backend is used. With the environment
variable ``TRITON_INTERPRET=1`` set before the import, the kernel runs on CPU tensors (slowly).
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl

BLOCK = 256


@triton.jit
def _log_uniform(word):
    """Natural logarithm of (word + 1/2) / 2^32 by an artanh series after range reduction."""
    upper = word >= 0xC0000000
    # u = 1 - x with x < 1/4: ln u = 2 artanh(-x / (2 - x)), no cancellation anywhere.
    x = ((0xFFFFFFFF - word).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    # Otherwise v = w + 1/2 = 2^e m with m in [sqrt(1/2), sqrt(2)).
    v = word.to(tl.float32) + 0.5
    bits = v.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    m = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
    s = tl.where(upper, -x, m - 1.0) / tl.where(upper, 2.0 - x, m + 1.0)
    q = s * s
    series = 0.09090909090909091 * q + 0.1111111111111111
    series = series * q + 0.14285714285714285
    series = series * q + 0.2
    series = series * q + 0.3333333333333333
    # s + s q (...) keeps the leading term exact.
    value = 2.0 * (s + s * q * series)
    scale = tl.where(upper, 0.0, (exponent - 32).to(tl.float32))
    # ln 2 in two parts, so that the product with the exponent is exact.
    return scale * 0.693359375 + (value + scale * -2.12194440e-4)


@triton.jit
def _angle(word):
    """The angle 2 pi u in [-pi, pi): the word read as a signed integer."""
    return (word.to(tl.int32, bitcast=True).to(tl.float32) + 0.5) * 1.4629180792671596e-09


@triton.jit
def _uniform(word):
    """Value in (-1, 1) from the upper 24 bits, exact in float32."""
    return ((word >> 8).to(tl.int32).to(tl.float32) - 8388608.0 + 0.5) * 1.1920928955078125e-07


@triton.jit(do_not_specialize=["key0", "key1", "stream", "tiles"])
def _kernel(
    out,
    images,
    samples,
    key0,
    key1,
    stream,
    scale,
    elements,
    tiles,
    NORMAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One tile of BLOCK counters of one row: words, transform, interleaved store."""
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    tile = program % tiles
    block = tile * BLOCK + tl.arange(0, BLOCK)

    zero = tl.zeros([BLOCK], dtype=tl.uint32)
    c0 = block.to(tl.uint32)
    c1 = zero + tl.load(samples + row).to(tl.uint32)
    c2 = zero + tl.load(images + row).to(tl.uint32)
    c3 = zero + stream.to(tl.uint32)
    k0 = zero + key0.to(tl.uint32)
    k1 = zero + key1.to(tl.uint32)
    m0 = tl.full([BLOCK], 0xD2511F53, dtype=tl.uint32)
    m1 = tl.full([BLOCK], 0xCD9E8D57, dtype=tl.uint32)
    for _ in tl.static_range(10):
        high0, high1 = tl.umulhi(m0, c0), tl.umulhi(m1, c2)
        low0 = tl.mul(m0, c0, sanitize_overflow=False)
        low1 = tl.mul(m1, c2, sanitize_overflow=False)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)

    if NORMAL:
        radius0 = tl.sqrt_rn(-2.0 * _log_uniform(c0))
        radius1 = tl.sqrt_rn(-2.0 * _log_uniform(c2))
        angle0, angle1 = _angle(c1), _angle(c3)
        z0, z1 = radius0 * tl.cos(angle0), radius0 * tl.sin(angle0)
        z2, z3 = radius1 * tl.cos(angle1), radius1 * tl.sin(angle1)
    else:
        z0, z1, z2, z3 = _uniform(c0), _uniform(c1), _uniform(c2), _uniform(c3)

    # interleave(a, b) is a0 b0 a1 b1 ...: twice gives z0 z1 z2 z3 of each block in order.
    values = tl.interleave(tl.interleave(z0, z2), tl.interleave(z1, z3)) * scale
    element = tile * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    tl.store(out + row * elements + element, values, mask=element < elements)


def fill(
    kind: str,
    key: tuple[int, int],
    stream: int,
    images: torch.Tensor,
    samples: torch.Tensor,
    scale: float,
    out: torch.Tensor,
) -> None:
    """Write the noise of each (image, sample) pair into the rows of ``out``.

    Args:
        kind: ``normal`` or ``uniform``.
        key: The two key words of the seed.
        stream: The stream word.
        images: int64 [B] on the device of ``out``.
        samples: int64 [B] on the device of ``out``.
        scale: Standard deviation or half-width.
        out: float32 [B, elements], contiguous.
    """
    rows, elements = out.shape
    tiles = triton.cdiv(elements, 4 * BLOCK)
    key0, key1, word = (_signed(value) for value in (*key, stream))
    # Triton launches on the current GPU, which need not be the one that holds the tensors.
    on_device = torch.cuda.device(out.device) if out.is_cuda else nullcontext()
    with on_device:
        _kernel[(rows * tiles,)](
            out,
            images.contiguous(),
            samples.contiguous(),
            key0,
            key1,
            word,
            scale,
            elements,
            tiles,
            NORMAL=kind == "normal",
            BLOCK=BLOCK,
        )


def _signed(word: int) -> int:
    """The 32-bit word as int32, so that every word has the same argument type in the kernel."""
    return word - 2**32 if word >= 2**31 else word
