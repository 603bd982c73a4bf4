"""Weights from a file on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from certbench.models.sources import FetchedState, SourceContext, check_sha256
from certbench.params import param

version = 1


@dataclass(frozen=True)
class Params:
    """Which file, and what in it."""

    path: str = param(help="weights file, relative to the working folder")
    sha256: str | None = param(None, help="SHA-256 that the file must have")
    format: str = param(
        "auto", help="auto goes by the content", choices=("auto", "safetensors", "torch")
    )
    key: str | None = param(None, help="entry that holds the tensors, where there are several")

    def __post_init__(self):
        check_sha256(self.sha256, "source file")


def fetch(params: Params, folder: Path, context: SourceContext) -> FetchedState:
    """Read the file where it lies.

    Args:
        params: Parameters.
        folder: Not used: nothing is copied.
        context: Names the model in messages.

    Raises:
        CertbenchError: See :func:`certbench.models.checkpoints.read_checkpoint`.
    """
    from certbench.models.checkpoints import read_checkpoint

    path = Path(params.path).expanduser()
    read = read_checkpoint(path, params.sha256, params.key, params.format, context.where)
    context.tick(read.size_bytes, read.size_bytes)
    return FetchedState(read.state, read.sha256, f"file {params.path}", read.size_bytes)
