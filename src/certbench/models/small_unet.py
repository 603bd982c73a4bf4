"""A small U-Net (Ronneberger et al., MICCAI 2015) for label maps of small images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from certbench.errors import CertbenchError
from certbench.params import param

if TYPE_CHECKING:
    from torch import nn

version = 1

tasks = ("segmentation",)


@dataclass(frozen=True)
class Params:
    """Size of the network."""

    width: int = param(
        16,
        help="channels at half the resolution; each of three lower levels has twice as many",
        minimum=1,
        maximum=256,
    )


def build(params: Params, num_classes: int, pretrained: bool = False) -> nn.Module:
    """An encoder and a decoder of five levels; logits are as large as the image.

    Args:
        params: Width; 16 makes half a million parameters.
        num_classes: Number of logits of a pixel.
        pretrained: Must be false: there are no published weights.

    Raises:
        CertbenchError: ``pretrained`` is set.
    """
    from certbench.models._small_unet_net import SmallUnet

    if pretrained:
        raise CertbenchError(
            "has no published weights", where="model builder 'small_unet'", remedy="train it"
        )
    return SmallUnet(params.width, num_classes)
