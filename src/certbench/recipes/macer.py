"""MACER: maximise a soft certified radius (Zhai et al., ICLR 2020, algorithm 1).

The loss is the cross-entropy of the soft smoothed classifier plus a hinge on its certified radius
sigma / 2 * (quantile(p_A) - quantile(p_B)), for images that it classifies correctly. No attack.
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
    """The optimisation, the noise, the hinge; defaults as in the paper for CIFAR-10."""

    epochs: int = param(440, help="passes over the training images", minimum=1)
    batch_size: int = param(
        1024,
        help="network inputs per step; noisy copies of one image count",
        unit="inputs",
        minimum=1,
    )
    learning_rate: float = param(0.01, help="largest learning rate", above=0)
    decay_at: tuple[float, ...] = param(
        (200 / 440, 400 / 440),
        help="where schedule step multiplies the learning rate by gamma",
        unit="fractions of the training",
        above=0,
        below=1,
    )
    weight_decay: float = param(5e-4, help="weight decay", minimum=0)
    sigma: float = param(
        help="std of the noise; that of the smoothing", unit="pixel values in [0, 1]", above=0
    )
    noise_samples: int = param(16, help="noise samples of each image", minimum=1)
    strength: float = param(12.0, help="weight lambda of the radius in the loss", minimum=0)
    deferred: float = param(
        0.0,
        help="before which the radius has no weight; the paper waits 200 / 440 at sigma 1.0",
        unit="fraction of the training",
        minimum=0,
        maximum=1,
    )
    beta: float = param(16.0, help="inverse temperature of the soft radius", above=0)
    hinge: float = param(8.0, help="gap of the quantiles from which an image has no loss", above=0)


def train(context: TrainingContext) -> None:
    """Train the context's network for a large soft certified radius."""
    from certbench.recipes.loop import fit

    params: Params = context.params
    fit(
        context, partial(batch_loss, params=params), sigma=params.sigma, copies=params.noise_samples
    )


def batch_loss(
    network: nn.Module, batch: Batch, params: Params
) -> tuple[torch.Tensor, torch.Tensor]:
    """Classification loss plus hinge on the soft radius, and the logits of the noisy images."""
    copies = params.noise_samples
    noisy = batch.images.repeat(copies, 1, 1, 1) + batch.noise(params.sigma, copies)
    logits = network(noisy)
    strength = params.strength if batch.epoch >= params.deferred * params.epochs else 0.0
    grouped = logits.unflatten(0, (copies, -1))
    loss = classification_loss(grouped, batch.labels)
    if strength:
        hinge = radius_loss(grouped, batch.labels, params.sigma, params.beta, params.hinge)
        loss = loss + strength * hinge
    return loss, logits


def classification_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over the images of -log of the label's mean probability.

    Args:
        logits: [copies, B, K].
        labels: int64 [B].
    """
    from torch.nn.functional import nll_loss

    return nll_loss((logits.softmax(2).mean(0) + 1e-10).log(), labels)


def radius_loss(
    logits: torch.Tensor, labels: torch.Tensor, sigma: float, beta: float, hinge: float
) -> torch.Tensor:
    """Mean over the images of sigma / 2 * max(0, hinge - gap of the quantiles).

    Images whose soft prediction is wrong, whose gap exceeds the hinge, or whose probabilities are 0
    or 1 in this arithmetic contribute nothing.

    Args:
        logits: [copies, B, K].
        labels: int64 [B].
        sigma: Std of the noise.
        beta: Inverse temperature of the softmax.
        hinge: Gap of the quantiles without loss.
    """
    import torch

    top = (beta * logits).softmax(2).mean(0).topk(2, dim=1)
    with torch.no_grad():
        gap = torch.special.ndtri(top.values[:, 0]) - torch.special.ndtri(top.values[:, 1])
        counts = (top.indices[:, 0] == labels) & gap.isfinite() & (gap <= hinge)
    # Chosen first: the derivative of the quantile is infinite at 0 and 1.
    high, low = top.values[counts].unbind(1)
    lacking = hinge - (torch.special.ndtri(high) - torch.special.ndtri(low))
    return sigma / 2 * lacking.sum() / len(labels)
