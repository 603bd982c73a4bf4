"""Files that are either whole or absent.

Everything the workflow writes goes through :func:`atomic_path`: write beside the target, flush to
the disk, rename. A kill, a full disk or an exception in between leaves the old file, or none.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from certbench.errors import CertbenchError

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """A temporary path beside ``target`` that becomes ``target`` when the block ends well.

    Args:
        target: The file to write; its folder is made if need be.

    Raises:
        CertbenchError: The disk or the quota is full (the target is left as it was).
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: writers such as matplotlib choose the format by it.
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno in _FULL or "No space left" in str(error):
            raise CertbenchError(
                "no space left on the device, or quota exceeded; nothing was written",
                where=str(target),
                remedy="free space, then run again: finished work is kept",
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(target: str | Path, text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    with atomic_path(target) as path:
        path.write_text(text, encoding="utf-8")
