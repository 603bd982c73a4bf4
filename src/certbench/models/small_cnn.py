"""A small convolutional network for small images: tens of thousands a second on one core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from certbench.errors import CertbenchError
from certbench.params import param

if TYPE_CHECKING:
    from torch import nn

version = 1


@dataclass(frozen=True)
class Params:
    """Size of the network."""

    width: int = param(
        16, help="channels of the first block; the later blocks have twice", minimum=1
    )


def build(params: Params, num_classes: int, pretrained: bool = False) -> nn.Module:
    """Three convolutions with batch normalisation, a 4 x 4 grid of averages, one linear layer.

    Args:
        params: Width.
        num_classes: Number of logits.
        pretrained: Must be false: there are no published weights.

    Raises:
        CertbenchError: ``pretrained`` is set.
    """
    from certbench.models._small_cnn_net import SmallCnn

    if pretrained:
        raise CertbenchError(
            "has no published weights", where="model builder 'small_cnn'", remedy="train it"
        )
    return SmallCnn(params.width, num_classes)
