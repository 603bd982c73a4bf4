"""Weights from a repository of the Hugging Face Hub, kept in its own cache.

``HF_ENDPOINT`` (another server), ``HF_HOME`` (the cache), ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` mean
what they mean to the ``huggingface_hub`` package.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certbench.errors import CertbenchError
from certbench.models.sources import FetchedState, SourceContext, check_sha256, from_file
from certbench.params import param

version = 1


@dataclass(frozen=True)
class Params:
    """Which file of which repository."""

    repo: str = param(help="repository, as in owner/name")
    filename: str = param("model.safetensors", help="weights file in the repository")
    revision: str = param("main", help="branch, tag or commit; only a commit never changes")
    sha256: str | None = param(None, help="SHA-256 that the file must have")
    key: str | None = param(None, help="entry that holds the tensors, where there are several")

    def __post_init__(self):
        check_sha256(self.sha256, "source huggingface")


def fetch(params: Params, folder: Path, context: SourceContext) -> FetchedState:
    """Take the file from the Hub's cache, or fetch it there, and read it.

    Args:
        params: Parameters.
        folder: Not used: the Hub's cache is shared with other programs.
        context: Names the model in messages and shows progress.

    Raises:
        CertbenchError: The repository, revision or file does not exist, its terms are not accepted,
            there is no network and no cached copy, or the file is no weights file.
    """
    path = hub_file(params.repo, params.filename, params.revision, context)
    # The cache lays files out as snapshots/<commit>/<filename>.
    parts = path.parts
    at = max((i for i, part in enumerate(parts) if part == "snapshots"), default=None)
    commit = parts[at + 1] if at is not None else params.revision
    origin = f"hf://{params.repo}@{commit}/{params.filename}"
    return from_file(path, origin, context.where, params.sha256, params.key)


def hub_file(repo: str, filename: str, revision: str | None, context: SourceContext) -> Path:
    """A file of the Hub in its cache, downloaded if need be.

    Raises:
        NoSuchFile: The repository has no such file.
        CertbenchError: See :func:`fetch`.
    """
    from huggingface_hub import constants, errors, hf_hub_download

    spot = f"{repo}@{revision or 'main'}"
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    options: dict[str, Any] = {}
    if "tqdm_class" in inspect.signature(hf_hub_download).parameters:
        options["tqdm_class"] = _bar_class(context.tick)
    offline = (
        f"run this step where there is a network (and HF_HUB_OFFLINE is not set); the file stays "
        f"in {constants.HF_HUB_CACHE} (HF_HOME chooses the place), and later runs need none"
    )

    def refused(problem: str, remedy: str) -> CertbenchError:
        return CertbenchError(problem, where=context.where, remedy=remedy)

    try:
        path = hf_hub_download(repo, filename, revision=revision, endpoint=endpoint, **options)
    except errors.GatedRepoError as error:
        raise refused(
            f"{repo} asks for consent to its terms",
            f"accept them at {endpoint}/{repo}, then set HF_TOKEN or run: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise refused(
            f"no repository {repo} at {endpoint}",
            "check its name; a private one needs HF_TOKEN",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise refused(f"{repo} has no revision '{revision}'", "name a branch, tag or commit") from (
            error
        )
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise refused(
            f"cannot reach {endpoint}, and {filename} of {spot} is not in the cache", offline
        ) from error
    except errors.EntryNotFoundError as error:
        raise NoSuchFile(
            f"{spot} has no file '{filename}'",
            where=context.where,
            remedy=f"look at its files: {endpoint}/{repo}/tree/{revision or 'main'}",
        ) from error
    except errors.HFValidationError as error:
        raise refused(f"'{repo}' is no repository name", "write owner/name") from error
    except Exception as error:  # the HTTP package below, and so its errors, changes with releases
        first = (str(error).strip().splitlines() or [""])[0]
        raise refused(
            f"fetching {filename} of {spot} failed ({type(error).__name__}: {first})", offline
        ) from error
    return Path(path)


class NoSuchFile(CertbenchError):
    """The repository exists, the file in it does not."""


def _bar_class(tick: Callable[[int, int | None], None]) -> type:
    """A progress bar for the Hub's downloader that reports to ``tick`` and draws nothing."""
    from tqdm import tqdm

    class Reporting(tqdm):
        def __init__(self, *args: Any, **kwargs: Any):
            self.arrived = int(kwargs.get("initial") or 0)
            self.expected = kwargs.get("total")
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.arrived += int(n or 0)
            tick(self.arrived, int(self.expected) if self.expected else None)
            return None

    return Reporting
