"""Consistency regularisation of the predictions under noise (Jeong and Shin, NeurIPS 2020).

Cross-entropy under m noise samples, plus lambda times the mean divergence of the m predictions from
their average, plus eta times the entropy of the average.
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


@dataclass(frozen=True, kw_only=True)
class Params(Optimisation):
    """The optimisation, the noise, the regularisation; defaults as in the paper for CIFAR-10."""

    epochs: int = param(150, help="passes over the training images", minimum=1)
    batch_size: int = param(
        256,
        help="network inputs per step; noisy copies of one image count",
        unit="inputs",
        minimum=1,
    )
    sigma: float = param(
        help="std of the noise; that of the smoothing", unit="pixel values in [0, 1]", minimum=0
    )
    noise_samples: int = param(2, help="noise samples m of each image", minimum=2)
    strength: float = param(
        10.0, help="weight lambda of the divergence; the paper uses 20 at sigma 0.25", minimum=0
    )
    eta: float = param(0.5, help="weight of the entropy", minimum=0)


def train(context: TrainingContext) -> None:
    """Train the context's network for predictions that agree under noise."""
    from certbench.recipes.loop import fit

    params: Params = context.params
    fit(
        context, partial(batch_loss, params=params), sigma=params.sigma, copies=params.noise_samples
    )


def batch_loss(
    network: nn.Module, batch: Batch, params: Params
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy plus regularisation, and the logits of the noisy images."""
    from torch.nn.functional import cross_entropy

    copies = params.noise_samples
    noisy = batch.images.repeat(copies, 1, 1, 1) + batch.noise(params.sigma, copies)
    logits = network(noisy)
    grouped = logits.unflatten(0, (copies, -1))
    loss = cross_entropy(logits, batch.labels.repeat(copies))
    return loss + regularisation(grouped, params.strength, params.eta), logits


def regularisation(logits: torch.Tensor, strength: float, eta: float) -> torch.Tensor:
    """Mean over the images of strength * divergence + eta * entropy.

    The gradient flows through the average too.

    Args:
        logits: [copies, B, K].
        strength: Weight of KL(average || prediction), averaged over the copies.
        eta: Weight of the entropy of the average.
    """
    average = logits.softmax(2).mean(0)
    log_average = average.clamp(min=1e-20).log()
    divergence = (average * (log_average - logits.log_softmax(2))).sum(2).mean(0)
    entropy = -(average * log_average).sum(1)
    return (strength * divergence + eta * entropy).mean()
