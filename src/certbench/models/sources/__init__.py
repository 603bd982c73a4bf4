"""Where weights come from: plug-ins of kind ``source``, and what they take and return."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from certbench.errors import CertbenchError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class FetchedState:
    """What a source hands over.

    Attributes:
        state: Tensors by key, as in the file; wrappers are taken off later.
        sha256: Of the file fetched.
        origin: Where it came from, for the model's card; no user name, no password.
        size_bytes: Size of the file fetched.
    """

    state: dict[str, torch.Tensor]
    sha256: str
    origin: str
    size_bytes: int


@dataclass
class SourceContext:
    """Services for a source while it fetches.

    Attributes:
        where: Prefix for messages, for example ``model 'resnet50': source``.
        report: Called by :meth:`tick`, or None.
    """

    where: str = "source"
    report: Callable[[int, int | None], None] | None = None

    def tick(self, done: int, total: int | None) -> None:
        """Say that ``done`` bytes of ``total`` (None: unknown) have arrived."""
        if self.report is not None:
            self.report(done, total)


def check_sha256(digest: str | None, where: str) -> None:
    """Refuse what is no complete SHA-256.

    Raises:
        CertbenchError: ``digest`` is neither None nor 64 hexadecimal digits.
    """
    if digest is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise CertbenchError(
            f"'{digest}' is no sha256",
            where=f"{where}.sha256",
            remedy="write its 64 hexadecimal digits, as sha256sum prints them",
        )


def from_file(
    path: str | Path, origin: str, where: str, sha256: str | None = None, key: str | None = None
) -> FetchedState:
    """Read a weights file that lies on disk.

    Args:
        path: The file.
        origin: Where it came from.
        where: Prefix for messages.
        sha256: Digest that it must have, or None.
        key: Entry that holds the tensors, or None for the only one there is.

    Raises:
        CertbenchError: See :func:`certbench.models.checkpoints.read_checkpoint`.
    """
    from certbench.models.checkpoints import read_checkpoint

    read = read_checkpoint(path, sha256, key, where=where)
    return FetchedState(read.state, read.sha256, origin, read.size_bytes)
