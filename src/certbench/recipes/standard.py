"""Ordinary training: cross-entropy on the images as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from certbench.recipes.optimisation import Optimisation

if TYPE_CHECKING:
    import torch
    from torch import nn

    from certbench.recipes.context import TrainingContext
    from certbench.recipes.loop import Batch

version = 1


@dataclass(frozen=True, kw_only=True)
class Params(Optimisation):
    """Only the optimisation."""


def train(context: TrainingContext) -> None:
    """Train the context's network on clean images."""
    from certbench.recipes.loop import fit

    fit(context, batch_loss)


def batch_loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the clean images, and their logits."""
    from torch.nn.functional import cross_entropy

    logits = network(batch.images)
    return cross_entropy(logits, batch.labels), logits
