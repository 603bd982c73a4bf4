"""Published weights of timm, through timm's own loading and caches.

timm adapts some files to its modules (other key layouts, resampled position embeddings); the state
handed over is that of timm's module after loading.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certbench.errors import CertbenchError
from certbench.models.download import sha256_file, torch_cache
from certbench.models.sources import FetchedState, SourceContext, check_sha256
from certbench.models.sources.huggingface import NoSuchFile, hub_file
from certbench.params import param

version = 1


@dataclass(frozen=True)
class Params:
    """Which weights of which model."""

    name: str = param(help="model with its weights' tag, for example resnet50.a1_in1k")
    kwargs: dict = param({}, help="arguments of timm.create_model, the same as the builder's")
    sha256: str | None = param(None, help="SHA-256 that the weights file must have")

    def __post_init__(self):
        check_sha256(self.sha256, "source timm")


def fetch(params: Params, folder: Path, context: SourceContext) -> FetchedState:
    """Let timm load its weights: from its caches, or from the network into them.

    Args:
        params: Parameters.
        folder: Not used: timm's caches are those of the Hugging Face Hub and of PyTorch.
        context: Names the model in messages and shows progress.

    Raises:
        CertbenchError: No such model or weights; no network and no cached copy; wrong sha256.
    """
    from certbench.models.timm import create

    config = _config(params.name, context.where)
    path, origin = _file(params.name, config, context)
    digest = sha256_file(path)
    if params.sha256 is not None and digest != params.sha256.lower():
        raise CertbenchError(
            f"{path} has sha256 {digest}, expected {params.sha256}",
            where=context.where,
            remedy="the publisher changed the file, or the cached copy is damaged (delete it)",
        )
    model = create(params.name, params.kwargs, context.where, pretrained=True)
    return FetchedState(model.state_dict(), digest, origin, path.stat().st_size)


def normalisation(params: Params) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std that these weights were trained with; they differ between the tags of a model.

    Raises:
        CertbenchError: timm has no such model or weights.
    """
    config = _config(params.name, "source timm")
    return tuple(config.mean), tuple(config.std)


def _config(name: str, where: str) -> Any:
    """The pretrained weights that timm records for ``name``."""
    import timm

    from certbench.models.timm import check_name

    check_name(name, where)
    config = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url or config.file):
        raise CertbenchError(
            f"timm publishes no weights for '{name}'",
            where=where,
            remedy="see timm.list_pretrained(); or fetch weights with source: url or file",
        )
    return config


def _file(name: str, config: Any, context: SourceContext) -> tuple[Path, str]:
    """The weights file that timm reads, in its cache, and where it comes from."""
    if config.file:
        return Path(config.file), f"timm {name}"
    if not config.hf_hub_id:
        return torch_cache(config.url, tick=context.tick, where=context.where), config.url
    repo, _, revision = config.hf_hub_id.partition("@")
    # In the order in which timm looks.
    names = (
        (config.hf_hub_filename,)
        if config.hf_hub_filename and not config.hf_hub_filename.endswith(".bin")
        else _with_safe(config.hf_hub_filename or "pytorch_model.bin")
    )
    for filename in names[:-1]:
        try:
            path = hub_file(repo, filename, revision or None, context)
        except NoSuchFile:
            continue
        return path, f"hf://{repo}/{filename}"
    return hub_file(repo, names[-1], revision or None, context), f"hf://{repo}/{names[-1]}"


def _with_safe(filename: str) -> tuple[str, ...]:
    """A pickled file's safetensors twin, then the file itself."""
    twins = {
        "pytorch_model.bin": "model.safetensors",
        "open_clip_pytorch_model.bin": "open_clip_model.safetensors",
    }
    return twins.get(filename, filename.removesuffix(".bin") + ".safetensors"), filename
