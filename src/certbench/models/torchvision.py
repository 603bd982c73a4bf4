"""Architectures of torchvision, for classification and segmentation.

Auxiliary classifiers, which only training reads, are left out: every network returns logits alone.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certbench.errors import CertbenchError, did_you_mean
from certbench.params import param

if TYPE_CHECKING:
    import torch
    from torch import nn

version = 1

_RESERVED = ("num_classes", "weights", "weights_backbone", "progress", "aux_loss", "aux_logits")
_AUXILIARY = ("aux_classifier.", "aux1.", "aux2.", "AuxLogits.")
_INCEPTIONS = ("googlenet", "inception_v3")
_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)")


@dataclass(frozen=True)
class Params:
    """Which architecture, and its arguments."""

    name: str = param(help="model of torchvision, for example resnet50 or deeplabv3_resnet50")
    kwargs: dict = param({}, help="arguments of its builder, for example image_size: 64")


def build(params: Params, num_classes: int, pretrained: bool = False) -> nn.Module:
    """The network: normalised images float32 [N, 3, H, W] to logits.

    Classification models return [N, num_classes], segmentation models [N, num_classes, H, W].

    Args:
        params: Parameters.
        num_classes: Number of classes.
        pretrained: Start from torchvision's default weights, to train further: the last layer is
            new where the number of classes differs. Needs the network or PyTorch's cache.

    Raises:
        CertbenchError: torchvision has no such model, or does not take these arguments.
    """
    import torchvision

    where = "builder torchvision"
    check_name(params.name, where)
    for key in _RESERVED:
        if key in params.kwargs:
            raise CertbenchError(
                f"'{key}' is set by certbench", where=f"{where}.kwargs", remedy="leave it out"
            )
    kwargs: dict[str, Any] = dict(params.kwargs)
    taken = inspect.signature(torchvision.models.get_model_builder(params.name)).parameters
    if "weights_backbone" in taken:
        kwargs["weights_backbone"] = None  # by default the backbone's weights would be fetched
    if "aux_loss" in taken:
        kwargs["aux_loss"] = False
    if params.name in _INCEPTIONS:
        # transform_input renormalises inside the network, as the published weights expect.
        kwargs = {"transform_input": True, "init_weights": True, **kwargs, "aux_logits": False}
    try:
        net = torchvision.models.get_model(
            params.name, weights=None, num_classes=num_classes, **kwargs
        )
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise CertbenchError(
            f"torchvision cannot build {params.name} with {params.kwargs}: {error}",
            where=f"{where}.kwargs",
            remedy="give only arguments of that model",
        ) from error
    if _is_segmentation(params.name):
        net.register_forward_hook(_logits_alone)  # a wrapper module would change the keys
    if pretrained:
        from pathlib import Path

        from certbench.models.checkpoints import load_into
        from certbench.models.sources import SourceContext
        from certbench.models.sources import torchvision as source

        wanted = source.Params(params.name, kwargs=params.kwargs)
        fetched = source.fetch(wanted, Path(), SourceContext(where))
        load_into(net, convert(fetched.state), where, new_head=True)
    return net


def default_normalisation(params: Params) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std that torchvision's default weights of this model were trained with.

    Raises:
        CertbenchError: torchvision has no such model.
    """
    import torchvision

    check_name(params.name, "builder torchvision")
    weights = torchvision.models.get_model_weights(params.name)
    preset = weights.DEFAULT.transforms()
    return tuple(preset.mean), tuple(preset.std)


def convert(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Published key layouts to those of :func:`build`.

    Drops auxiliary classifiers, and renames the keys of DenseNet files from before 2018, which have
    a dot where modules no longer may (``norm.1`` is now ``norm1``).
    """
    made = {}
    for key, value in state.items():
        if not key.startswith(_AUXILIARY):
            match = _OLD_DENSENET.fullmatch(key)
            made["".join(match.groups()) if match else key] = value
    return made


def check_name(name: str, where: str) -> None:
    """Refuse what torchvision has no classification or segmentation model for.

    Raises:
        CertbenchError: With the nearest spelling and the choices.
    """
    import torchvision

    models = torchvision.models
    known = models.list_models(module=models) + models.list_models(module=models.segmentation)
    if name not in known:
        raise CertbenchError(
            f"torchvision {torchvision.__version__} has no classification or segmentation model "
            f"'{name}'",
            where=f"{where}.name",
            remedy=did_you_mean(name, known),
        )


def _is_segmentation(name: str) -> bool:
    import torchvision

    return name in torchvision.models.list_models(module=torchvision.models.segmentation)


def _logits_alone(module: nn.Module, inputs: Any, output: dict[str, torch.Tensor]) -> torch.Tensor:
    return output["out"]
