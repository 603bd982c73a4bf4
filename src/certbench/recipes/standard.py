"""Ordinary training: cross-entropy of the images, or of their pixels, as they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from certbench.params import param
from certbench.recipes.optimisation import Optimisation

if TYPE_CHECKING:
    import torch
    from torch import nn

    from certbench.recipes.context import TrainingContext
    from certbench.recipes.loop import Batch

version = 1

tasks = ("classification", "segmentation")


@dataclass(frozen=True, kw_only=True)
class Params(Optimisation):
    """The optimisation and the weights of the classes."""

    class_weights: tuple[float, ...] = param(
        (), help="weight of each class in the cross-entropy ([] for equal weights)", above=0
    )


def train(context: TrainingContext) -> None:
    """Train the context's network on clean images."""
    from certbench.recipes.loop import fit

    fit(context, partial(batch_loss, class_weights=context.params.class_weights))


def batch_loss(
    network: nn.Module, batch: Batch, class_weights: tuple[float, ...] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the clean images or their pixels, and the logits."""
    from certbench.recipes.objective import cross_entropy

    logits = network(batch.images)
    return cross_entropy(logits, batch.labels, class_weights), logits
