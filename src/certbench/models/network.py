"""A model of the study: a network behind its normalisation, and the two files that hold it.

Everything outside speaks of images in [0, 1]: noise, patches and corruptions are added there. The
normalisation is the first step of the network, so a certificate speaks of pixel values.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from certbench.errors import CertbenchError
from certbench.models.checkpoints import load_into, refuse_non_finite, sha256_file
from certbench.params import build as build_params
from certbench.plugins import load as load_plugin
from certbench.results.atomic import atomic_path, write_text

CARD_KEYS = (
    "model",
    "task",
    "builder",
    "builder_version",
    "builder_params",
    "num_classes",
    "mean",
    "std",
    "input_kind",
    "sha256",
    "origin",
    "recipe",
    "seed",
    "parameters",
)


class Network(nn.Module):
    """Images in [0, 1] to logits: normalise each channel, then the wrapped module.

    Args:
        net: The module behind the normalisation.
        mean: Subtracted from each channel, in pixel values of [0, 1].
        std: Divisor of each channel, in pixel values of [0, 1].
        num_classes: Number K of classes.

    Raises:
        CertbenchError: ``mean`` and ``std`` differ in length, or a ``std`` is not positive.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, net: nn.Module, mean: Sequence[float], std: Sequence[float], num_classes: int
    ):
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise CertbenchError(
                f"mean {list(mean)} and std {list(std)} are no normalisation",
                where="model: normalisation",
                remedy="give one mean and one positive std for each channel",
            )
        self.net = net
        self.num_classes = int(num_classes)
        # Not persistent: they belong to the card, and the weights file keeps the builder's keys.
        self.register_buffer("mean", _channels(mean), persistent=False)
        self.register_buffer("std", _channels(std), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits float32 of images float32 [N, C, H, W] in [0, 1].

        They are [N, K] for a classifier and [N, K, H, W], a class for each pixel, for a segmenter.
        """
        return self.net((images - self.mean) / self.std).float()

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std of each channel, in pixel values of [0, 1]."""
        return tuple(self.mean.flatten().tolist()), tuple(self.std.flatten().tolist())


def input_kind(mean: Sequence[float], std: Sequence[float]) -> str:
    """Kind of the input layer: ``standardise``, ``centre`` (mean only) or ``none``."""
    if any(s != 1 for s in std):
        return "standardise"
    return "centre" if any(m != 0 for m in mean) else "none"


def save_model(
    weights_path: str | Path, card_path: str | Path, network: Network, card: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a model as a safetensors file and a JSON card, each atomically.

    What the network knows itself (classes, normalisation, number of parameters) and the sha256 of
    the weights file are added to the card.

    Args:
        weights_path: The ``.safetensors`` file; its keys are those of the builder's module.
        card_path: The ``.json`` file, written last.
        network: The model.
        card: The other keys of :data:`CARD_KEYS`; keys that are not given become null.

    Returns:
        The card as written.

    Raises:
        CertbenchError: A weight is NaN or infinite, or the card names no builder.
    """
    if not card.get("builder"):
        raise CertbenchError("names no builder", where=str(card_path), remedy="set card['builder']")
    state = {
        key: value.detach().cpu().contiguous().clone()
        for key, value in network.net.state_dict().items()
    }
    refuse_non_finite(state, str(weights_path))
    with atomic_path(weights_path) as path:
        save_file(state, path)
        digest = sha256_file(path)
    mean, std = network.normalisation()
    if "mean" in card and card["mean"] is not None:  # keep the digits of the source, not float32's
        mean, std = tuple(card["mean"]), tuple(card["std"])
    made = {
        **dict.fromkeys(CARD_KEYS),
        **card,
        "num_classes": network.num_classes,
        "mean": list(mean),
        "std": list(std),
        "input_kind": input_kind(mean, std),
        "sha256": digest,
        "parameters": sum(p.numel() for p in network.net.parameters()),
    }
    write_text(card_path, json.dumps(made, indent=1, sort_keys=True) + "\n")
    return made


def read_card(card_path: str | Path) -> dict[str, Any]:
    """The card of a model.

    Raises:
        CertbenchError: The file is missing, is no JSON, or lacks what loading needs.
    """
    try:
        card = json.loads(Path(card_path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CertbenchError("does not exist", where=str(card_path)) from error
    except ValueError as error:
        raise CertbenchError(
            "is no JSON", where=str(card_path), remedy="delete it and make the model again"
        ) from error
    needed = ("builder", "builder_params", "num_classes", "mean", "std", "sha256")
    missing = [key for key in needed if not isinstance(card, dict) or card.get(key) is None]
    if missing:
        raise CertbenchError(
            f"lacks {', '.join(missing)}",
            where=str(card_path),
            remedy="make the model again: train or fetch writes the card",
        )
    return card


def load_model(
    weights_path: str | Path,
    card_path: str | Path,
    device: torch.device | str = "cpu",
    plugins: Iterable[str] = (),
) -> Network:
    """The model of two files, in eval mode, its weights frozen.

    Args:
        weights_path: The safetensors file.
        card_path: Its card, which names the builder plug-in.
        device: Where the network goes.
        plugins: Modules or files that hold builders from outside.

    Raises:
        CertbenchError: The weights are not those of the card, the builder is unknown or has
            changed, or keys or shapes of the weights do not match its module.
    """
    card = read_card(card_path)
    try:
        digest = sha256_file(weights_path)
    except FileNotFoundError as error:
        raise CertbenchError("does not exist", where=str(weights_path)) from error
    if digest != card["sha256"]:
        raise CertbenchError(
            f"sha256 is {digest[:16]}..., but the card says {str(card['sha256'])[:16]}...",
            where=str(weights_path),
            remedy=f"the file or {card_path} was changed: make the model again",
        )
    where = str(card_path)
    builder = load_plugin("model", card["builder"], plugins, where=where)
    if card.get("builder_version") not in (None, builder.version):
        raise CertbenchError(
            f"was made by version {card['builder_version']} of builder '{card['builder']}', "
            f"which is now version {builder.version}",
            where=where,
            remedy="make the model again",
        )
    params = build_params(builder.Params, card["builder_params"], f"{where}: builder_params")
    net = builder.build(params, card["num_classes"], pretrained=False)
    try:
        state = load_file(weights_path)
    except (SafetensorError, OSError) as error:
        raise CertbenchError(
            f"is no readable safetensors file ({error})", where=str(weights_path)
        ) from error
    load_into(net, state, where=str(weights_path))
    network = Network(net, card["mean"], card["std"], card["num_classes"])
    return network.to(device).eval().requires_grad_(False)


def check_classes(card: Mapping[str, Any] | int, class_count: int, where: str) -> None:
    """Refuse a model whose classes are not those of the dataset.

    Args:
        card: The model's card, or its number of classes.
        class_count: Number of classes of the dataset.
        where: Names model and dataset in the message.

    Raises:
        CertbenchError: The two numbers differ.
    """
    known = card if isinstance(card, int) else int(card["num_classes"])
    if known != class_count:
        raise CertbenchError(
            f"the model tells {known} classes apart, the dataset has {class_count}",
            where=where,
            remedy="choose a model trained on this dataset, or train one (models.<id>.recipe)",
        )


def guard_logits(
    logits: torch.Tensor,
    model_id: str,
    num_classes: int,
    size: tuple[int, int] | None = None,
) -> torch.Tensor:
    """The logits themselves, after a look at their shape and values (one host synchronisation).

    Args:
        logits: What the model returned, expected [N, num_classes], or with ``size`` [N,
            num_classes, H, W].
        model_id: Name for the message.
        num_classes: Number of classes of the dataset.
        size: Height and width of the images, for a model that tells the class of each pixel.

    Raises:
        CertbenchError: Wrong shape, NaN or infinity.
    """
    if tuple(logits.shape[1:]) != (num_classes, *(size or ())):
        expected = ", ".join(map(str, ("N", num_classes, *(size or ()))))
        raise CertbenchError(
            f"returned logits of shape {tuple(logits.shape)}, expected [{expected}]",
            where=f"model '{model_id}'",
            remedy="check the number of classes of its builder and of the dataset",
        )
    if not bool(torch.isfinite(logits).all()):
        bad = int((~torch.isfinite(logits)).flatten(1).any(dim=1).sum())
        raise CertbenchError(
            f"returned NaN or infinite logits for {bad} of {len(logits)} inputs",
            where=f"model '{model_id}'",
            remedy="check its weights and normalisation, or set numerics: exact",
        )
    return logits


class FoldedNetwork(nn.Module):
    """A network for inference whose batch normalisation and input scale are part of its weights.

    Args:
        net: The rewritten module.
        shift: Still subtracted from the input, or None.
        scale: Still multiplied with the input, or None.
        num_classes: Number of classes.
    """

    shift: torch.Tensor | None
    scale: torch.Tensor | None

    def __init__(
        self,
        net: nn.Module,
        shift: torch.Tensor | None,
        scale: torch.Tensor | None,
        num_classes: int,
    ):
        super().__init__()
        self.net = net
        self.num_classes = num_classes
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits float32 [N, K] or [N, K, H, W] of images float32 [N, C, H, W] in [0, 1]."""
        if self.shift is not None:
            images = images - self.shift
        if self.scale is not None:
            images = images * self.scale
        return self.net(images).float()


class LowPrecision(nn.Module):
    """A copy of a module that computes in another floating type.

    Args:
        net: The module; it is left as it is.
        dtype: Type of weights, inputs and activations.
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.net = copy.deepcopy(net).to(dtype)
        self.dtype = dtype

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The module's outputs, float32, for images of any floating type."""
        made: torch.Tensor = self.net(images.to(self.dtype)).float()
        return made


def folded(network: Network) -> FoldedNetwork:
    """An equivalent module for inference: fewer operations, the same logits up to rounding.

    Batch normalisation goes into the convolution before it. The division by ``std`` goes into the
    first convolution; the mean too where that convolution does not pad (zeros padded after the
    normalisation are pixels of the mean, which a bias cannot express). A module that cannot be
    traced keeps its operations.

    Args:
        network: A model in eval mode; it is left as it is.

    Raises:
        CertbenchError: The model is in training mode.
    """
    if network.training:
        raise CertbenchError(
            "is in training mode", where="folded network", remedy="call network.eval() first"
        )
    net: nn.Module = copy.deepcopy(network.net).requires_grad_(False)
    shift, scale = network.mean.clone(), 1 / network.std
    keep = FoldedNetwork(net, shift, scale, network.num_classes)
    try:
        traced = torch.fx.symbolic_trace(net)
    except Exception:  # tracing runs foreign code: whatever stops it, the plain module still works
        return keep.eval()
    for conv, batch_norm in _conv_bn_pairs(traced):
        conv_module = traced.get_submodule(str(conv.target))
        bn_module = traced.get_submodule(str(batch_norm.target))
        assert isinstance(conv_module, nn.Conv2d) and isinstance(bn_module, nn.BatchNorm2d)
        fused = torch.nn.utils.fusion.fuse_conv_bn_eval(conv_module, bn_module)
        _replace(traced, str(conv.target), fused.requires_grad_(False))
        batch_norm.replace_all_uses_with(conv)
        traced.graph.erase_node(batch_norm)
    traced.graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    first = _first_conv(traced)
    if first is None:
        return FoldedNetwork(traced, shift, scale, network.num_classes).eval()
    with torch.no_grad():
        first.weight.mul_(scale)
        if not _pads(first):
            bias = -(first.weight * shift).sum(dim=(1, 2, 3))
            first.bias = nn.Parameter(
                bias if first.bias is None else first.bias + bias, requires_grad=False
            )
            return FoldedNetwork(traced, None, None, network.num_classes).eval()
    return FoldedNetwork(traced, shift, None, network.num_classes).eval()


def _conv_bn_pairs(traced: torch.fx.GraphModule) -> list[tuple[torch.fx.Node, torch.fx.Node]]:
    """Convolution nodes read only by a batch normalisation with fixed statistics."""
    nodes = list(traced.graph.nodes)
    calls: dict[str, int] = {}
    for node in nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    pairs = []
    for node in nodes:
        # Exact types only: subclasses (batch normalisation with activation) do more.
        if _module_type(traced, node) is not nn.BatchNorm2d:
            continue
        conv = node.args[0]
        if (
            isinstance(conv, torch.fx.Node)
            and _module_type(traced, conv) is nn.Conv2d
            and calls[str(conv.target)] == 1
            and len(conv.users) == 1
            and traced.get_submodule(node.target).running_mean is not None
        ):
            pairs.append((conv, node))
    return pairs


def _first_conv(traced: torch.fx.GraphModule) -> nn.Conv2d | None:
    """The ungrouped convolution that alone reads the input, if there is one."""
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1 or len(inputs[0].users) != 1:
        return None
    (user,) = inputs[0].users
    uses = [node for node in traced.graph.nodes if node.target == user.target]
    if _module_type(traced, user) is not nn.Conv2d or len(uses) != 1:
        return None
    conv = traced.get_submodule(user.target)
    assert isinstance(conv, nn.Conv2d)
    return conv if conv.groups == 1 and conv.padding_mode == "zeros" else None


def _module_type(traced: torch.fx.GraphModule, node: torch.fx.Node) -> type | None:
    return type(traced.get_submodule(str(node.target))) if node.op == "call_module" else None


def _pads(conv: nn.Conv2d) -> bool:
    if isinstance(conv.padding, str):
        return conv.padding != "valid" and any(k > 1 for k in conv.kernel_size)
    return any(p > 0 for p in conv.padding)


def _replace(root: nn.Module, target: str, module: nn.Module) -> None:
    parent, _, name = target.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def _channels(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.float32).view(1, -1, 1, 1)
