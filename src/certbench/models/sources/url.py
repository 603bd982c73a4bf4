"""Weights from a web address, kept under the download folder."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from certbench.errors import CertbenchError
from certbench.models.download import download, public_url
from certbench.models.sources import FetchedState, SourceContext, check_sha256, from_file
from certbench.params import param

version = 1


@dataclass(frozen=True)
class Params:
    """Which address, and what must come from it."""

    url: str = param(help="http or https address of the weights file itself")
    sha256: str | None = param(None, help="SHA-256 that the file must have")
    allow_unverified: bool = param(False, help="accept any content where sha256 is not given")
    key: str | None = param(None, help="entry that holds the tensors, where there are several")

    def __post_init__(self):
        check_sha256(self.sha256, "source url")
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise CertbenchError(
                f"'{public_url(self.url)}' is no http or https address",
                where="source url.url",
                remedy="write https://..., or use source: file for a file on disk",
            )
        if self.sha256 is None and not self.allow_unverified:
            raise CertbenchError(
                "has no sha256: a file changed on the server would go unnoticed",
                where="source url",
                remedy="set sha256 (sha256sum prints it), or allow_unverified: true",
            )


def fetch(params: Params, folder: Path, context: SourceContext) -> FetchedState:
    """Download the file once, verify it, read it.

    Args:
        params: Parameters.
        folder: Where downloads are kept; a broken one continues there.
        context: Names the model in messages and shows progress.

    Raises:
        CertbenchError: See :func:`certbench.models.download.download` and
            :func:`certbench.models.checkpoints.read_checkpoint`.
    """
    path = download(
        params.url,
        cached_path(params.url, folder),
        sha256=params.sha256,
        tick=context.tick,
        where=context.where,
    )
    origin = public_url(params.url)
    return from_file(path, origin, context.where, params.sha256, params.key)


def cached_path(url: str, folder: Path) -> Path:
    """Where the file of ``url`` is kept: its own name behind a hash of the address."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(urlsplit(url).path).name)[-100:] or "weights"
    return folder / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
