"""Published corrupted copies of ImageNet as folders: ``<type>/<severity>/<WordNet id>/<file>``.

Items are matched by what ImageNet calls them, the WordNet id and the file's name without suffix, so
that the layout of the clean images does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from certbench.errors import CertbenchError

if TYPE_CHECKING:
    import numpy as np

    from certbench.variants.protocol import Source

_WNID = re.compile(r"n\d{8}")
_SUFFIXES = (".JPEG", ".jpeg", ".jpg", ".png")
_SHOWN = 5


def folder(root: str, corruption: str, severity: int, groups: Sequence[str] = ()) -> Path:
    """The folder of one type and severity.

    Args:
        root: Folder of the published set.
        corruption: Type.
        severity: 1 to 5.
        groups: Folders that the published archives may have been unpacked into.

    Raises:
        CertbenchError: It is not there; names what is.
    """
    place = Path(root).expanduser()
    if not place.is_dir():
        raise CertbenchError(
            f"there is no folder {root}",
            where="root",
            remedy="give the folder that holds one folder for each type of corruption",
        )
    tried = [place / group / corruption / str(severity) for group in ("", *groups)]
    found = [one for one in tried if one.is_dir()]
    if not found:
        there = sorted(one.name for one in place.iterdir() if one.is_dir())
        raise CertbenchError(
            f"there is no folder {tried[0]}",
            where="root",
            remedy=f"unpack '{corruption}' there, or leave it out; {root} has "
            f"{', '.join(there[:20]) or 'no folders'}",
        )
    return found[0]


def files(place: Path, source: Source) -> list[Path]:
    """The published file of every item.

    Args:
        place: From :func:`folder`.
        source: The items.

    Raises:
        CertbenchError: An item is not named as in ImageNet, a file is missing, or a file's class
            contradicts the labels.
    """
    names = _names(source)
    if any(wnid is None for wnid, _ in names):
        listed = _listing(place, place.stat().st_mtime_ns)
        names = [(wnid or listed.get(stem), stem) for wnid, stem in names]
    found, missing = [], []
    for wnid, stem in names:
        path = None if wnid is None else _existing(place / wnid, stem)
        if path is None:
            missing.append(f"{wnid or '<WordNet id>'}/{stem}{_SUFFIXES[0]}")
        else:
            found.append(path)
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise CertbenchError(
            f"{len(missing)} of {len(names)} items have no file in {place}: {shown}",
            where="root",
            remedy="complete the published files, or lower the limit to what they cover; items "
            "must be named as in ImageNet (<WordNet id>/<file>, or ILSVRC2012_val_<number>)",
        )
    _check_classes([path.parent.name for path in found], source)
    return found


def images(paths: Sequence[Path], shape: tuple[int, ...]) -> np.ndarray:
    """Decode published files.

    Args:
        paths: The files.
        shape: Height, width and channels that the view gives.

    Returns:
        uint8 [N, H, W, 3].

    Raises:
        CertbenchError: A file is broken, or of another size than the view's images.
    """
    import numpy as np

    from certbench.datasets import images as image_files

    made = np.empty((len(paths), *shape), np.uint8)
    for i, path in enumerate(paths):
        pixels = np.asarray(image_files.decode(path, str(path)))
        if pixels.shape != tuple(shape):
            raise CertbenchError(
                f"is {pixels.shape[0]}x{pixels.shape[1]}, and the view gives {shape[0]}x{shape[1]} "
                "(height x width)",
                where=str(path),
                remedy="use the view that the published files were made with "
                "(ImageNet-C: resize256_crop224)",
            )
        made[i] = pixels
    return made


def check(place: Path, source: Source) -> None:
    """Refuse missing files, and files of another size than the view's.

    Args:
        place: From :func:`folder`.
        source: The items.

    Raises:
        CertbenchError: As :func:`files` and :func:`images`; the first file stands for the sizes.
    """
    found = files(place, source)
    if found and source.view.size:
        images(found[:1], (*source.view.size, 3))


def _names(source: Source) -> list[tuple[str | None, str]]:
    """WordNet id (None where a flat folder does not tell) and stem of every item."""
    ids = source.rows.column("item_id").to_pylist()
    columns = source.rows.column_names
    paths = source.rows.column("path").to_pylist() if "path" in columns else [None] * len(ids)
    names: list[tuple[str | None, str]] = []
    for item_id, path in zip(ids, paths, strict=True):
        for text in (path, item_id):
            parts = Path(text).parts if text else ()
            if len(parts) > 1 and _WNID.fullmatch(parts[-2]):
                names.append((parts[-2], Path(parts[-1]).stem))
                break
        else:
            names.append((None, Path(item_id).stem))
    return names


def _existing(place: Path, stem: str) -> Path | None:
    for suffix in _SUFFIXES:
        path = place / f"{stem}{suffix}"
        if path.is_file():
            return path
    return None


@lru_cache(maxsize=4)
def _listing(place: Path, changed: int) -> dict[str, str]:
    """WordNet id of every stem in a folder; the stamp tells a changed one."""
    return {
        path.stem: inner.name
        for inner in sorted(place.iterdir())
        if inner.is_dir() and _WNID.fullmatch(inner.name)
        for path in inner.iterdir()
    }


def _check_classes(wnids: list[str], source: Source) -> None:
    """Refuse files whose classes are not one to one with the labels."""
    label_of: dict[str, int] = {}
    wnid_of: dict[int, str] = {}
    labels = source.rows.column("label").to_pylist()
    ids = source.rows.column("item_id").to_pylist()
    for item_id, wnid, label in zip(ids, wnids, labels, strict=True):
        if label is None:
            continue
        if label_of.setdefault(wnid, label) != label or wnid_of.setdefault(label, wnid) != wnid:
            raise CertbenchError(
                f"item '{item_id}' has label {label}, but its file is in {wnid}, which goes with "
                f"label {label_of[wnid]} (and label {label} with {wnid_of[label]})",
                where="root",
                remedy="the labels of the dataset are not those of the published files: check the "
                "dataset's labels and class order",
            )
