"""Noise that belongs to the sample: the counter-based scheme ``philox-v1``.

The noise of one sample of one image is a pure function of ``(seed, stream, image_id, sample)``, so
votes do not depend on batch size, shards, their order, or a restart. Sigma and model are left out
of the key on purpose: runs at different noise levels and models share their noise and can be
compared in pairs.

Philox4x32 with 10 rounds (Salmon et al., SC 2011) maps the counter
``(element // 4, sample, image_id, stream)`` under the key ``(seed mod 2^32, seed >> 32)`` to four
32-bit words, elements counted in C x H x W order. With ``u_j = (w_j + 1/2) / 2^32`` the Box-Muller
transform makes of them the four normals

    z0, z1 = sqrt(-2 ln u0) (cos, sin)(2 pi u1)        z2, z3 = sqrt(-2 ln u2) (cos, sin)(2 pi u3)

The numpy functions are the float64 reference; :func:`noise_batch` computes float32 in torch by one
of three backends. All backends do the same correctly rounded operations and give the same bits, on
every machine; the backend's name (:func:`resolve_backend`) is kept with a shard all the same.

This module imports torch only inside the functions that make tensors.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.errors import CertbenchError, did_you_mean

if TYPE_CHECKING:
    import torch

SCHEME = "philox-v1"

# Streams: disjoint noise for different purposes. Numbers are part of the scheme.
SELECTION = 0
ESTIMATION = 1
PREDICTION = 2
AUDIT = 3
TRAINING = 16
ATTACK = 17
COIN = 18

BACKENDS = ("auto", "eager", "compiled", "triton")

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def seed64(run_seed: int, dataset: str) -> int:
    """The 64-bit noise seed of a data set in a run: BLAKE2b of both.

    Args:
        run_seed: The run's seed, any integer.
        dataset: Identifier of the data set.

    Returns:
        An integer in [0, 2^64).
    """
    text = f"{int(run_seed)}:{dataset}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def round_keys(seed: int) -> list[tuple[int, int]]:
    """The ten round keys of a seed, each a pair of 32-bit words.

    Args:
        seed: The noise seed, in [0, 2^64).

    Raises:
        CertbenchError: The seed does not fit 64 bits.
    """
    if not 0 <= int(seed) < 2**64:
        raise CertbenchError(
            f"must fit 64 bits, is {seed}", where="seed", remedy="make one with seed64(...)"
        )
    low, high = int(seed) & _MASK, int(seed) >> 32
    return [((low + i * _WEYL[0]) & _MASK, (high + i * _WEYL[1]) & _MASK) for i in range(10)]


def philox4x32(counter: Any, key: Any) -> np.ndarray:
    """Philox4x32-10: four random words for each counter.

    Args:
        counter: uint32 values [..., 4], words c0..c3.
        key: uint32 values [2], words k0 and k1.

    Returns:
        uint32 [..., 4].

    Source: Salmon et al., SC 2011; the published Random123 vectors are the test.
    """
    c = np.asarray(counter, dtype=np.uint64)
    c0, c1, c2, c3 = (c[..., i] for i in range(4))
    seed = int(np.uint64(key[0])) | int(np.uint64(key[1])) << 32
    shift, mask = np.uint64(32), np.uint64(_MASK)
    m0, m1 = (np.uint64(m) for m in _MULTIPLIERS)
    for k0, k1 in round_keys(seed):
        p0, p1 = m0 * c0, m1 * c2
        c0, c1, c2, c3 = (
            (p1 >> shift) ^ c1 ^ np.uint64(k0),
            p1 & mask,
            (p0 >> shift) ^ c3 ^ np.uint64(k1),
            p0 & mask,
        )
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1).astype(np.uint32)


def philox_normal(
    seed: int, stream: int, image_id: int, sample: Any, num_elements: int
) -> np.ndarray:
    """Standard normals of one image in float64: the reference for every backend.

    Args:
        seed: The noise seed, in [0, 2^64).
        stream: One of the stream constants of this module.
        image_id: The image's index, in [0, 2^32).
        sample: One sample index, or an array [S] of them, in [0, 2^32).
        num_elements: Elements of one sample, C x H x W.

    Returns:
        float64 [num_elements], or [S, num_elements] for an array of samples.

    Raises:
        CertbenchError: A value is out of range.
    """
    words = _words(seed, stream, image_id, sample, num_elements)
    u = (words.astype(np.float64) + 0.5) * 2.0**-32
    radius = np.sqrt(-2.0 * np.log(u[..., 0::2]))
    angle = 2.0 * math.pi * u[..., 1::2]
    normals = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return normals.reshape(*words.shape[:-2], -1)[..., :num_elements]


def philox_uniform(
    seed: int, stream: int, image_id: int, sample: Any, num_elements: int
) -> np.ndarray:
    """Uniform values in (-1, 1) of one image: the reference of :func:`uniform_batch`.

    Made from the upper 24 bits of the same words, ``(w >> 8) - 2^23 + 1/2`` times ``2^-23``, which
    float32 holds exactly: every backend gives the same bits.

    Args:
        seed: The noise seed, in [0, 2^64).
        stream: One of the stream constants of this module.
        image_id: The image's index, in [0, 2^32).
        sample: One sample index, or an array [S] of them, in [0, 2^32).
        num_elements: Elements of one sample, C x H x W.

    Returns:
        float64 [num_elements], or [S, num_elements] for an array of samples.

    Raises:
        CertbenchError: A value is out of range.
    """
    words = _words(seed, stream, image_id, sample, num_elements)
    values = ((words >> np.uint32(8)).astype(np.float64) - 2.0**23 + 0.5) * 2.0**-23
    return values.reshape(*words.shape[:-2], -1)[..., :num_elements]


def uniform_coin(seed: int, image_ids: Any) -> Any:
    """One uniform coin in (0, 1) per image, for ``intervals.cp_lower_randomised``.

    A coin is fixed by seed and image, so that it cannot be redrawn until it pleases.

    Args:
        seed: The noise seed, in [0, 2^64).
        image_ids: Image indices in [0, 2^32), one or an array.

    Raises:
        CertbenchError: A value is out of range.
    """
    ids = _words32(image_ids, "image_ids")
    counter = np.zeros((*ids.shape, 4), dtype=np.uint64)
    counter[..., 2], counter[..., 3] = ids, COIN
    words = philox4x32(counter, (int(seed) & _MASK, int(seed) >> 32))
    return ((words[..., 0].astype(np.float64) + 0.5) * 2.0**-32)[()]


def _words(seed: int, stream: int, image_id: int, sample: Any, num_elements: int) -> np.ndarray:
    """Random words [..., blocks, 4] of one image."""
    samples = _words32(sample, "sample")
    if num_elements < 1:
        raise CertbenchError(f"must be at least 1, is {num_elements}", where="num_elements")
    blocks = -(-int(num_elements) // 4)
    counter = np.empty((*samples.shape, blocks, 4), dtype=np.uint64)
    counter[..., 0] = np.arange(blocks)
    counter[..., 1] = samples[..., None]
    counter[..., 2] = _words32(image_id, "image_id")
    counter[..., 3] = _words32(stream, "stream")
    round_keys(seed)
    return philox4x32(counter, (int(seed) & _MASK, int(seed) >> 32))


def _words32(value: Any, name: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "iu" and array.size:
        raise CertbenchError(f"must be an integer, is {array.dtype}", where=name)
    if np.any(array < 0) or np.any(array > _MASK):
        raise CertbenchError("must lie in [0, 2^32)", where=name)
    return array.astype(np.uint64)


# --- torch -------------------------------------------------------------------------------------


def resolve_backend(device: Any, requested: str = "auto") -> str:
    """The backend that makes the noise on this machine: ``eager``, ``compiled`` or ``triton``.

    ``auto`` means Triton on CUDA, the C++ kernel on a CPU with a C++ compiler, and eager elsewhere.
    A backend that ``auto`` would take is tried once per process against the reference; if that
    fails, eager is used. The first call on a machine compiles for a second or two.

    Args:
        device: A torch device or its name.
        requested: One of :data:`BACKENDS`.

    Raises:
        CertbenchError: Unknown name, or a backend asked for by name does not work here.
    """
    if requested not in BACKENDS:
        raise CertbenchError(
            f"unknown noise backend '{requested}'",
            where="backend",
            remedy=did_you_mean(requested, BACKENDS),
        )
    from certbench.certify import _noise_torch

    return _noise_torch.resolve(device, requested)


def noise_batch(
    seed: int,
    stream: int,
    image_ids: torch.Tensor,
    samples: torch.Tensor,
    shape: Sequence[int],
    sigma: float,
    device: Any = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gaussian noise of standard deviation sigma; each row is its own (image, sample) pair.

    Computed in float32, within 5e-6 sigma of :func:`philox_normal`. A row's bits depend on its
    pair alone.

    Args:
        seed: The noise seed, in [0, 2^64).
        stream: One of the stream constants of this module.
        image_ids: int64 [B], image indices in [0, 2^32).
        samples: int64 [B], sample indices in [0, 2^32).
        shape: Shape of one sample, for example ``(C, H, W)``.
        sigma: Standard deviation, >= 0, in the units of the image.
        device: Where the noise is made; by default that of ``out``, else of ``image_ids``.
        dtype: float32 (default) or float64. Half precision is refused: noise is added in float32
            and the sum is cast, because rounding the noise itself changes its distribution.
        backend: One of :data:`BACKENDS`.
        out: float32 [B, *shape], contiguous, written in place and returned.

    Returns:
        [B, *shape] on ``device``.

    Raises:
        CertbenchError: A value, shape or type is wrong, or the backend does not work here.
    """
    return _batch(
        "normal", seed, stream, image_ids, samples, shape, sigma, device, dtype, backend, out
    )


def uniform_batch(
    seed: int,
    stream: int,
    image_ids: torch.Tensor,
    samples: torch.Tensor,
    shape: Sequence[int],
    half_width: float,
    device: Any = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Uniform noise on (-half_width, half_width), for l1 smoothing.

    Same words, arguments and errors as :func:`noise_batch`, same bits on every backend.

    Args:
        seed: The noise seed, in [0, 2^64).
        stream: One of the stream constants of this module.
        image_ids: int64 [B], image indices in [0, 2^32).
        samples: int64 [B], sample indices in [0, 2^32).
        shape: Shape of one sample.
        half_width: Largest size of the noise, >= 0.
        device: Where the noise is made; by default that of ``out``, else of ``image_ids``.
        dtype: float32 (default) or float64.
        backend: One of :data:`BACKENDS`.
        out: float32 [B, *shape], contiguous, written in place and returned.

    Returns:
        [B, *shape] on ``device``.

    Raises:
        CertbenchError: A value, shape or type is wrong, or the backend does not work here.
    """
    return _batch(
        "uniform", seed, stream, image_ids, samples, shape, half_width, device, dtype, backend, out
    )


def add_noise(
    kind: str,
    seed: int,
    stream: int,
    image_ids: torch.Tensor,
    samples: torch.Tensor,
    scale: float,
    pictures: torch.Tensor,
    slots: torch.Tensor,
    out: torch.Tensor,
    shift: torch.Tensor | None = None,
    factor: torch.Tensor | None = None,
    *,
    backend: str,
) -> None:
    """Noisy, normalised network inputs in one pass over memory, by ``compiled`` or ``triton``.

    Gives the values of :func:`noise_batch` (or :func:`uniform_batch`), the picture added in
    float32, then ``shift`` subtracted, ``factor`` multiplied and the result cast.

    Args:
        kind: ``normal`` or ``uniform``.
        seed: The noise seed, in [0, 2^64).
        stream: One of the stream constants of this module.
        image_ids: int64 [B], image indices in [0, 2^32).
        samples: int64 [B], sample indices in [0, 2^32).
        scale: Standard deviation or half-width, in the units of the pictures.
        pictures: float32 [M, C, H, W], contiguous.
        slots: int64 [B], the picture of each row.
        out: [B, C, H, W], contiguous or channels-last, written in place; float32, or with
            ``triton`` any floating type.
        shift: float32 with C elements, or None for 0.
        factor: float32 with C elements, or None for 1.
        backend: ``compiled`` or ``triton``, as :func:`resolve_backend` says.

    Raises:
        CertbenchError: The seed or the stream is out of range.
    """
    keys, word = round_keys(seed), int(_words32(stream, "stream"))
    inputs = (word, image_ids, samples, scale, pictures, slots, out, shift, factor)
    if backend == "triton":
        from certbench.certify import _noise_triton

        _noise_triton.add(kind, keys[0], *inputs)
    else:
        from certbench.certify import _noise_native

        _noise_native.add(kind, keys, *inputs)


def _batch(
    kind: str,
    seed: int,
    stream: int,
    image_ids: Any,
    samples: Any,
    shape: Sequence[int],
    scale: float,
    device: Any,
    dtype: Any,
    backend: str,
    out: Any,
) -> torch.Tensor:
    import torch

    from certbench.certify import _noise_torch

    keys = round_keys(seed)
    stream = int(_words32(stream, "stream"))
    if not (math.isfinite(scale) and scale >= 0):
        raise CertbenchError(f"must be finite and not negative, is {scale}", where="sigma")
    dtype = torch.float32 if dtype is None else dtype
    if dtype not in (torch.float32, torch.float64):
        raise CertbenchError(
            f"noise is not made in {dtype}",
            where="dtype",
            remedy="add the noise in float32, then cast the sum",
        )
    if device is None:
        device = image_ids.device if out is None else out.device
    device = torch.device(device)
    image_ids, samples = (
        _indices(t, n) for t, n in ((image_ids, "image_ids"), (samples, "samples"))
    )
    if image_ids.shape != samples.shape:
        raise CertbenchError(
            f"need one sample per row, got {tuple(image_ids.shape)} images and "
            f"{tuple(samples.shape)} samples",
            where="samples",
        )
    shape = tuple(int(size) for size in shape)
    full = (image_ids.shape[0], *shape)
    if out is not None and (
        tuple(out.shape) != full
        or out.dtype != torch.float32
        or not out.is_contiguous()
        or out.device.type != device.type
        or dtype != torch.float32
    ):
        raise CertbenchError(
            f"must be a contiguous float32 tensor of shape {full} on {device.type}", where="out"
        )
    name = resolve_backend(device, backend)
    if out is None:
        out = torch.empty(full, dtype=torch.float32, device=device)
    if out.numel():
        _noise_torch.fill(
            name,
            kind,
            keys,
            stream,
            image_ids.to(device, non_blocking=True),
            samples.to(device, non_blocking=True),
            float(scale),
            out.view(full[0], -1),
        )
    return out if dtype == torch.float32 else out.to(dtype)


def _indices(tensor: torch.Tensor, name: str) -> torch.Tensor:
    import torch

    if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.int64 or tensor.ndim != 1:
        raise CertbenchError("must be a one-dimensional int64 tensor", where=name)
    # Reading a tensor on an accelerator would wait for it; there the kernel keeps the low 32 bits.
    if tensor.device.type == "cpu" and tensor.numel():
        low, high = torch.aminmax(tensor)
        if low < 0 or high > _MASK:
            raise CertbenchError("must lie in [0, 2^32)", where=name)
    return tensor
