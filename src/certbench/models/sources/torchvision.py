"""Published weights of torchvision, through torchvision's own loading and PyTorch's cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certbench.errors import CertbenchError, did_you_mean
from certbench.models.download import torch_cache
from certbench.models.sources import FetchedState, SourceContext, check_sha256
from certbench.params import param

version = 1


@dataclass(frozen=True)
class Params:
    """Which weights of which model."""

    name: str = param(help="model, for example resnet50")
    weights: str = param("DEFAULT", help="entry of its weights enumeration, e.g. IMAGENET1K_V1")
    kwargs: dict = param({}, help="arguments of torchvision's builder, the same as the builder's")
    sha256: str | None = param(None, help="SHA-256 that the weights file must have")

    def __post_init__(self):
        check_sha256(self.sha256, "source torchvision")


def fetch(params: Params, folder: Path, context: SourceContext) -> FetchedState:
    """Let torchvision load its weights: from PyTorch's cache, or from the network into it.

    Args:
        params: Parameters.
        folder: Not used: the cache is ``<TORCH_HOME>/hub/checkpoints``.
        context: Names the model in messages and shows progress.

    Raises:
        CertbenchError: No such model or weights; no network and no cached copy; a file that is not
            what its name says, has another sha256, or holds more than tensors.
    """
    import torchvision

    from certbench.models.checkpoints import read_checkpoint

    weights = _weights(params, context.where)
    path = torch_cache(weights.url, tick=context.tick, where=context.where)
    # torchvision unpickles its files without restriction: look first whether that is harmless.
    read = read_checkpoint(path, params.sha256, where=context.where)
    try:
        model = torchvision.models.get_model(
            params.name, weights=weights, progress=False, **params.kwargs
        )
    except (TypeError, ValueError) as error:
        raise CertbenchError(
            f"torchvision cannot build {params.name} with {weights.name}: {error}",
            where=f"{context.where}.kwargs",
            remedy="give only arguments of that model that go with the weights",
        ) from error
    return FetchedState(model.state_dict(), read.sha256, weights.url, read.size_bytes)


def normalisation(params: Params) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std that these weights were trained with.

    Raises:
        CertbenchError: torchvision has no such model or weights.
    """
    preset = _weights(params, "source torchvision").transforms()
    return tuple(preset.mean), tuple(preset.std)


def _weights(params: Params, where: str) -> Any:
    import torchvision

    from certbench.models.torchvision import check_name

    check_name(params.name, where)
    choices = torchvision.models.get_model_weights(params.name).__members__
    wanted = params.weights.rpartition(".")[2]
    if wanted not in choices:
        raise CertbenchError(
            f"{params.name} has no weights '{params.weights}'",
            where=f"{where}.weights",
            remedy=did_you_mean(wanted, choices),
        )
    return choices[wanted]
