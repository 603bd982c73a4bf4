"""Decode images, and say which file is broken and why."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certbench.errors import CertbenchError

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
SHOWN = 20

# Converting these to RGB clips or wraps the values instead of scaling them.
_DEEP = ("I", "I;16", "I;16B", "I;16L", "F")


def decode(source: bytes | Path, name: str) -> Image.Image:
    """Decode an image completely.

    Transparency is dropped and EXIF rotation is not applied, as data loaders of the field do.

    Args:
        source: The bytes of an image file, or its path.
        name: What messages call it.

    Returns:
        An RGB image, with its pixels in memory.

    Raises:
        CertbenchError: The file is missing, truncated, no image, or has more than 8 bits a channel.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        if not data:
            raise CertbenchError("is empty", where=name)
        with Image.open(io.BytesIO(data)) as opened:
            if opened.mode in _DEEP:
                raise CertbenchError(
                    f"has more than 8 bits a channel (mode {opened.mode})",
                    where=name,
                    remedy="convert it to 8 bits a channel",
                )
            return opened.convert("RGB")
    except CertbenchError:
        raise
    except FileNotFoundError as error:
        raise CertbenchError("does not exist", where=name) from error
    except UnidentifiedImageError as error:
        raise CertbenchError("is not an image", where=name) from error
    # Pillow's decoders raise whatever their format's parser raises on damaged bytes.
    except Exception as error:
        raise CertbenchError(f"cannot be decoded ({error})", where=name) from error


def decode_rows(rows: pa.Table, root: Path | None = None) -> list[Image.Image]:
    """Decode the images of index rows, embedded or in files.

    Args:
        rows: Index rows with ``item_id`` and either ``image`` or ``path``.
        root: Folder that ``path`` is relative to.

    Raises:
        CertbenchError: As :func:`decode`.
    """
    ids = rows.column("item_id").to_pylist()
    nothing: list[Any] = [None] * len(ids)
    columns = rows.column_names
    embedded = rows.column("image").to_pylist() if "image" in columns else nothing
    paths = rows.column("path").to_pylist() if "path" in columns else nothing
    images = []
    for item_id, image, path in zip(ids, embedded, paths, strict=True):
        if image is not None and image["bytes"] is not None:
            images.append(decode(image["bytes"], item_id))
        elif path is not None and root is not None:
            images.append(decode(root / path, str(root / path)))
        else:
            raise CertbenchError("has neither embedded bytes nor a file", where=item_id)
    return images


def existing(folder: str | Path, key: str) -> Path:
    """A folder that the configuration names.

    Args:
        folder: The folder; a leading ``~`` is the home folder.
        key: The key that names it, for messages.

    Raises:
        CertbenchError: There is no such folder.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise CertbenchError(
            f"there is no folder {place}",
            where=key,
            remedy="give the folder's path, absolute or relative to the working folder",
        )
    return place


def files_in(folder: Path) -> list[str]:
    """Image files below a folder, links followed, hidden files left out.

    Args:
        folder: An existing folder.

    Returns:
        Paths relative to ``folder`` with forward slashes, sorted by code point.

    Raises:
        CertbenchError: A name is not valid UTF-8, or a link leads back to a folder above it.
    """
    found: list[str] = []

    def walk(place: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> None:
        status = place.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise CertbenchError("is a link to a folder that it is in", where=str(place))
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    walk(Path(entry.path), f"{prefix}{entry.name}/", (*above, here))
                elif entry.name.lower().endswith(EXTENSIONS):
                    found.append(prefix + entry.name)

    walk(folder, "", ())
    for name in found:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            shown = name.encode(errors="surrogateescape").decode(errors="replace")
            raise CertbenchError(
                f"the file name {shown} is not UTF-8", where=str(folder), remedy="rename it"
            ) from error
    return sorted(found)


def broken(
    read: Callable[[Any, pa.Table], Sequence[Image.Image]],
    params: Any,
    rows: pa.Table,
    tick: Callable[[int, int], None],
    chunk: int = 64,
    threads: int = 1,
) -> dict[str, str]:
    """Items whose images cannot be read, each with the reason.

    Args:
        read: The ``read`` of a dataset plug-in.
        params: Its parameters.
        rows: Index rows to try.
        tick: Called with (images tried, images in all).
        chunk: Images read at a time.
        threads: Number of threads that decode.
    """
    from concurrent.futures import ThreadPoolExecutor

    def attempt(start: int) -> tuple[int, dict[str, str]]:
        part = rows.slice(start, chunk)
        try:
            read(params, part)
            return len(part), {}
        except CertbenchError:
            pass
        found = {}
        for i in range(len(part)):
            one = part.slice(i, 1)
            try:
                read(params, one)
            except CertbenchError as error:
                found[one.column("item_id")[0].as_py()] = f"{error.where}: {error.problem}"
        return len(part), found

    starts = range(0, len(rows), chunk)
    reasons: dict[str, str] = {}
    done = 0
    pool = ThreadPoolExecutor(max(1, threads))
    try:
        for tried, found in pool.map(attempt, starts):
            done += tried
            reasons.update(found)
            tick(done, len(rows))
    finally:
        # When the job is told to end, what has not begun must not hold it up.
        pool.shutdown(cancel_futures=True)
    return reasons
