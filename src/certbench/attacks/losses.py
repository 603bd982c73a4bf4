"""Losses that attacks maximise, one value per image.

Logits are [N, K]; ``y`` are the true labels, ``target`` the classes a targeted attack wants, both
int64 [N]. DLR is the difference-of-logits ratio of Croce and Hein 2020 (arXiv 2003.01690, eq. 6);
its denominators are differentiated through, and it is invariant to shift and scale of the logits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

Loss = Callable[[torch.Tensor, torch.Tensor, "torch.Tensor | None"], torch.Tensor]

#: Fewest classes with which each loss is defined.
FEWEST_CLASSES = {"ce": 2, "margin": 2, "dlr": 3, "dlr-targeted": 4}

_GUARD = 1e-12


def cross_entropy(
    logits: torch.Tensor, y: torch.Tensor, target: torch.Tensor | None = None
) -> torch.Tensor:
    """-log softmax(z)_y; in float32 it rounds to 0 once the margin exceeds about 16.6."""
    return functional.cross_entropy(logits, y, reduction="none")


def margin(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """z_y - max over the other classes: [N], positive while correct."""
    others = logits.scatter(1, y.unsqueeze(1), -torch.inf)
    return logits.gather(1, y.unsqueeze(1)).squeeze(1) - others.amax(1)


def negative_margin(
    logits: torch.Tensor, y: torch.Tensor, target: torch.Tensor | None = None
) -> torch.Tensor:
    """Largest logit of the other classes minus z_y: [N]."""
    return -margin(logits, y)


def dlr(logits: torch.Tensor, y: torch.Tensor, target: torch.Tensor | None = None) -> torch.Tensor:
    """-(z_y - max_{j != y} z_j) / (z_(1) - z_(3) + 1e-12); in [-1, 0] while correct, K >= 3."""
    top = logits.topk(3, dim=1)
    correct = (top.indices[:, 0] == y).to(logits.dtype)
    best_other = top.values[:, 1] * correct + top.values[:, 0] * (1.0 - correct)
    true = logits.gather(1, y.unsqueeze(1)).squeeze(1)
    return -(true - best_other) / (top.values[:, 0] - top.values[:, 2] + _GUARD)


def dlr_targeted(
    logits: torch.Tensor, y: torch.Tensor, target: torch.Tensor | None = None
) -> torch.Tensor:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12); K >= 4."""
    if target is None:
        raise ValueError("a targeted loss needs target classes")
    top = logits.topk(4, dim=1).values
    true = logits.gather(1, y.unsqueeze(1)).squeeze(1)
    wanted = logits.gather(1, target.unsqueeze(1)).squeeze(1)
    return -(true - wanted) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + _GUARD)


def difference(
    logits: torch.Tensor, y: torch.Tensor, target: torch.Tensor | None = None
) -> torch.Tensor:
    """z_t - z_y: zero on the boundary between the two classes."""
    if target is None:
        raise ValueError("a targeted loss needs target classes")
    wanted = logits.gather(1, target.unsqueeze(1)).squeeze(1)
    return wanted - logits.gather(1, y.unsqueeze(1)).squeeze(1)


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "margin": negative_margin,
    "dlr": dlr,
    "dlr-targeted": dlr_targeted,
}
