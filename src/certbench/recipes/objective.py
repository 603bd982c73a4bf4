"""The cross-entropy that recipes minimise, of whole images or of their pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from certbench.datasets.masks import IGNORE
from certbench.errors import CertbenchError


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, class_weights: Sequence[float] = ()
) -> torch.Tensor:
    """Mean cross-entropy, weighted by class, over images or over the pixels that have a class.

    Args:
        logits: float [B, K], or [B, K, H, W] of label maps.
        labels: int64 [B], or label maps int64 [B, H, W] with 255 where a pixel has no class.
        class_weights: Weight of each of the K classes; empty for equal weights.

    Returns:
        A scalar: the weighted sum of losses over the sum of weights; 0 where no pixel has a class.

    Raises:
        CertbenchError: Another number of weights than classes.
    """
    if class_weights and len(class_weights) != logits.shape[1]:
        raise CertbenchError(
            f"{len(class_weights)} weights for {logits.shape[1]} classes",
            where="recipe: class_weights",
            remedy="give one weight for each class, or none",
        )
    weight = logits.new_tensor(class_weights, dtype=torch.float32) if class_weights else None
    if logits.ndim == 2:
        return functional.cross_entropy(logits, labels, weight=weight)
    # Reduced here: CUDA's own reduction over pixels is not deterministic.
    total = functional.cross_entropy(
        logits.float(), labels, weight=weight, ignore_index=IGNORE, reduction="none"
    ).sum()
    counted = labels != IGNORE
    if weight is None:
        return total / counted.sum().clamp_min(1)
    weights = weight[labels.masked_fill(~counted, 0)] * counted
    return total / weights.sum().clamp_min(torch.finfo(torch.float32).tiny)


def right(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many images, or pixels that have a class, the largest logit gets right, and of how many.

    Args:
        logits: [copies * B, K], or [copies * B, K, H, W].
        labels: int64 [B], or label maps int64 [B, H, W]; they repeat with the copies.

    Returns:
        Two int64 scalars on the logits' device.
    """
    copies = len(logits) // len(labels)
    wanted = labels.repeat(copies, *[1] * (labels.ndim - 1))
    hits = logits.argmax(1) == wanted
    if labels.ndim == 1:
        return hits.sum(), torch.full((), len(wanted), dtype=torch.int64, device=labels.device)
    counted = wanted != IGNORE
    return (hits & counted).sum(), counted.sum()
