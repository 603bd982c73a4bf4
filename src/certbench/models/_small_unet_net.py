"""The module behind the builder ``small_unet``."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional


class SmallUnet(nn.Module):
    """Four halvings and four doublings, each level joined to its counterpart.

    Upsampling is by nearest neighbours, whose gradient is deterministic on every device.

    Args:
        width: Channels at half the resolution; each lower level has twice as many.
        num_classes: Number of logits of a pixel.
    """

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        fine = max(1, width // 2)
        widths = [fine, width, 2 * width, 4 * width, 8 * width]
        self.stem = _block(3, fine)
        self.down = nn.ModuleList(
            nn.Sequential(_block(before, after, stride=2), _block(after, after))
            for before, after in itertools.pairwise(widths)
        )
        self.up = nn.ModuleList(
            _block(below + beside, max(beside, width))
            for below, beside in zip(
                [widths[4], widths[3], widths[2], widths[1]], reversed(widths[:4]), strict=True
            )
        )
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, num_classes, H, W] of normalised images [N, 3, H, W], H and W of any size."""
        # Channels last halves the time of these thin layers on a CPU.
        levels = [self.stem(x.contiguous(memory_format=torch.channels_last))]
        for down in self.down:
            levels.append(down(levels[-1]))
        x = levels.pop()
        for up in self.up:
            beside = levels.pop()
            x = functional.interpolate(x, size=beside.shape[-2:], mode="nearest")
            x = up(torch.cat([x, beside], 1))
        return self.head(x)


def _block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )
