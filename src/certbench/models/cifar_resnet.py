"""The residual network of the CIFAR literature: depth 6n + 2, three stages of n basic blocks.

He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.2, with 1 x 1
convolution shortcuts: the network of the published randomized smoothing checkpoints for CIFAR-10
(depth 110; Cohen et al., ICML 2019; Salman et al., NeurIPS 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certbench.errors import CertbenchError
from certbench.params import param

if TYPE_CHECKING:
    import torch
    from torch import nn

version = 1

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True)
class Params:
    """Size of the network."""

    depth: int = param(20, help="number of weighted layers, 6n + 2: 20, 32, 44, 56, 110", minimum=8)


def build(params: Params, num_classes: int, pretrained: bool = False) -> nn.Module:
    """The network, its weights drawn as in He et al. (2015).

    Args:
        params: Depth.
        num_classes: Number of logits.
        pretrained: Must be false: published weights come through a model source.

    Raises:
        CertbenchError: The depth is not 6n + 2, or ``pretrained`` is set.
    """
    from certbench.models._cifar_resnet_net import CifarResNet

    if (params.depth - 2) % 6:
        raise CertbenchError(
            f"depth {params.depth} is not 6n + 2",
            where="model builder 'cifar_resnet'",
            remedy="choose 20, 32, 44, 56 or 110",
        )
    if pretrained:
        raise CertbenchError(
            "has no weights of its own",
            where="model builder 'cifar_resnet'",
            remedy="train it, or name a checkpoint as the model's source",
        )
    return CifarResNet((params.depth - 2) // 6, num_classes)


def default_normalisation(params: Params) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of CIFAR-10's channels in [0, 1], as in the published checkpoints."""
    return CIFAR10_MEAN, CIFAR10_STD


def convert(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a published checkpoint under the keys of :func:`build`'s network.

    They have the same keys behind wrappers: ``Sequential(normalise, network)`` puts ``1.`` in front
    of them, several devices put ``module.``. Constants of the normalisation are left out: they
    belong to the model card. Batch counters that old checkpoints lack are added.

    Args:
        state: The checkpoint's tensors, without its other entries (optimiser, epoch).
    """
    import torch

    from certbench.models.checkpoints import unwrap

    found = dict(unwrap(state)[-1].state)
    for key in list(found):
        if key.endswith("running_var"):
            counter = key.removesuffix("running_var") + "num_batches_tracked"
            found.setdefault(counter, torch.zeros((), dtype=torch.int64))
    return found
