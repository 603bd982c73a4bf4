"""The Triton backend of ``philox-v1``: one kernel from counter to noise, or to a network's input.

Triton's own ``randint4x`` runs the same rounds but with another counter layout, so the rounds are
written out here. No kernel contracts products and sums: the values are those of the torch version
to the bit, and adding the noise inside the kernel gives the values of adding it outside.

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
    """Natural logarithm of (word + 1/2) / 2^32, as in the torch version."""
    upper = word >= 0x80000000
    part = (tl.where(upper, word ^ 0xFFFFFFFF, word).to(tl.int32).to(tl.float32) + 0.5) * (
        2.3283064365386963e-10
    )
    above = 1.0 - part
    left = (1.0 - above) - part
    bits = tl.where(upper, above, part).to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    k = exponent.to(tl.float32)
    series = f * 0.06746640801429749 + -0.11675652116537094
    series = series * f + 0.11888162046670914
    series = series * f + -0.1240558922290802
    series = series * f + 0.14219552278518677
    series = series * f + -0.1666799634695053
    series = series * f + 0.2000211924314499
    series = series * f + -0.25000008940696716
    series = series * f + 0.3333331346511841
    square = f * f
    rest = series * f * square + square * -0.5
    rest = rest + k * -2.12194440e-4
    rest = rest + tl.where(upper, left, 0.0)
    return k * 0.693359375 + (f + rest)


@triton.jit
def _waves(word):
    """Cosine and sine of 2 pi (word + 1/2) / 2^32, as in the torch version."""
    signed = word.to(tl.int32, bitcast=True)
    quarter = tl.add(signed, 0x20000000, sanitize_overflow=False) >> 30
    rest = tl.sub(signed, quarter << 30, sanitize_overflow=False)
    x = (rest.to(tl.float32) + 0.5) * 1.4629180792671596e-09
    z = x * x
    sine = z * -0.00019588008581195027 + 0.008332748897373676
    sine = (sine * z + -0.166666641831398) * z * x + x
    cosine = z * 2.454804052831605e-05 + -0.001388830365613103
    cosine = (cosine * z + 0.0416666641831398) * z * z + (z * -0.5 + 1.0)
    odd = (quarter & 1) == 1
    first, second = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    first = tl.where(((quarter + 1) & 2) == 2, -first, first)
    second = tl.where((quarter & 2) == 2, -second, second)
    return first, second


@triton.jit
def _uniform(word):
    """Value in (-1, 1) from the upper 24 bits, exact in float32."""
    return ((word >> 8).to(tl.int32).to(tl.float32) - 8388608.0 + 0.5) * 1.1920928955078125e-07


@triton.jit
def _values(
    images,
    samples,
    key0,
    key1,
    stream,
    scale,
    row,
    tile,
    NORMAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The noise of one tile of BLOCK counters of one row: 4 BLOCK values in order."""
    zero = tl.zeros([BLOCK], dtype=tl.uint32)
    c0 = (tile * BLOCK + tl.arange(0, BLOCK)).to(tl.uint32)
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
        cosine0, sine0 = _waves(c1)
        cosine1, sine1 = _waves(c3)
        z0, z1 = radius0 * cosine0, radius0 * sine0
        z2, z3 = radius1 * cosine1, radius1 * sine1
    else:
        z0, z1, z2, z3 = _uniform(c0), _uniform(c1), _uniform(c2), _uniform(c3)

    # interleave(a, b) is a0 b0 a1 b1 ...: twice gives z0 z1 z2 z3 of each block in order.
    return tl.interleave(tl.interleave(z0, z2), tl.interleave(z1, z3)) * scale


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
    """The noise of one tile of one row, stored in order."""
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    tile = program % tiles
    values = _values(images, samples, key0, key1, stream, scale, row, tile, NORMAL, BLOCK)
    element = tile * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    tl.store(out + row * elements + element, values, mask=element < elements)


@triton.jit(do_not_specialize=["key0", "key1", "stream", "tiles"])
def _add_kernel(
    out,
    pictures,
    slots,
    images,
    samples,
    shift,
    factor,
    key0,
    key1,
    stream,
    scale,
    elements,
    tiles,
    plane,
    row_stride,
    channel_stride,
    pixel_stride,
    SHIFT: tl.constexpr,
    FACTOR: tl.constexpr,
    NORMAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One tile of ((picture + noise) - shift) * factor, stored in the layout and type of out."""
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64)
    tile = program % tiles
    values = _values(images, samples, key0, key1, stream, scale, row, tile, NORMAL, BLOCK)
    element = tile * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    mask = element < elements
    picture = tl.load(slots + row)
    values = tl.load(pictures + picture * elements + element, mask=mask, other=0.0) + values
    channel = element // plane
    if SHIFT:
        values = values - tl.load(shift + channel, mask=mask, other=0.0)
    if FACTOR:
        values = values * tl.load(factor + channel, mask=mask, other=0.0)
    place = row * row_stride + channel * channel_stride + (element % plane) * pixel_stride
    tl.store(out + place, values.to(out.dtype.element_ty), mask=mask)


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
    with _on_device(out):
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
            enable_fp_fusion=False,
        )


def add(
    kind: str,
    key: tuple[int, int],
    stream: int,
    images: torch.Tensor,
    samples: torch.Tensor,
    scale: float,
    pictures: torch.Tensor,
    slots: torch.Tensor,
    out: torch.Tensor,
    shift: torch.Tensor | None = None,
    factor: torch.Tensor | None = None,
) -> None:
    """Write ((pictures[slots] + noise) - shift) * factor, in float32, then cast to out's type.

    The picture is read and the input written once; the values are those of :func:`fill` followed
    by the same operations on whole tensors.

    Args:
        kind: ``normal`` or ``uniform``.
        key: The two key words of the seed.
        stream: The stream word.
        images: int64 [B] on the device of ``out``.
        samples: int64 [B] on the device of ``out``.
        scale: Standard deviation or half-width.
        pictures: float32 [M, C, H, W], contiguous.
        slots: int64 [B], the picture of each row.
        out: [B, C, H, W] of a floating type, contiguous or channels-last.
        shift: float32 with C elements, or None for 0.
        factor: float32 with C elements, or None for 1.
    """
    rows, _, _, width = out.shape
    elements = pictures[0].numel()
    tiles = triton.cdiv(elements, 4 * BLOCK)
    key0, key1, word = (_signed(value) for value in (*key, stream))
    row_stride, channel_stride, line_stride, pixel_stride = out.stride()
    if width == 1:  # a stride along one pixel says nothing
        pixel_stride = line_stride
    with _on_device(out):
        _add_kernel[(rows * tiles,)](
            out,
            pictures,
            slots.contiguous(),
            images.contiguous(),
            samples.contiguous(),
            out if shift is None else shift.flatten().contiguous(),
            out if factor is None else factor.flatten().contiguous(),
            key0,
            key1,
            word,
            scale,
            elements,
            tiles,
            out[0, 0].numel(),
            row_stride,
            channel_stride,
            pixel_stride,
            SHIFT=shift is not None,
            FACTOR=factor is not None,
            NORMAL=kind == "normal",
            BLOCK=BLOCK,
            enable_fp_fusion=False,
        )


def _on_device(out: torch.Tensor):
    """Triton launches on the current GPU, which need not be the one that holds the tensors."""
    return torch.cuda.device(out.device) if out.is_cuda else nullcontext()


def _signed(word: int) -> int:
    """The 32-bit word as int32, so that every word has the same argument type in the kernel."""
    return word - 2**32 if word >= 2**31 else word
