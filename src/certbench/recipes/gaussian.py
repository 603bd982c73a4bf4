"""Gaussian augmentation: cross-entropy under fresh noise (Cohen et al., ICML 2019, section 3.3).

The noise is added to images in [0, 1], before the normalisation, and not clipped: the network
learns the very inputs that smoothing will show it.
"""

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
    """The optimisation, the noise, and the weights of the classes."""

    sigma: float = param(
        help="std of the noise; that of the smoothing", unit="pixel values in [0, 1]", minimum=0
    )
    class_weights: tuple[float, ...] = param(
        (), help="weight of each class in the cross-entropy ([] for equal weights)", above=0
    )


def train(context: TrainingContext) -> None:
    """Train the context's network on noisy images."""
    from certbench.recipes.loop import fit

    params = context.params
    loss = partial(batch_loss, sigma=params.sigma, class_weights=params.class_weights)
    fit(context, loss, sigma=params.sigma)


def batch_loss(
    network: nn.Module, batch: Batch, sigma: float, class_weights: tuple[float, ...] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the noisy images or their pixels, and the logits."""
    from certbench.recipes.objective import cross_entropy

    logits = network(batch.images + batch.noise(sigma))
    return cross_entropy(logits, batch.labels, class_weights), logits
