"""SmoothAdv: adversarial training of the soft smoothed classifier (Salman et al., NeurIPS 2019).

Each image gets m noise samples. An attack moves the image so that the mean probability of its label
under these samples falls; the network then learns the moved image under the same noise.
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
    """The optimisation, the noise, the attack; defaults as in the paper for CIFAR-10."""

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
    epsilon: float = param(
        0.5, help="L2 radius of the attack", unit="pixel values in [0, 1]", above=0
    )
    epsilon_warmup: float = param(
        1 / 15,
        help="while epsilon grows linearly to its value",
        unit="fraction of the training",
        minimum=0,
        maximum=1,
    )
    attack: str = param("pgd", help="attack", choices=("pgd", "ddn"))
    attack_steps: int = param(10, help="gradient steps of the attack", minimum=1)
    noise_samples: int = param(4, help="noise samples m of each image", minimum=1)
    train_on_all: bool = param(
        True, help="learn from all noise samples of the attack, not from one of them"
    )
    ddn_gamma: float = param(0.05, help="change of the norm per step of ddn", above=0, below=1)


def train(context: TrainingContext) -> None:
    """Train the context's network on noisy images that an attack has moved."""
    from certbench.recipes.loop import fit

    params: Params = context.params
    fit(
        context,
        partial(batch_loss, params=params),
        sigma=params.sigma,
        copies=params.noise_samples if params.train_on_all else 1,
    )


def batch_loss(
    network: nn.Module, batch: Batch, params: Params
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the attacked noisy images, and their logits."""
    import torch
    from torch.nn.functional import cross_entropy

    from certbench.recipes.loop import Batch, frozen

    copies = params.noise_samples
    # With one sample to learn from, the attack goes through the batch in m parts: the network
    # never sees more than batch_size inputs at once.
    parts = 1 if params.train_on_all else copies
    inputs = []
    with frozen(network):
        for images, labels in zip(
            batch.images.tensor_split(parts), batch.labels.tensor_split(parts), strict=True
        ):
            if not len(images):
                continue
            part = Batch(images, labels, batch.epoch, batch.generator)
            noise = part.noise(params.sigma, copies)
            moved = attacked(network, part, noise, params)
            if params.train_on_all:
                inputs.append(moved.repeat(copies, 1, 1, 1) + noise)
            else:
                inputs.append(moved + noise[: len(images)])
    logits = network(torch.cat(inputs))
    return cross_entropy(logits, batch.labels.repeat(len(logits) // len(batch.labels))), logits


def attacked(network: nn.Module, batch: Batch, noise: torch.Tensor, params: Params) -> torch.Tensor:
    """The batch's images [B, 3, H, W] after the attack, within the epsilon of the epoch."""
    from certbench.recipes.adversary import ddn, pgd

    epsilon = params.epsilon * ramp(batch.epoch, params.epochs, params.epsilon_warmup)
    common = (network, batch.images, batch.labels, noise, epsilon, params.attack_steps)
    if params.attack == "ddn":
        return ddn(*common, batch.generator, params.ddn_gamma)
    return pgd(*common, batch.generator)


def ramp(epoch: int, epochs: int, warmup: float) -> float:
    """Factor of a strength that grows linearly, epoch by epoch, to 1.

    Args:
        epoch: Number of the epoch, from 0.
        epochs: Number of epochs of the training.
        warmup: Fraction of the training after which the factor is 1.
    """
    length = warmup * epochs
    return min(1.0, (epoch + 1) / length) if length > 0 else 1.0
