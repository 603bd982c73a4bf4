"""2D common corruptions of batches on the fly, in torch, on CPU or GPU.

Made for evaluation without stored images. In float64 the deterministic types give the bytes of
:func:`certbench.corruptions.corrupt` (defocus blur goes through another Fourier transform; JPEG
through the same codec, on the host). The others follow the same laws with random numbers of their
own, which depend on each image's identity alone (:mod:`torch_two_d_random`), so that results do not
depend on order, batch or shard. Results of the two engines are therefore two variants: say in the
results which one made them (:data:`ENGINE`).

On a CPU images are processed one by one, which keeps them in its cache and makes every image's
bytes independent of its batch. For images of 32 pixels the NumPy code is faster there.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from certbench.corruptions import severity as tables
from certbench.corruptions.two_d import MIN_SIZE, MODULES, identity_digest
from certbench.errors import CertbenchError

if TYPE_CHECKING:
    import torch

ENGINE = "certbench-torch 1"


def corrupt_torch(
    images: torch.Tensor,
    item_ids: Sequence[str],
    corruption: str,
    severity: int,
    severity_table: str,
    seed: int,
    dataset: str,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Corrupt a batch on its device.

    Args:
        images: uint8 [N, 3, H, W] or [N, 1, H, W], or float32/float64 in [0, 1]. Corruptions work
            on 8-bit images: float images are rounded to 8 bit first, and the result, on the same
            256 levels, is divided by 255.
        item_ids: N identities.
        corruption: Type, one of :data:`~certbench.corruptions.severity.NAMES`.
        severity: 1 (mild) to 5 (severe).
        severity_table: Whose parameters; never guessed from the size.
        seed: Seed of the run.
        dataset: Name of the dataset.
        dtype: ``torch.float64`` (default; exact) or ``torch.float32`` (faster, within one level of
            it for most types).

    Returns:
        [N, 3, H, W] of the type and on the device of ``images``.

    Raises:
        CertbenchError: Unknown type, table or severity, or not such images.
    """
    import torch

    tables.check(corruption, severity, severity_table)
    where = f"corruption {corruption}"
    dtype = torch.float64 if dtype is None else dtype
    if dtype not in (torch.float64, torch.float32):
        raise CertbenchError(
            f"computing in {dtype} is not supported",
            where=where,
            remedy="pass torch.float64 or torch.float32",
        )
    quantised = _quantised(images, where)
    if len(item_ids) != len(images):
        raise CertbenchError(
            f"{len(item_ids)} item ids for {len(images)} images",
            where=where,
            remedy="pass one id per image",
        )
    keys = [
        int.from_bytes(
            identity_digest(seed, dataset, item_id, corruption, severity, severity_table)[:8], "big"
        )
        for item_id in _texts(item_ids, where)
    ]
    out = _corrupted(quantised, keys, corruption, int(severity), severity_table, dtype)
    return out if images.dtype == torch.uint8 else out.to(images.dtype) / 255


def _corrupted(
    images: torch.Tensor,
    keys: list[int],
    corruption: str,
    severity: int,
    severity_table: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    import torch

    from certbench.corruptions.torch_two_d_random import Draws

    entry = tables.TABLES[severity_table][corruption][severity - 1]
    if corruption == "elastic_transform" and severity_table != "imagenet":
        corruption = "elastic_transform_imagenet_c"
    function = _function(corruption)
    step = 1 if images.device.type == "cpu" else max(1, len(images))
    out = torch.empty_like(images)
    with torch.no_grad():
        for start in range(0, len(images), step):
            part = slice(start, start + step)
            out[part] = function(images[part], entry, Draws(keys[part], images.device, dtype))
    return out


@cache
def _function(corruption: str) -> Callable[..., Any]:
    module = importlib.import_module(f"certbench.corruptions.torch_{MODULES[corruption]}")
    return getattr(module, corruption)


def _texts(item_ids: Sequence[str], where: str) -> Sequence[str]:
    for item_id in item_ids:
        if not isinstance(item_id, str):
            raise CertbenchError(
                f"item id {item_id!r} is not text",
                where=where,
                remedy="pass ids as str, so that 7 and '7' cannot give two results",
            )
    return item_ids


def _quantised(images: Any, where: str) -> torch.Tensor:
    """The batch as contiguous uint8 [N, 3, H, W], or a message that says what it should be."""
    import torch

    if not isinstance(images, torch.Tensor):
        raise CertbenchError(
            f"images are a {type(images).__name__}",
            where=where,
            remedy="pass a torch tensor [N, 3, H, W], or use corrupt_batch for NumPy arrays",
        )
    shape = tuple(images.shape)
    if len(shape) == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
        raise CertbenchError(
            f"images have shape {shape}, channels last",
            where=where,
            remedy="pass [N, 3, H, W]: images.permute(0, 3, 1, 2)",
        )
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise CertbenchError(
            f"images have shape {shape}", where=where, remedy="pass [N, 3, H, W] or [N, 1, H, W]"
        )
    if min(shape[2:]) < MIN_SIZE:
        raise CertbenchError(
            f"images have {shape[2]} x {shape[3]} pixels",
            where=where,
            remedy=f"both sides must have at least {MIN_SIZE} pixels; resize them first",
        )
    if images.dtype in (torch.float32, torch.float64):
        if images.numel() and not bool(((images >= 0) & (images <= 1)).all()):
            raise CertbenchError(
                f"float images reach from {images.min():g} to {images.max():g}",
                where=where,
                remedy="pass values in [0, 1]: corrupt before normalising",
            )
        images = (images * 255).round().to(torch.uint8)
    elif images.dtype != torch.uint8:
        raise CertbenchError(
            f"images have dtype {images.dtype}",
            where=where,
            remedy="pass uint8, or float32 in [0, 1]",
        )
    return images.expand(-1, 3, -1, -1).contiguous()
