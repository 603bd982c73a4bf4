"""The modules behind the builder ``denoised``."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import interpolate


class Denoised(nn.Module):
    """classifier(denoise(x)).

    Args:
        denoiser: Noisy images around [0, 1] to images in [0, 1].
        classifier: Images in [0, 1] to logits; normalises by itself.
        sigma: Std of the noise that the denoiser is meant for, in pixel values of [0, 1].
        classifier_size: Size to which denoised images are resized, or None.
    """

    def __init__(
        self, denoiser: nn.Module, classifier: nn.Module, sigma: float, classifier_size: int | None
    ):
        super().__init__()
        self.denoiser, self.classifier = denoiser, classifier
        self.sigma, self.classifier_size = sigma, classifier_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, K] of noisy images [N, 3, H, W]."""
        return self.classify(self.denoiser(x))

    def classify(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, K] of images [N, 3, H, W] without noise."""
        if self.classifier_size is not None:
            size = (self.classifier_size, self.classifier_size)
            images = interpolate(images, size, mode="bicubic", antialias=True)
        return self.classifier(images)


class DiffusionDenoiser(nn.Module):
    """One step of a diffusion model from timestep t to the image.

    The prediction is x_0 = (x_t - sqrt(1 - abar) eps(x_t, t)) / sqrt(abar), clamped to the range of
    images.

    Args:
        net: (x_t [N, 3, H, W], t int64 [N]) to eps [N, >= 3, H, W].
        timestep: The timestep t.
        alpha: abar_t.
    """

    def __init__(self, net: nn.Module, timestep: int, alpha: float):
        super().__init__()
        self.net, self.timestep = net, timestep
        self.signal, self.noise = math.sqrt(alpha), math.sqrt(1 - alpha)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, H, W] in [0, 1] from noisy images around [0, 1]."""
        scaled = self.signal * (2 * x - 1)
        steps = torch.full((len(x),), self.timestep, dtype=torch.int64, device=x.device)
        predicted = self.net(scaled, steps)[:, : x.shape[1]]
        image = (scaled - self.noise * predicted) / self.signal
        return (image.clamp(-1, 1) + 1) / 2


class DnCNN(nn.Module):
    """Residual denoiser: the noise, predicted by plain convolutions, is subtracted.

    Zhang et al., "Beyond a Gaussian Denoiser" (TIP 2017), with the key layout of the published
    weights of denoised smoothing.

    Args:
        depth: Number of convolutions.
        width: Channels between them.
    """

    def __init__(self, depth: int, width: int):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers.append(nn.Conv2d(width, width, 3, padding=1, bias=False))
            layers.append(nn.BatchNorm2d(width, eps=1e-4))
            layers.append(nn.ReLU(inplace=True))
        layers.append(nn.Conv2d(width, 3, 3, padding=1, bias=False))
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.orthogonal_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        # It starts as the identity.
        nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]
        self.dncnn = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, H, W] from noisy images."""
        return x - self.dncnn(x)
