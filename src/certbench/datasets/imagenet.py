"""ImageNet (ILSVRC 2012): the validation images, and the training images where one has them.

Validation images lie in one flat folder, with a file that gives their classes, or in one folder for
each WordNet id. Either way the label is the place of the WordNet id in sorted order, as pretrained
models have it, and item ids and indices are the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from certbench.datasets import images, sampling
from certbench.datasets.card import Card
from certbench.errors import CertbenchError
from certbench.params import param

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

version = 1

_WNID = re.compile(r"n\d{8}")
_VAL = re.compile(r"ILSVRC2012_val_(\d{8})", re.IGNORECASE)


@dataclass(frozen=True)
class Params:
    """Where the images and the files beside them are."""

    root: str = param(help="folder of the validation images, flat or with one folder per class")
    labels: str | None = param(
        None,
        help="file with the class of each validation image, for a flat folder: lines of a WordNet "
        "id, of file name and WordNet id or label, LOC_val_solution.csv, or the development kit's "
        "ILSVRC2012_validation_ground_truth.txt (with synsets)",
    )
    synsets: str | None = param(
        None,
        help="file that orders the classes for numbers in labels: the development kit's meta.mat, "
        "or lines that begin with a WordNet id",
    )
    class_names: str | None = param(
        None,
        help="file with class names: lines of WordNet id and name, lines of names in label order, "
        "or imagenet_class_index.json; null: the WordNet ids",
    )
    train_root: str | None = param(
        None, help="folder of the training images, one folder per class, for split train"
    )
    holdout: dict[str, int] = param({}, help="items of further splits, carved from val, stratified")
    num_classes: int = param(1000, help="number of classes, to be checked", minimum=1)
    on_bad: str = param(
        "refuse", help="what to do with images that cannot be decoded", choices=("refuse", "skip")
    )

    def __post_init__(self) -> None:
        taken = ["val"] if self.train_root is None else ["val", "train"]
        sampling.check_holdout(self.holdout, "val", taken)


def splits(params: Params) -> dict[str, int | None]:
    """The splits; only the folders tell their sizes, those of holdouts excepted."""
    train: dict[str, int | None] = {} if params.train_root is None else {"train": None}
    return {**train, "val": None, **params.holdout}


def prepare(
    params: Params, splits: Sequence[str], seed: int, tick: Callable[[int, int], None]
) -> tuple[pa.Table, Card]:
    """List the images of some splits with their labels.

    The id of a validation image is ``val/ILSVRC2012_val_<number>`` and its index the number less
    one, in either layout. Images of other names, and training images, are known by their paths.
    """
    import pyarrow as pa

    from certbench.datasets import index

    wnids: list[str] | None = None
    tables = []
    if params.train_root is not None and "train" in splits:
        root = images.existing(params.train_root, "train_root")
        files, wnid_of = _by_folder(root, "train_root")
        wnids = _known(set(wnid_of), params, "train_root")
        place = {wnid: label for label, wnid in enumerate(wnids)}
        ids = [f"train/{name}" for name in files]
        labels = [place[wnid] for wnid in wnid_of]
        tables.append(index.table(ids, range(len(ids)), "train", labels, path=files))
    if set(splits) - ({"train"} if params.train_root is not None else set()):
        root = images.existing(params.root, "root")
        files, wnid_of, known = _validation(params, root)
        trained = wnids
        wnids = _known(known, params, "labels" if params.labels else "root")
        if trained is not None and trained != wnids:
            raise CertbenchError("its classes are not those of root", where="train_root")
        place = {wnid: label for label, wnid in enumerate(wnids)}
        labels = [place[wnid] for wnid in wnid_of]
        ids, places = _identify(files)
        belongs = sampling.carve(ids, labels, params.holdout, "val", seed, "holdout")
        table = index.table(ids, places, belongs, labels, path=files)
        tables.append(table.filter(pa.array([split in splits for split in belongs], pa.bool_())))
    assert wnids is not None
    tick(1, 1)
    return pa.concat_tables(tables), _card(_class_names(params, wnids))


def read(params: Params, rows: pa.Table) -> list[Image.Image]:
    """Decode the files of index rows, in order, as RGB images."""
    root = Path(params.root).expanduser()
    train = root if params.train_root is None else Path(params.train_root).expanduser()
    places = [
        (train if item_id.startswith("train/") else root) / path
        for item_id, path in zip(
            rows.column("item_id").to_pylist(), rows.column("path").to_pylist(), strict=True
        )
    ]
    return [images.decode(place, str(place)) for place in places]


def _known(wnids: set[str], params: Params, key: str) -> list[str]:
    if len(wnids) != params.num_classes:
        raise CertbenchError(
            f"there are {len(wnids)} classes, not {params.num_classes}",
            where=key,
            remedy="complete the data, or set num_classes for a subset (labels then count its "
            "classes only)",
        )
    return sorted(wnids)


def _by_folder(root: Path, key: str) -> tuple[list[str], list[str]]:
    """Files in folders named by WordNet ids, sorted, and the WordNet id of each."""
    folders = sorted(place.name for place in root.iterdir() if place.is_dir())
    folders = [name for name in folders if not name.startswith(".")]
    strange = [name for name in folders if not _WNID.fullmatch(name)]
    if strange or not folders:
        shown = ", ".join(strange[: images.SHOWN]) or "none at all"
        raise CertbenchError(
            f"{root} needs folders named by WordNet ids such as n01440764, and has {shown}",
            where=key,
        )
    files, wnids = [], []
    for wnid in folders:
        found = images.files_in(root / wnid)
        if not found:
            raise CertbenchError(f"the folder {root / wnid} has no images", where=key)
        files += [f"{wnid}/{name}" for name in found]
        wnids += [wnid] * len(found)
    return files, wnids


def _validation(params: Params, root: Path) -> tuple[list[str], list[str], set[str]]:
    """Files of the validation folder, the WordNet id of each, and all WordNet ids there are."""
    flat = sorted(
        place.name
        for place in root.iterdir()
        if place.name.lower().endswith(images.EXTENSIONS) and not place.name.startswith(".")
    )
    if not flat:
        files, wnids = _by_folder(root, "root")
        return files, wnids, set(wnids)
    if params.labels is None:
        raise CertbenchError(
            f"{root} is flat, so a file must tell the classes of its images",
            where="labels",
            remedy="name it, for example LOC_val_solution.csv",
        )
    numbers = [_VAL.match(name) for name in flat]
    strange = [name for name, match in zip(flat, numbers, strict=True) if match is None]
    if strange:
        raise CertbenchError(
            f"{len(strange)} files of {root} are not named ILSVRC2012_val_<number>: "
            f"{', '.join(strange[: images.SHOWN])}",
            where="root",
        )
    wnid_of, known = _mapping(params)
    found = [wnid_of.get(int(match[1])) for match in numbers if match is not None]
    missing = [name for name, wnid in zip(flat, found, strict=True) if wnid is None]
    if missing:
        raise CertbenchError(
            f"says nothing about {len(missing)} images of {root}: "
            f"{', '.join(missing[: images.SHOWN])}",
            where="labels",
        )
    return flat, [wnid for wnid in found if wnid is not None], known


def _mapping(params: Params) -> tuple[dict[int, str], set[str]]:
    """WordNet id of each validation image by its number (from 1), and all WordNet ids."""
    assert params.labels is not None
    lines = _lines(params.labels, "labels")
    order = _order(params.synsets) if params.synsets else None
    wnids: dict[int, str] = {}
    for count, line in enumerate(lines, start=1):
        fields = re.split(r"[\s,]+", line)
        number = count
        if match := _VAL.match(Path(fields[0]).name):
            number = int(match[1])
            fields = fields[1:]
        elif fields[0] == "ImageId":
            continue
        value = fields[0] if fields else ""
        if _WNID.fullmatch(value):
            wnid = value
        elif value.isdigit():
            wnid = _numbered(int(value), order, params, from_one=len(fields) == 1 and match is None)
        else:
            raise CertbenchError(
                f"line {count} of {params.labels} is not understood: {line[:80]}",
                where="labels",
                remedy="see the help of this key for the known forms",
            )
        if wnids.setdefault(number, wnid) != wnid:
            raise CertbenchError(f"image {number} is there twice", where="labels")
    return wnids, set(order or wnids.values())


def _numbered(value: int, order: list[str] | None, params: Params, from_one: bool) -> str:
    """WordNet id of a number: ILSVRC ids count from 1, labels beside file names from 0."""
    if order is None:
        raise CertbenchError(
            f"{params.labels} holds numbers, which say nothing without the order of the classes",
            where="synsets",
            remedy="name the development kit's meta.mat (its numbers are not in sorted WordNet "
            "order), or a file of lines that begin with a WordNet id",
        )
    if from_one == (order == sorted(order)):
        raise CertbenchError(
            "bare numbers are ILSVRC ids, which are not in sorted WordNet order, but this file is"
            if from_one
            else "labels beside file names follow the sorted WordNet ids, but this file does not",
            where="synsets",
            remedy="name meta.mat with the ground truth file, and a sorted file with labels",
        )
    place = value - 1 if from_one else value
    if not 0 <= place < len(order):
        raise CertbenchError(
            f"{params.labels} has number {value}, and there are {len(order)} classes",
            where="labels",
        )
    return order[place]


def _order(name: str) -> list[str]:
    """WordNet ids in the order of a synset file."""
    if name.endswith(".mat"):
        return _development_kit(name)
    wnids = [re.split(r"[\s,]+", line)[0] for line in _lines(name, "synsets")]
    wnids = [wnid for wnid in wnids if _WNID.fullmatch(wnid)]
    if not wnids or len(set(wnids)) != len(wnids):
        raise CertbenchError(
            f"{name} needs lines that begin with WordNet ids, each once", where="synsets"
        )
    return wnids


def _development_kit(name: str) -> list[str]:
    """WordNet ids of the leaf classes in the order of their ILSVRC ids, from ``meta.mat``."""
    from scipy.io import loadmat

    path = Path(name).expanduser()
    if not path.is_file():
        raise CertbenchError(f"there is no file {name}", where="synsets")
    try:
        synsets = loadmat(path, squeeze_me=True)["synsets"]
        leaves = [s for s in synsets if int(s["num_children"]) == 0]
        numbered = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in leaves}
    except Exception as error:
        raise CertbenchError(
            f"{name} is not the meta.mat of the ILSVRC 2012 development kit ({error})",
            where="synsets",
        ) from error
    if sorted(numbered) != list(range(1, len(numbered) + 1)):
        raise CertbenchError(f"the ids of {name} do not count from 1", where="synsets")
    return [numbered[i] for i in range(1, len(numbered) + 1)]


def _identify(files: list[str]) -> tuple[list[str], list[int]]:
    matches = [_VAL.match(Path(name).name) for name in files]
    numbers = [int(match[1]) for match in matches if match is not None]
    if len(numbers) == len(files) and min(numbers) >= 1:
        return [f"val/ILSVRC2012_val_{number:08d}" for number in numbers], [
            number - 1 for number in numbers
        ]
    return [f"val/{name}" for name in files], list(range(len(files)))


def _class_names(params: Params, wnids: list[str]) -> tuple[str, ...]:
    """Names in label order from a file of one of three forms."""
    if params.class_names is None:
        return tuple(wnids)
    lines = _lines(params.class_names, "class_names")
    named: dict[str, str] = {}
    if params.class_names.endswith(".json"):
        try:
            named = dict(json.loads("\n".join(lines)).values())
        except (ValueError, TypeError, AttributeError) as error:
            raise CertbenchError(
                f'{params.class_names} is not of the form {{"0": ["n01440764", "tench"]}}',
                where="class_names",
            ) from error
    else:
        for line in lines:
            wnid, *name = re.split(r"[\s,]+", line, maxsplit=1)
            if _WNID.fullmatch(wnid) and name:
                named[wnid] = name[0]
        if not named:
            named = dict(zip(wnids, lines, strict=False)) if len(lines) == len(wnids) else {}
    missing = [wnid for wnid in wnids if not named.get(wnid)]
    if missing:
        raise CertbenchError(
            f"{params.class_names} does not name {len(missing)} of {len(wnids)} classes: "
            f"{', '.join(missing[: images.SHOWN])}",
            where="class_names",
        )
    return tuple(named[wnid] for wnid in wnids)


def _lines(name: str, key: str) -> list[str]:
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CertbenchError(f"{name} cannot be read ({error})", where=key) from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise CertbenchError(f"{name} is empty", where=key)
    return lines


def _card(class_names: tuple[str, ...]) -> Card:
    return Card(
        title="ImageNet (ILSVRC 2012)",
        source=(
            "O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 115, "
            "2015, https://www.image-net.org"
        ),
        licence=(
            "ImageNet terms of access: non-commercial research and educational use only; the "
            "images belong to their owners and may not be passed on"
        ),
        redistributable=False,
        synthetic=False,
        class_names=class_names,
    )
