"""A denoiser in front of a classifier: denoised smoothing, also with a diffusion model.

f(x) = classifier(denoise(x)), where x carries the noise of the smoothing (Salman et al., "Denoised
Smoothing", NeurIPS 2020; Carlini et al., ICLR 2023, for one step of a diffusion model). The
smoothing adds the noise; nothing in here adds any.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certbench.errors import CertbenchError, did_you_mean
from certbench.models.diffusion import SCHEDULES
from certbench.params import build as build_params
from certbench.params import param

if TYPE_CHECKING:
    import torch
    from torch import nn

version = 1


@dataclass(frozen=True, kw_only=True)
class Params:
    """The two networks and the noise between them."""

    classifier: dict = param(help="builder, params, mean, std of the classifier")
    denoiser: dict = param(
        {"builder": "dncnn"},
        help="builder: dncnn with params depth and width; or module: package.module:function that "
        "makes the network from params",
    )
    sigma: float = param(
        help="std of the noise of the smoothing", unit="pixel values in [0, 1]", above=0
    )
    schedule: str | None = param(
        None,
        help="noise schedule of a diffusion model; null for a denoiser of images in [0, 1]",
        choices=SCHEDULES,
    )
    timesteps: int = param(1000, help="steps of the schedule", minimum=2)
    classifier_size: int | None = param(
        None, help="size to which denoised images are resized", unit="pixels", minimum=1
    )


@dataclass(frozen=True)
class ClassifierParams:
    """What is in front of the logits."""

    builder: str = param(help="builder plug-in")
    params: dict = param({}, help="its parameters")
    mean: tuple[float, ...] | None = param(None, help="mean per channel; null: the builder's")
    std: tuple[float, ...] | None = param(
        None, help="std per channel; null: the builder's", above=0
    )


@dataclass(frozen=True)
class DenoiserParams:
    """What is in front of the classifier: one of ``builder`` and ``module``."""

    builder: str | None = param(None, help="dncnn")
    module: str | None = param(None, help="package.module:function")
    params: dict = param({}, help="its parameters")


@dataclass(frozen=True)
class DncnnParams:
    """Size of a DnCNN."""

    depth: int = param(17, help="number of convolutions", minimum=2)
    width: int = param(64, help="channels", minimum=1)


def build(params: Params, num_classes: int, pretrained: bool = False) -> nn.Module:
    """The composition, its input in [0, 1] plus noise.

    A diffusion model is a module that maps (x_t float32 [N, 3, H, W], t int64 [N]) to the noise
    [N, 3, H, W]; further channels (a learned variance) are ignored.

    Args:
        params: The two networks.
        num_classes: Number of logits.
        pretrained: Passed on to the classifier's builder.

    Raises:
        CertbenchError: Unknown builder or module, wrong parameters, or too much noise for the
            schedule.
    """
    from certbench.models._denoised_net import Denoised, DiffusionDenoiser
    from certbench.models.diffusion import cumulative_alphas, timestep
    from certbench.models.network import Network
    from certbench.plugins import load

    where = "model builder 'denoised'"
    spec = build_params(ClassifierParams, params.classifier, f"{where}: classifier")
    builder = load("model", spec.builder, where=f"{where}: classifier")
    inner = build_params(builder.Params, spec.params, f"{where}: classifier.params")
    if (spec.mean is None) != (spec.std is None):
        raise CertbenchError(
            "has one of mean and std", where=f"{where}: classifier", remedy="give both or none"
        )
    mean, std = spec.mean, spec.std
    if mean is None and hasattr(builder, "default_normalisation"):
        mean, std = builder.default_normalisation(inner) or (None, None)
    if mean is None or std is None:
        mean, std = (0.0,) * 3, (1.0,) * 3
    net = builder.build(inner, num_classes, pretrained=pretrained)
    classifier = Network(net, mean, std, num_classes)
    denoiser = _denoiser(build_params(DenoiserParams, params.denoiser, f"{where}: denoiser"), where)
    if params.schedule is not None:
        alphas = cumulative_alphas(params.schedule, params.timesteps)
        step = timestep(params.sigma, alphas, where)
        denoiser = DiffusionDenoiser(denoiser, step, alphas[step])
    return Denoised(denoiser, classifier, params.sigma, params.classifier_size)


def default_normalisation(params: Params) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """None at all: the denoiser works on images in [0, 1], the classifier normalises after it."""
    return (0.0,) * 3, (1.0,) * 3


def merged(
    classifier: Mapping[str, torch.Tensor], denoiser: Mapping[str, torch.Tensor], diffusion: bool
) -> dict[str, torch.Tensor]:
    """Weights of the composition from those of its parts, to be saved as one file.

    Args:
        classifier: Weights under the keys of the classifier's builder.
        denoiser: Weights under the keys of the denoiser.
        diffusion: Whether ``schedule`` is set.
    """
    middle = "denoiser.net." if diffusion else "denoiser."
    return {
        **{f"classifier.net.{key}": value for key, value in classifier.items()},
        **{f"{middle}{key}": value for key, value in denoiser.items()},
    }


def _denoiser(spec: Any, where: str) -> nn.Module:
    """The denoiser's own module."""
    spot = f"{where}: denoiser"
    if (spec.builder is None) == (spec.module is None):
        raise CertbenchError(
            "needs exactly one of builder and module", where=spot, remedy="builder: dncnn"
        )
    if spec.builder is not None:
        if spec.builder != "dncnn":
            raise CertbenchError(
                f"unknown denoiser '{spec.builder}'",
                where=f"{spot}.builder",
                remedy=did_you_mean(spec.builder, ["dncnn"]) + "; another one through module",
            )
        from certbench.models._denoised_net import DnCNN

        size = build_params(DncnnParams, spec.params, f"{spot}.params")
        return DnCNN(size.depth, size.width)
    module, _, function = spec.module.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise CertbenchError(
            f"cannot import '{spec.module}' ({error})",
            where=f"{spot}.module",
            remedy="write it as package.module:function, importable where the workflow runs",
        ) from error
    return make(**spec.params)
