"""Image files in folders: ``<root>/<split>/<class>/...`` or ``<root>/<class>/...``.

Labels follow the sorted names of the class folders of all splits, so that they do not depend on
which splits are prepared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from certbench.datasets import images, sampling
from certbench.datasets.card import Card
from certbench.errors import CertbenchError, did_you_mean
from certbench.params import param

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

version = 1


@dataclass(frozen=True)
class Params:
    """Where the folders are and what is in them."""

    root: str = param(help="folder of the dataset")
    splits: dict[str, str] = param(
        {"train": "train", "val": "val", "test": "test"},
        help="folder of each split below root; '.' where the class folders lie in root itself",
    )
    holdout: dict[str, int] = param(
        {}, help="items of further splits, carved from holdout_from, stratified"
    )
    holdout_from: str = param("train", help="split that the holdouts are carved from")
    classes: tuple[str, ...] | None = param(
        None, help="class folders in label order; null: all that exist, sorted by name"
    )
    num_classes: int | None = param(None, help="number of classes, to be checked", minimum=1)
    on_bad: str = param(
        "refuse", help="what to do with images that cannot be decoded", choices=("refuse", "skip")
    )
    title: str = param("Image folder", help="name of the dataset in the report")
    source: str = param("", help="where the dataset comes from")
    licence: str = param("not stated", help="terms of the images")
    redistributable: bool = param(False, help="whether a report may embed the images")
    synthetic: bool = param(False, help="whether the images are rendered")

    def __post_init__(self) -> None:
        for name, folder in self.splits.items():
            if not isinstance(folder, str):
                raise CertbenchError(
                    f"is {folder!r}", where=f"splits.{name}", remedy="the name of a folder"
                )
        places = {name: os.path.normpath(folder) for name, folder in self.splits.items()}
        for name, place in places.items():
            for other, below in places.items():
                if name < other and os.path.commonpath(["/" + place, "/" + below]) in (
                    os.path.normpath("/" + place),
                    os.path.normpath("/" + below),
                ):
                    raise CertbenchError(
                        f"its folder and that of split '{other}' share files",
                        where=f"splits.{name}",
                        remedy="splits must be disjoint: give each its own folder",
                    )
        sampling.check_holdout(self.holdout, self.holdout_from, self.splits)


def splits(params: Params) -> dict[str, int | None]:
    """The splits; only the files tell their sizes, those of holdouts excepted."""
    return {**dict.fromkeys(params.splits, None), **params.holdout}


def prepare(
    params: Params, splits: Sequence[str], seed: int, tick: Callable[[int, int], None]
) -> tuple[pa.Table, Card]:
    """List the image files of some splits.

    An item's id is its path below root; its index is the place of its file among the sorted files
    of its split's folder.
    """
    import pyarrow as pa

    from certbench.datasets import index

    root = images.existing(params.root, "root")
    classes = _classes(params, root)
    label_of = {name: label for label, name in enumerate(classes)}
    tables = []
    for done, source in enumerate(params.splits, start=1):
        carved = params.holdout if source == params.holdout_from else {}
        if source in splits or any(name in splits for name in carved):
            folder = images.existing(root / params.splits[source], f"splits.{source}")
            below = Path(os.path.relpath(folder, root)).as_posix()
            prefix = "" if below == "." else f"{below}/"
            files = [
                name
                for class_name in _folders(folder)
                for name in _files(folder, class_name, label_of)
            ]
            files.sort()
            labels = [label_of[name.split("/", 1)[0]] for name in files]
            ids = [prefix + name for name in files]
            belongs = sampling.carve(ids, labels, carved, source, seed, "holdout")
            table = index.table(ids, range(len(ids)), belongs, labels, path=ids)
            tables.append(table.filter(pa.array([split in splits for split in belongs])))
        tick(done, len(params.splits))
    card = Card(
        title=params.title,
        source=params.source or str(params.root),
        licence=params.licence,
        redistributable=params.redistributable,
        synthetic=params.synthetic,
        class_names=tuple(classes),
    )
    return pa.concat_tables(tables), card


def read(params: Params, rows: pa.Table) -> list[Image.Image]:
    """Decode the files of index rows, in order, as RGB images."""
    return images.decode_rows(rows, Path(params.root).expanduser())


def _classes(params: Params, root: Path) -> list[str]:
    """Class folders in label order, the same whichever splits are prepared."""
    folders = {name: root / folder for name, folder in params.splits.items()}
    found = {name: _folders(folder) for name, folder in folders.items() if folder.is_dir()}
    if params.classes is not None:
        classes = list(params.classes)
        if len(set(classes)) != len(classes):
            raise CertbenchError("a class is named twice", where="classes")
    else:
        classes = sorted({name for names in found.values() for name in names})
        for split, names in found.items():
            lacking = [name for name in classes if name not in names]
            if names and lacking:
                raise CertbenchError(
                    f"split '{split}' has no folder for {len(lacking)} classes that other splits "
                    f"have: {', '.join(lacking[: images.SHOWN])}",
                    where=f"splits.{split}",
                    remedy="name the classes in label order under classes, if this is meant",
                )
    if not classes and found:
        raise CertbenchError("there are no class folders", where="root")
    if params.num_classes is not None and classes and len(classes) != params.num_classes:
        raise CertbenchError(
            f"there are {len(classes)} classes, not {params.num_classes}: "
            f"{', '.join(classes[: images.SHOWN])}{', ...' if len(classes) > images.SHOWN else ''}",
            where="num_classes",
            remedy="check the class folders",
        )
    return classes


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _files(folder: Path, class_name: str, label_of: dict[str, int]) -> list[str]:
    if class_name not in label_of:
        raise CertbenchError(
            f"folder '{class_name}' is not one of the classes",
            where=str(folder),
            remedy=did_you_mean(class_name, label_of),
        )
    files = images.files_in(folder / class_name)
    if not files:
        raise CertbenchError(
            "has no images",
            where=str(folder / class_name),
            remedy=f"images end in {', '.join(images.EXTENSIONS)}",
        )
    return [f"{class_name}/{name}" for name in files]
