"""Progress of a long job: locked, resumable, and bound to the work it belongs to.

A progress file carries the hash of the work, so that another configuration never continues it, and
the seconds spent so far, so that costs stay true over a kill and a resume. One process at a time
holds it: a second writer (a scheduler's retry while the first job still runs) is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from certbench.errors import CertbenchError
from certbench.results.atomic import atomic_path


class Progress:
    """Progress file of one job, used as a context manager that holds the lock.

    Args:
        path: The file (``.npz``); a ``.lock`` lies beside it.
        work_hash: Hash of the complete work description.
        every_s: Least seconds between two writes of :meth:`save` (``force`` overrides).
    """

    def __init__(self, path: str | Path, work_hash: str, every_s: float = 5.0):
        self.path = Path(path)
        self.work_hash = work_hash
        self.every_s = every_s
        self._lock: int | None = None
        self._last = 0.0
        self._seconds_before = 0.0
        self._started = time.monotonic()
        self._pending: dict[str, Any] | None = None
        self.resumed = False

    def __enter__(self) -> Progress:
        """Take the lock.

        Raises:
            CertbenchError: Another process is at work on the same job.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise CertbenchError(
                "another process is writing this job's progress",
                where=str(self.path),
                remedy="wait for it, or end it, then run again",
            ) from error
        self._lock = lock
        self._started = time.monotonic()
        return self

    def __exit__(self, *exc: object) -> None:
        """Flush what :meth:`save` held back, release the lock."""
        if exc and exc[0] is not None:
            self.flush()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def seconds(self) -> float:
        """Wall seconds spent on this job so far, over all its attempts."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def due(self) -> bool:
        """Whether enough time has passed that :meth:`save` would write."""
        return time.monotonic() - self._last >= self.every_s

    def load(self) -> dict[str, Any] | None:
        """What was saved by an earlier attempt at the same work, or None."""
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                meta = json.loads(str(archive["__meta__"]))
                if meta.get("work") != self.work_hash:
                    return None
                state: dict[str, Any] = dict(meta["values"])
                state.update({k: archive[k] for k in archive.files if k != "__meta__"})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        if not self.resumed:
            self._seconds_before = float(meta.get("seconds", 0.0))
            self.resumed = True
        return state

    def save(self, state: dict[str, Any], force: bool = False) -> None:
        """Keep ``state`` (arrays and JSON values); written at most every ``every_s`` seconds."""
        self._pending = state
        if force or self.due:
            self.flush()

    def flush(self) -> None:
        """Write the newest state, if any is pending."""
        if self._pending is None:
            return
        state, self._pending = self._pending, None
        arrays = {k: v for k, v in state.items() if isinstance(v, np.ndarray)}
        values = {k: v for k, v in state.items() if k not in arrays}
        meta = json.dumps({"work": self.work_hash, "seconds": self.seconds, "values": values})
        with atomic_path(self.path) as path:
            np.savez(path, __meta__=np.array(meta), **arrays)  # type: ignore[arg-type]
        self._last = time.monotonic()

    def clear(self) -> None:
        """Remove the file and its lock: the result is written."""
        self._pending = None
        self.path.unlink(missing_ok=True)
        self.path.with_suffix(".lock").unlink(missing_ok=True)
