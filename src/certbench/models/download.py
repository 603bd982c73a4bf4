"""Download one file over HTTP so that a broken line costs little and a wrong file never passes.

The body goes to ``<target>.part`` and continues there (``Range`` with ``If-Range``) after a lost
connection, a kill or a time limit. Only a complete file with the wanted sha256 takes the target's
name. A lock beside the target lets one process download while the others wait for its file.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import fcntl
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import certbench
from certbench.errors import CertbenchError
from certbench.results.atomic import write_text

Tick = Callable[[int, int | None], None]

TIMEOUT_S = 30.0
ATTEMPTS = 6
BACKOFF_S = 1.0

_CHUNK = 1 << 20
_LONGEST_PAUSE_S = 60.0
_TICK_S = 0.2
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_NAMED_BY_HASH = re.compile(r"-([0-9a-f]{8,64})\.(?:pth|pt|bin|safetensors)$")
_OFFLINE_REMEDY = (
    "run this step where there is a network (on many clusters only the login nodes have one); its "
    "result stays. Or fetch the file by hand and name it with source: file"
)

logger = logging.getLogger("certbench")


class _Transient(Exception):
    """A failure that another attempt may mend."""

    def __init__(self, reason: str, pause_s: float | None = None):
        super().__init__(reason)
        self.pause_s = pause_s


@dataclass(frozen=True)
class _Validator:
    """What a later attempt must find unchanged to continue a partial file."""

    url: str
    etag: str | None = None
    modified: str | None = None
    total: int | None = None

    @property
    def if_range(self) -> str | None:
        """Value of the ``If-Range`` header: a strong entity tag or a date (RFC 9110, 13.1.5)."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.modified


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def public_url(url: str) -> str:
    """The URL without user name and password, for messages and cards."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def download(
    url: str,
    target: str | Path,
    *,
    sha256: str | None = None,
    tick: Tick | None = None,
    where: str = "download",
    timeout_s: float | None = None,
    attempts: int | None = None,
    backoff_s: float | None = None,
) -> Path:
    """Fetch ``url`` into ``target``, or leave the target as it is if it holds that file already.

    Args:
        url: An ``http`` or ``https`` address.
        target: The file to write.
        sha256: Hexadecimal digest that the file must have, or its first digits (at least 8). With
            None a complete file of any content passes, weights or not.
        tick: Called with the bytes so far and the total (None where the server does not say).
        where: Prefix for messages, for example ``models.resnet50: source``.
        timeout_s: Longest silence of the server, in seconds (:data:`TIMEOUT_S`).
        attempts: Failures in a row that end it (:data:`ATTEMPTS`); a megabyte of progress between
            two failures starts the count anew.
        backoff_s: Pause after the first failure, doubled after each (:data:`BACKOFF_S`).

    Returns:
        ``target``.

    Raises:
        CertbenchError: The file does not exist there, is not allowed, has another sha256, is a web
            page; the server cannot be reached; the disk is full.
    """
    target = Path(target)
    timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
    attempts = ATTEMPTS if attempts is None else attempts
    backoff_s = BACKOFF_S if backoff_s is None else backoff_s
    sha256 = sha256.lower() if sha256 else None
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise CertbenchError(
            f"'{public_url(url)}' is no http or https address",
            where=where,
            remedy="write https://..., or use source: file for a file on disk",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(target):
        if target.is_file():
            if sha256 is None or sha256_file(target).startswith(sha256):
                return target
            logger.info("%s has another sha256 than wanted: downloading it again", target)
        part = target.with_name(target.name + ".part")
        transfer = _Transfer(url, part, sha256 is not None, tick, where, timeout_s)
        _persist(transfer, attempts, backoff_s)
        if sha256 is not None and not sha256_file(part).startswith(sha256):
            # Bytes of two attempts may be bytes of two files: one whole new copy tells.
            if transfer.continued:
                transfer.discard()
                _persist(transfer, attempts, backoff_s)
            found = sha256_file(part)
            if not found.startswith(sha256):
                transfer.discard()
                raise CertbenchError(
                    f"{public_url(url)} has sha256 {found}, expected {sha256}",
                    where=where,
                    remedy="check the address; if the publisher changed the file and you trust the "
                    "new one, set its sha256",
                )
        _put(part, target)
        transfer.notes.unlink(missing_ok=True)
    return target


def torch_cache(url: str, *, tick: Tick | None = None, where: str = "download") -> Path:
    """The file of ``url`` in PyTorch's own cache, downloaded there if it is absent.

    torchvision and timm keep published weights as ``<TORCH_HOME>/hub/checkpoints/<name>``, most
    with the first digits of the sha256 in the name; those digits are checked, for files that lie
    there already too.

    Raises:
        CertbenchError: As :func:`download`, or the cached file is not what its name says.
    """
    import torch

    name = os.path.basename(urlsplit(url).path)
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    match = _NAMED_BY_HASH.search(name)
    # Eight plain digits may as well be a date.
    digest = match.group(1) if match and not match.group(1).isdecimal() else None
    if target.is_file() and digest and not sha256_file(target).startswith(digest):
        raise CertbenchError(
            f"cached file {target} does not have the sha256 that its name states",
            where=where,
            remedy="delete it and run again",
        )
    if target.is_file():
        return target
    try:
        return download(url, target, sha256=digest, tick=tick, where=where)
    except CertbenchError as error:
        raise CertbenchError(
            error.problem,
            where=where,
            remedy=f"{error.remedy or ''}; the library reads it from {target}".lstrip("; "),
        ) from error


class _Transfer:
    """Bytes of one URL flowing into one partial file, over any number of attempts."""

    def __init__(
        self, url: str, part: Path, verified: bool, tick: Tick | None, where: str, timeout_s: float
    ):
        self.url, self.part, self.verified = url, part, verified
        self.tick, self.where, self.timeout_s = tick, where, timeout_s
        self.notes = part.with_name(part.name + ".json")
        self.continued = False

    def size(self) -> int:
        """Bytes that the partial file holds."""
        return self.part.stat().st_size if self.part.exists() else 0

    def discard(self) -> None:
        """Forget what came so far."""
        self.part.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)
        self.continued = False

    def attempt(self) -> None:
        """One request; returns when the partial file is complete.

        Raises:
            _Transient: Another attempt may get further.
            CertbenchError: None will.
        """
        known = self._known()
        start = self.size() if known else 0
        headers = {
            "User-Agent": f"certbench/{certbench.__version__}",
            "Accept-Encoding": "identity",  # a compressed body cannot be continued or counted
        }
        if known and start:
            headers["Range"] = f"bytes={start}-"
            if known.if_range:
                headers["If-Range"] = known.if_range
        try:
            request = urllib.request.Request(self.url, headers=headers)
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                self._receive(response, start, known)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error, start)
        except urllib.error.URLError as error:
            self._unreachable(error.reason)
        except (http.client.InvalidURL, UnicodeError) as error:
            raise CertbenchError(
                f"'{public_url(self.url)}' is no address ({error})", where=self.where
            ) from error
        except (http.client.HTTPException, OSError) as error:  # of the network: see _disk_errors
            raise _Transient(f"{type(error).__name__}: {error}".rstrip(": ")) from error

    def _known(self) -> _Validator | None:
        """Notes on the partial file, if it may be continued."""
        try:
            known = _Validator(**json.loads(self.notes.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        if known.url != self.url or not self.size():
            return None
        # Without a digest only the server can vouch that both halves are of one file.
        return known if self.verified or known.if_range else None

    def _receive(self, response: Any, start: int, known: _Validator | None) -> None:
        total = _length(response, start)
        seen = _Validator(
            self.url, response.headers.get("ETag"), response.headers.get("Last-Modified"), total
        )
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise CertbenchError(
                f"the server sends {public_url(self.url)} compressed "
                f"({response.headers['Content-Encoding']}), which was not asked for",
                where=self.where,
                remedy="fetch the file by hand and use source: file",
            )
        if total is None and not self.verified and not response.chunked:
            raise CertbenchError(
                f"the server does not tell the length of {public_url(self.url)}: a broken download "
                "would look like a complete one",
                where=self.where,
                remedy="give the sha256 of the file",
            )
        if response.status == 206:
            same = known is not None and (
                seen.etag == known.etag and (total is None or known.total in (None, total))
            )
            if not same or _range_start(response) != start:
                self.discard()
                raise _Transient("the file changed on the server between two attempts", 0.0)
            self.continued = True
        else:
            self.discard()
            start = 0
        self._check_room(total, start)
        write_text(self.notes, json.dumps(seen.__dict__))
        done = self._copy(response, start, total)
        if total is not None and done > total:
            self.discard()
            raise _Transient(f"more than the {total} bytes that the server announced", 0.0)
        if total is not None and done < total:
            raise _Transient(f"the connection closed after {done} of {total} bytes")

    def _copy(self, response: Any, start: int, total: int | None) -> int:
        done, told = start, 0.0
        with _disk_errors(self.part, self.where):
            file = open(self.part, "ab")  # noqa: SIM115 - closed below, errors told apart
        try:
            while True:
                # read1 hands over what has arrived, so that a broken line loses nothing of it.
                chunk = response.read1(_CHUNK)
                if not chunk:
                    break
                if done == 0 and _is_web_page(chunk):
                    self.discard()
                    raise CertbenchError(
                        f"{public_url(self.url)} answers with an HTML page instead of the file",
                        where=self.where,
                        remedy="use the direct address of the file; a page that asks for a login "
                        "or a confirmation must be passed by hand (then source: file)",
                    )
                with _disk_errors(self.part, self.where):
                    file.write(chunk)
                done += len(chunk)
                now = time.monotonic()
                if self.tick is not None and now - told >= _TICK_S:
                    told = now
                    self.tick(done, total)
        finally:
            with _disk_errors(self.part, self.where):
                file.close()
        if self.tick is not None:
            self.tick(done, total)
        return done

    def _check_room(self, total: int | None, start: int) -> None:
        if total is None:
            return
        free = shutil.disk_usage(self.part.parent).free
        if free < total - start:
            raise CertbenchError(
                f"needs {(total - start) / 1e6:.0f} MB, {free / 1e6:.0f} MB are free",
                where=str(self.part.parent),
                remedy="free space, then run again: what has arrived is kept",
            )

    def _refused(self, error: urllib.error.HTTPError, start: int) -> None:
        address = public_url(self.url)
        if error.code == 416 and start:
            total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if total and int(total.group(1)) == start:
                return  # everything had arrived already
            self.discard()
            raise _Transient("the partial file is longer than the file on the server", 0.0)
        if error.code in _RETRIED:
            raise _Transient(f"HTTP {error.code} {error.reason}", _retry_after(error))
        remedies = {
            401: "it needs a login: fetch it by hand and use source: file",
            403: "it is not public, or its terms must be accepted first: fetch it by hand and use "
            "source: file",
            404: "check the address for a typing error or a moved file",
            410: "it was removed there; look for another copy with the same sha256",
        }
        raise CertbenchError(
            f"{address} answers HTTP {error.code} {error.reason}",
            where=self.where,
            remedy=remedies.get(error.code, "check the address"),
        )

    def _unreachable(self, reason: object) -> None:
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise CertbenchError(
                f"{public_url(self.url)}: the certificate of the server does not verify ({reason})",
                where=self.where,
                remedy="set SSL_CERT_FILE to the certificates of your site, if it has its own",
            )
        if isinstance(reason, socket.gaierror):
            raise _Transient(f"the name {urlsplit(self.url).hostname} cannot be resolved")
        raise _Transient(str(reason))


def _persist(transfer: _Transfer, attempts: int, backoff_s: float) -> None:
    """Attempt after attempt, with growing pauses, until complete or hopeless."""
    failures = 0
    while True:
        before = transfer.size()
        try:
            return transfer.attempt()
        except _Transient as error:
            failures = 1 if transfer.size() - before >= _CHUNK else failures + 1
            if failures >= attempts:
                kept = transfer.size()
                raise CertbenchError(
                    f"cannot fetch {public_url(transfer.url)}: {error} "
                    f"({failures} attempts{f', {kept} bytes are kept' if kept else ''})",
                    where=transfer.where,
                    remedy=_OFFLINE_REMEDY,
                ) from error
            pause = backoff_s * 2 ** (failures - 1) if error.pause_s is None else error.pause_s
            pause = min(pause, _LONGEST_PAUSE_S)
            logger.info("%s: %s; again in %.1f s", public_url(transfer.url), error, pause)
            time.sleep(pause)


@contextlib.contextmanager
def _only_one(target: Path) -> Iterator[None]:
    """Hold the target's lock; wait while another process downloads the same file."""
    lock = os.open(target.with_name(f".{target.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    told = False
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    logger.info("%s: no locks on this file system (%s)", target.parent, error)
                    break
                if not told:
                    logger.info("waiting: another process is downloading %s", target)
                    told = True
                time.sleep(0.2)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def _disk_errors(path: Path, where: str) -> Iterator[None]:
    """Tell errors of the disk from those of the network: these no second attempt mends."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CertbenchError(
                f"no space left for {path}, or quota exceeded",
                where=where,
                remedy="free space, then run again: what has arrived is kept",
            ) from error
        raise CertbenchError(f"cannot write {path}: {error.strerror}", where=where) from error


def _put(part: Path, target: Path) -> None:
    """Give a complete file its name, on the disk and not only in the page cache."""
    with open(part, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(part, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _length(response: Any, start: int) -> int | None:
    """Total bytes of the file, from the headers of a whole or partial answer."""
    if response.status == 206:
        match = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
        return int(match.group(1)) if match else None
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _range_start(response: Any) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match.group(1)) if match else None


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    """Pause that the server asks for, in seconds."""
    text = error.headers.get("Retry-After")
    if not text:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _is_web_page(head: bytes) -> bool:
    start = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head"))
