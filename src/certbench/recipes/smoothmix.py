"""SmoothMix: mix images with unrestricted adversarial points (Jeong et al., NeurIPS 2021).

The soft smoothed classifier is attacked without a ball, which leads to over-confident points far
off. The network learns to be less sure towards them: a mix (1 - t) x + t x_adv, t uniform in
[0, 1/2], has the target (1 - t) F(x) + t / K, where F is the soft smoothed prediction.
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
    """The optimisation, the noise, the mix; defaults as in the paper for CIFAR-10, sigma 0.5."""

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
    noise_samples: int = param(2, help="noise samples m of each image", minimum=1)
    attack_steps: int = param(4, help="gradient steps of the attack", minimum=1)
    step_size: float = param(
        1.0,
        help="L2 length of a step; the paper uses 2 sigma",
        unit="pixel values in [0, 1]",
        above=0,
    )
    eta: float = param(5.0, help="weight of the mixed images in the loss", minimum=0)
    mix_warmup: float = param(
        1 / 15,
        help="while eta (and the one-step point) grow linearly to their value",
        unit="fraction of the training",
        minimum=0,
        maximum=1,
    )
    one_step: bool = param(False, help="learn the point after one step in place of the clean image")


def train(context: TrainingContext) -> None:
    """Train the context's network on noisy images and on mixes towards adversarial points."""
    from certbench.recipes.loop import fit

    params: Params = context.params
    fit(
        context, partial(batch_loss, params=params), sigma=params.sigma, copies=params.noise_samples
    )


def batch_loss(
    network: nn.Module, batch: Batch, params: Params
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the noisy images plus that of the mixes, and the noisy images' logits."""
    from torch.nn.functional import cross_entropy

    from certbench.recipes.adversary import soft_smoothed, unrestricted
    from certbench.recipes.loop import frozen
    from certbench.recipes.smoothadv import ramp

    copies = params.noise_samples
    grown = ramp(batch.epoch, params.epochs, params.mix_warmup)
    noise = batch.noise(params.sigma, copies)
    with frozen(network):
        points = unrestricted(
            network,
            batch.images,
            batch.labels,
            noise,
            params.step_size,
            params.attack_steps,
            batch.generator,
        )
    start = points[0]
    if params.one_step:
        moved = (points[1] - points[0]).renorm(p=2, dim=0, maxnorm=grown * params.step_size)
        start = points[0] + moved
    logits = network(start.repeat(copies, 1, 1, 1) + noise)
    smoothed = soft_smoothed(logits, copies)
    mixed, targets = mix(start, points[-1], smoothed, batch.uniform() / 2)
    mixed_logits = network(mixed.repeat(copies, 1, 1, 1) + noise)
    # Only images that the soft smoothed classifier gets right have a prediction worth mixing.
    correct = (smoothed.argmax(1) == batch.labels).float().repeat(copies)
    loss = cross_entropy(logits, batch.labels.repeat(copies))
    mix_loss = (correct * divergence(mixed_logits, targets.repeat(copies, 1))).mean()
    return loss + params.eta * grown * mix_loss, logits


def mix(
    images: torch.Tensor, adversarial: torch.Tensor, prediction: torch.Tensor, share: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and targets between an image and an adversarial point.

    Args:
        images: [B, C, H, W], whose target is ``prediction``.
        adversarial: [B, C, H, W], whose target is the uniform distribution.
        prediction: Probabilities [B, K].
        share: Share of the adversarial point, [B] in [0, 1/2].

    Returns:
        Mixed images [B, C, H, W] and targets [B, K].
    """
    of_image = share[:, None, None, None]
    of_class = share[:, None]
    classes = prediction.shape[1]
    return (
        (1 - of_image) * images + of_image * adversarial,
        (1 - of_class) * prediction + of_class / classes,
    )


def divergence(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """KL(target || softmax(logits)) of each row, [N]; the gradient flows through the targets too.

    Args:
        logits: [N, K].
        targets: Probabilities [N, K].
    """
    return (targets * (targets.clamp(min=1e-20).log() - logits.log_softmax(1))).sum(1)
