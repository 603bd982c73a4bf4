"""Attacks on the soft smoothed classifier, as trainings use them.

The soft smoothed classifier is the mean of softmax(f(x + noise)) over m fixed noise samples; the
attack climbs -log of the label's mean probability (Salman et al., NeurIPS 2019). Noise comes
sample-major: copy s of image i is row ``s * B + i``.
"""

from __future__ import annotations

import math

import torch
from torch import nn

_SMALLEST_PROBABILITY = 1e-20


def soft_smoothed(logits: torch.Tensor, copies: int) -> torch.Tensor:
    """Mean softmax over the noisy copies, [B, K] from logits [copies * B, K]."""
    return logits.softmax(1).unflatten(0, (copies, -1)).mean(0)


def soft_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """-log of the label's mean probability, [B] from logits [copies * B, K]."""
    mean = soft_smoothed(logits, len(logits) // len(labels))
    return -mean.gather(1, labels[:, None]).squeeze(1).clamp(min=_SMALLEST_PROBABILITY).log()


def pgd(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    noise: torch.Tensor,
    epsilon: float,
    steps: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Projected gradient ascent within an L2 ball, steps of length 2 epsilon / steps.

    Args:
        network: Images in [0, 1] to logits, in eval mode.
        images: float32 [B, C, H, W] in [0, 1].
        labels: int64 [B].
        noise: float32 [m * B, C, H, W].
        epsilon: Radius of the ball.
        steps: Number of steps.
        generator: Draws a direction where the gradient vanishes.

    Returns:
        Images [B, C, H, W] in [0, 1] within ``epsilon`` of the given ones.
    """
    delta = torch.zeros_like(images)
    for _ in range(steps):
        _, direction = ascent(network, images + delta, labels, noise, generator)
        delta = delta + (2 * epsilon / steps) * direction
        delta = (images + delta).clamp(0, 1) - images
        delta = delta.renorm(p=2, dim=0, maxnorm=epsilon)
    return images + delta


def ddn(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    noise: torch.Tensor,
    epsilon: float,
    steps: int,
    generator: torch.Generator,
    gamma: float = 0.05,
    levels: int = 256,
) -> torch.Tensor:
    """Decoupled direction and norm (Rony et al., CVPR 2019) on the soft smoothed classifier.

    The norm starts at ``epsilon``, shrinks by ``gamma`` where the majority of the noisy copies is
    misclassified and grows elsewhere; the smallest adversarial perturbation found is returned.

    Args:
        network: Images in [0, 1] to logits, in eval mode.
        images: float32 [B, C, H, W] in [0, 1].
        labels: int64 [B].
        noise: float32 [m * B, C, H, W].
        epsilon: Largest norm of what is returned, and the first norm tried.
        steps: Number of steps.
        generator: Draws a direction where the gradient vanishes.
        gamma: Relative change of the norm per step.
        levels: The search stays on images of so many grey levels.

    Returns:
        Images [B, C, H, W] in [0, 1] within ``epsilon`` of the given ones; an image for which no
        step was adversarial is returned as it was.
    """
    copies = len(noise) // len(images)
    delta, best = torch.zeros_like(images), torch.zeros_like(images)
    norm = torch.full((len(images),), epsilon, device=images.device)
    largest = _norm(torch.maximum(images, 1 - images))
    best_norm = largest.clone()
    for step in range(steps):
        logits, direction = ascent(network, images + delta, labels, noise, generator)
        votes = logits.argmax(1).unflatten(0, (copies, -1)).mode(0).values
        adversarial = votes != labels
        better = adversarial & (_norm(delta) < best_norm)
        best = torch.where(better[:, None, None, None], delta, best)
        best_norm = torch.where(better, _norm(delta), best_norm)
        # The step falls from 1 to 0.01 along half a cosine.
        length = 0.01 + 0.99 * (1 + math.cos(math.pi * (step + 1) / steps)) / 2
        delta = delta + length * direction
        norm = torch.where(adversarial, norm * (1 - gamma), norm * (1 + gamma))
        norm = torch.minimum(norm, largest)
        delta = delta * (norm / _norm(delta).clamp(min=1e-12))[:, None, None, None]
        moved = ((images + delta) * (levels - 1)).round() / (levels - 1)
        delta = moved.clamp(0, 1) - images
    return images + best.renorm(p=2, dim=0, maxnorm=epsilon)


def unrestricted(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    noise: torch.Tensor,
    step_size: float,
    steps: int,
    generator: torch.Generator,
) -> list[torch.Tensor]:
    """The points of gradient ascent with steps of fixed length, kept in [0, 1] only.

    Args:
        network: Images in [0, 1] to logits, in eval mode.
        images: float32 [B, C, H, W] in [0, 1].
        labels: int64 [B].
        noise: float32 [m * B, C, H, W].
        step_size: L2 length of a step.
        steps: Number of steps.
        generator: Draws a direction where the gradient vanishes.

    Returns:
        ``steps + 1`` tensors [B, C, H, W]: the images, and the points after each step.
    """
    points = [images]
    for _ in range(steps):
        _, direction = ascent(network, points[-1], labels, noise, generator)
        points.append((points[-1] + step_size * direction).clamp(0, 1))
    return points


def ascent(
    network: nn.Module,
    points: torch.Tensor,
    labels: torch.Tensor,
    noise: torch.Tensor,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [m * B, K] of the noisy points, and the unit directions [B, C, H, W] of ascent."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        logits = network(points.repeat(len(noise) // len(points), 1, 1, 1) + noise)
        (gradient,) = torch.autograd.grad(soft_loss(logits, labels).sum(), points)
    length = _norm(gradient)[:, None, None, None]
    drawn = torch.randn(gradient.shape, generator=generator, device=gradient.device)
    drawn = drawn / _norm(drawn)[:, None, None, None]
    return logits.detach(), torch.where(length > 0, gradient / length.clamp(min=1e-30), drawn)


def _norm(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).norm(dim=1)
