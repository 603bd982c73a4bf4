"""Architectures of timm (Wightman, https://github.com/huggingface/pytorch-image-models)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certbench.errors import CertbenchError, did_you_mean
from certbench.params import param

if TYPE_CHECKING:
    from torch import nn

version = 1

_RESERVED = ("num_classes", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay")


@dataclass(frozen=True)
class Params:
    """Which architecture, and its arguments."""

    name: str = param(help="model of timm, with or without the tag of its weights")
    kwargs: dict = param({}, help="arguments of timm.create_model, for example img_size: 32")


def build(params: Params, num_classes: int, pretrained: bool = False) -> nn.Module:
    """The network: normalised images float32 [N, C, H, W] to logits [N, num_classes].

    Args:
        params: Parameters.
        num_classes: Number of classes.
        pretrained: Start from timm's weights, to train further: the last layer is new where the
            number of classes differs. Needs the network or timm's caches.

    Raises:
        CertbenchError: timm has no such model, or does not take these arguments.
    """
    where = "builder timm"
    net = create(params.name, {**params.kwargs}, where, num_classes=num_classes)
    if pretrained:
        from pathlib import Path

        from certbench.models.checkpoints import load_into
        from certbench.models.sources import SourceContext
        from certbench.models.sources import timm as source

        wanted = source.Params(params.name, params.kwargs)
        fetched = source.fetch(wanted, Path(), SourceContext(where))
        load_into(net, fetched.state, where, new_head=True)
    return net


def default_normalisation(params: Params) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of timm's weights for this model (ImageNet's for a model without weights).

    Raises:
        CertbenchError: timm has no such model or tag.
    """
    import timm
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    check_name(params.name, "builder timm")
    config = timm.get_pretrained_cfg(params.name)
    if config is None:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return tuple(config.mean), tuple(config.std)


def check_name(name: str, where: str) -> None:
    """Refuse what timm does not know.

    Raises:
        CertbenchError: With the nearest spelling and the choices.
    """
    import timm

    if ":" in name or "/" in name:
        raise CertbenchError(
            f"'{name}' is an address, not a model of timm",
            where=f"{where}.name",
            remedy="name the architecture here, and its weights with source: huggingface or file",
        )
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise CertbenchError(
            f"timm {timm.__version__} has no model '{architecture}'",
            where=f"{where}.name",
            remedy=did_you_mean(architecture, timm.list_models()),
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise CertbenchError(
            f"timm {timm.__version__} has no weights '{tag}' for {architecture}",
            where=f"{where}.name",
            remedy=did_you_mean(tag, tags),
        )


def create(
    name: str,
    kwargs: dict[str, Any],
    where: str,
    num_classes: int | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Build timm's module of that name.

    Args:
        name: Model, with or without a tag.
        kwargs: Further arguments.
        where: Prefix for messages.
        num_classes: Number of classes (timm's own number with None).
        pretrained: Load timm's weights.

    Raises:
        CertbenchError: timm has no such model, or does not take these arguments.
    """
    import timm

    check_name(name, where)
    for key in _RESERVED:
        if key in kwargs:
            raise CertbenchError(
                f"'{key}' is set by certbench", where=f"{where}.kwargs", remedy="leave it out"
            )
    given = dict(kwargs) if num_classes is None else {**kwargs, "num_classes": num_classes}
    try:
        return timm.create_model(name, pretrained=pretrained, **given)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise CertbenchError(
            f"timm cannot build {name} with {kwargs}: {error}",
            where=f"{where}.kwargs",
            remedy="give only arguments of that model",
        ) from error
