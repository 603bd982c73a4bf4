"""Train the two parts of a denoised classifier (Salman et al., NeurIPS 2020, MSE objective).

The classifier learns clean images by cross-entropy, the denoiser learns to take fresh noise off by
its squared error. The parts share no weights and neither loss reaches the other part, so training
them side by side is training each alone.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    """The optimisation. The steps of adamw do not depend on the scale of either loss."""

    optimiser: str = param("adamw", help="adamw or sgd", choices=("sgd", "adamw"))
    learning_rate: float = param(1e-3, help="largest learning rate", above=0)


def train(context: TrainingContext) -> None:
    """Train classifier and denoiser; the noise is the builder's sigma.

    Raises:
        CertbenchError: The model was not built by ``denoised``.
    """
    from certbench.errors import CertbenchError
    from certbench.models._denoised_net import Denoised
    from certbench.recipes.loop import fit

    net = context.network.net
    if not isinstance(net, Denoised):
        raise CertbenchError(
            f"trains a denoiser with its classifier, not a {type(net).__name__}",
            where="recipe 'denoising'",
            remedy="use the builder denoised",
        )
    fit(context, batch_loss, sigma=net.sigma)


def batch_loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Both losses, and the classifier's logits of the clean images."""
    from torch.nn.functional import cross_entropy, mse_loss

    from certbench.models._denoised_net import Denoised

    net = network.net
    assert isinstance(net, Denoised)
    logits = net.classify(batch.images)
    cleaned = net.denoiser(batch.images + batch.noise(net.sigma))
    # One image through each part is one image through the network.
    batch.cost.forward += len(batch.images)
    batch.cost.backward += len(batch.images)
    return cross_entropy(logits, batch.labels) + mse_loss(cleaned, batch.images), logits
