"""Parquet files in the style of Hugging Face: encoded images with labels, label maps, or both.

The index refers to file and row. Later jobs read only the row groups that their items are in.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certbench.datasets import images, masks, sampling
from certbench.datasets.card import Card
from certbench.errors import CertbenchError, did_you_mean
from certbench.params import param

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from PIL import Image

version = 1

HELD_BYTES = 256 << 20


@dataclass(frozen=True)
class Params:
    """Where the files are and which columns count."""

    root: str = param(help="folder of the dataset")
    files: dict[str, str] = param(
        {"train": "**/train*.parquet", "val": "**/val*.parquet", "test": "**/test*.parquet"},
        help="pattern of each split's files below root",
    )
    image: str = param("image", help="image column: struct<bytes, path>, or binary")
    label: str | None = param("label", help="label column: integers from 0; null: no labels")
    mask: str | None = param(
        None,
        help="column of label maps, typed as the image column: one channel, 255 for no class",
    )
    holdout: dict[str, int] = param(
        {}, help="items of further splits, carved from holdout_from, stratified"
    )
    holdout_from: str = param("train", help="split that the holdouts are carved from")
    class_names: tuple[str, ...] | None = param(
        None, help="names in label order; null: those in the files' metadata, or the numbers"
    )
    num_classes: int | None = param(
        None, help="number of classes; needed where neither files nor class_names tell", minimum=1
    )
    mask_class_names: tuple[str, ...] | None = param(
        None, help="names of the label maps' classes, class 0 first; null: the numbers"
    )
    num_mask_classes: int | None = param(
        None,
        help="number of classes of the label maps, where no names tell",
        minimum=1,
        maximum=255,
    )
    on_bad: str = param(
        "refuse", help="what to do with images that cannot be decoded", choices=("refuse", "skip")
    )
    title: str = param("Parquet files", help="name of the dataset in the report")
    source: str = param("", help="where the dataset comes from")
    licence: str = param("not stated", help="terms of the images")
    redistributable: bool = param(False, help="whether a report may embed the images")
    synthetic: bool = param(False, help="whether the images are rendered")

    def __post_init__(self) -> None:
        for name, pattern in self.files.items():
            if not isinstance(pattern, str) or not pattern or pattern.startswith("/"):
                raise CertbenchError(
                    f"is {pattern!r}", where=f"files.{name}", remedy="a pattern relative to root"
                )
        sampling.check_holdout(self.holdout, self.holdout_from, self.files)
        for prefix, names, number in (
            ("", self.class_names, self.num_classes),
            ("mask_", self.mask_class_names, self.num_mask_classes),
        ):
            if names is not None and number is not None and len(names) != number:
                raise CertbenchError(
                    f"{len(names)} names for {number} classes", where=f"{prefix}class_names"
                )
        if self.label is None and self.mask is None:
            raise CertbenchError(
                "neither labels nor label maps", where="label", remedy="name a column: label, mask"
            )
        if self.mask is not None and self.mask_class_names is None and not self.num_mask_classes:
            raise CertbenchError(
                "the number of classes of the label maps is not stated",
                where="num_mask_classes",
                remedy="set num_mask_classes, or mask_class_names",
            )


def splits(params: Params) -> dict[str, int | None]:
    """The splits; only the files tell their sizes, those of holdouts excepted."""
    return {**dict.fromkeys(params.files, None), **params.holdout}


def prepare(
    params: Params, splits: Sequence[str], seed: int, tick: Callable[[int, int], None]
) -> tuple[pa.Table, Card]:
    """List the rows of some splits; only label columns are read, and of label maps the type.

    An item's id is ``<split>/<row>``, its index the row, counted over the sorted files of its
    source split.
    """
    import pyarrow as pa

    from certbench.datasets import index

    root = images.existing(params.root, "root")
    wanted = [
        source
        for source in params.files
        if source in splits
        or (source == params.holdout_from and any(name in splits for name in params.holdout))
    ]
    listed = {source: _files(params, root, source) for source in wanted}
    _check_disjoint(params, root)
    total, done = sum(map(len, listed.values())), 0
    tables = []
    for source, paths in listed.items():
        labels: list[int | None] = []
        names: list[str] = []
        rows: list[int] = []
        for path in paths:
            found = _labels(params, path)
            labels += found
            names += [path.relative_to(root).as_posix()] * len(found)
            rows += range(len(found))
            done += 1
            tick(done, total)
        ids = [f"{source}/{i:06d}" for i in range(len(labels))]
        carved = params.holdout if source == params.holdout_from else {}
        belongs = sampling.carve(ids, labels, carved, source, seed, "holdout")
        table = index.table(ids, range(len(ids)), belongs, labels, path=names, row=rows)
        tables.append(table.filter(pa.array([split in splits for split in belongs], pa.bool_())))
    class_names = _class_names(params, [path for paths in listed.values() for path in paths])
    card = Card(
        title=params.title,
        source=params.source or str(params.root),
        licence=params.licence,
        redistributable=params.redistributable,
        synthetic=params.synthetic,
        class_names=class_names,
        mask_class_names=_mask_class_names(params),
    )
    return pa.concat_tables(tables), card


def read(params: Params, rows: pa.Table) -> list[Image.Image]:
    """Decode the images of index rows, in order, as RGB images.

    Raises:
        CertbenchError: A file has changed since it was prepared, or an image cannot be decoded.
    """
    return [
        images.decode(source, name)
        for source, name in _sources(params, rows, params.image, "has no image")
    ]


def serves_masks(params: Params) -> bool:
    """Whether a column of label maps is named."""
    return params.mask is not None


def read_masks(params: Params, rows: pa.Table) -> list[np.ndarray]:
    """Decode the label maps of index rows, in order: uint8 [H, W], 255 where there is no class.

    Raises:
        CertbenchError: A file has changed since it was prepared, or a map cannot be decoded.
    """
    assert params.mask is not None
    found = _sources(params, rows, params.mask, "has no label map")
    return [masks.decode(source, name) for source, name in found]


def _sources(
    params: Params, rows: pa.Table, column: str, missing: str
) -> list[tuple[bytes | Path, str]]:
    """Encoded bytes (or the path) of a column's value in index rows, and what messages call it."""
    root = Path(params.root).expanduser()
    ids = rows.column("item_id").to_pylist()
    paths, numbers = rows.column("path").to_pylist(), rows.column("row").to_pylist()
    starts = {path: _group_starts(root / path) for path in set(paths)}
    places: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for position, (path, number) in enumerate(zip(paths, numbers, strict=True)):
        bounds = starts[path]
        if not 0 <= number < bounds[-1]:
            raise CertbenchError(
                f"has {bounds[-1]} rows, the index refers to row {number}",
                where=str(root / path),
                remedy="the file has changed: prepare the dataset again",
            )
        group = bisect_right(bounds, number) - 1
        places.setdefault((path, group), []).append((position, number - bounds[group]))
    encoded: list[Any] = [None] * len(ids)
    for (path, group), entries in sorted(places.items()):
        values = _values(root / path, column, group, [inside for _, inside in entries])
        for (position, _), value in zip(entries, values, strict=True):
            encoded[position] = value
    found = []
    for item_id, path, number, value in zip(ids, paths, numbers, encoded, strict=True):
        name = f"{root / path}, row {number}"
        if isinstance(value, dict):
            source: Any = value.get("bytes")
            if source is None and value.get("path"):
                source = root / value["path"]
        else:
            source = value
        if source is None:
            raise CertbenchError(missing, where=f"{name} ({item_id})")
        found.append((source, name))
    return found


def _files(params: Params, root: Path, source: str) -> list[Path]:
    paths = sorted(root.glob(params.files[source]))
    if not paths:
        raise CertbenchError(
            f"no file matches '{params.files[source]}' in {root}", where=f"files.{source}"
        )
    return paths


def _check_disjoint(params: Params, root: Path) -> None:
    """Refuse a file that two splits have, prepared or not."""
    owner: dict[Path, str] = {}
    for source, pattern in params.files.items():
        for path in root.glob(pattern):
            if path in owner:
                raise CertbenchError(
                    f"{path} is also a file of split '{owner[path]}'",
                    where=f"files.{source}",
                    remedy="splits must be disjoint: give each its own files",
                )
            owner[path] = source


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, memory_map=True)
    except FileNotFoundError as error:
        raise CertbenchError("does not exist", where=str(path)) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise CertbenchError(f"is no Parquet file, or torn ({error})", where=str(path)) from error


def _labels(params: Params, path: Path) -> list[int] | list[None]:
    """Labels of a file (None each where no column is named), once its columns are right."""
    import pyarrow as pa

    file = _open(path)
    schema = file.schema_arrow
    for key in ("image", "label", "mask"):
        name = getattr(params, key)
        if name is None:
            continue
        if name not in schema.names:
            raise CertbenchError(
                f"{path} has no column '{name}'",
                where=key,
                remedy=did_you_mean(name, schema.names),
            )
        type_ = schema.field(name).type
        if key == "label":
            if not pa.types.is_integer(type_):
                raise CertbenchError(
                    f"column '{name}' of {path} is {type_}",
                    where="label",
                    remedy="needs integers, 0 for the first class",
                )
            continue
        inner = {field.name: field.type for field in type_} if pa.types.is_struct(type_) else {}
        bytes_ = inner.get("bytes", type_)
        if not (pa.types.is_binary(bytes_) or pa.types.is_large_binary(bytes_)):
            raise CertbenchError(
                f"column '{name}' of {path} is {type_}",
                where=key,
                remedy="needs struct<bytes: binary, path: string>, or binary",
            )
    if params.label is None:
        return [None] * file.metadata.num_rows
    column = file.read(columns=[params.label]).column(params.label)
    if column.null_count:
        raise CertbenchError(f"{column.null_count} labels of {path} are null", where="label")
    return column.to_pylist()


def _mask_class_names(params: Params) -> tuple[str, ...]:
    if params.mask is None:
        return ()
    if params.mask_class_names is not None:
        return params.mask_class_names
    assert params.num_mask_classes is not None
    return tuple(map(str, range(params.num_mask_classes)))


def _class_names(params: Params, paths: list[Path]) -> tuple[str, ...]:
    """Class names from the parameters, else from what Hugging Face writes into the files."""
    if params.label is None:
        return ()
    if params.class_names is not None:
        return params.class_names
    names: tuple[str, ...] | None = None
    for path in paths:
        metadata = _open(path).schema_arrow.metadata or {}
        try:
            features = json.loads(metadata[b"huggingface"])["info"]["features"]
            written = features[params.label]["names"]
        except (KeyError, ValueError, TypeError):
            continue
        if names is not None and tuple(written) != names:
            raise CertbenchError(
                f"{path} names other classes than the files before it", where="class_names"
            )
        names = tuple(written)
    number = params.num_classes
    if names is None and number is None:
        raise CertbenchError(
            "the files do not tell the number of classes",
            where="num_classes",
            remedy="set num_classes, or class_names",
        )
    if names is None:
        assert number is not None
        return tuple(map(str, range(number)))
    if number is not None and number != len(names):
        raise CertbenchError(
            f"the files name {len(names)} classes, not {number}", where="num_classes"
        )
    return names


# What this process read last. Jobs read items in an order that jumps between row groups, and
# several threads may read while a dataset is verified.
_lock = threading.Lock()
_starts: dict[tuple, list[int]] = {}
_held: OrderedDict[tuple, Any] = OrderedDict()


def _group_starts(path: Path) -> list[int]:
    """First row of each row group of a file, and the number of rows at the end."""
    key = _identity(path)
    with _lock:
        if key not in _starts:
            metadata = _open(path).metadata
            starts = [0]
            for group in range(metadata.num_row_groups):
                starts.append(starts[-1] + metadata.row_group(group).num_rows)
            _starts[key] = starts
        return _starts[key]


def _identity(path: Path) -> tuple:
    try:
        status = path.stat()
    except OSError as error:
        raise CertbenchError(
            "does not exist any more", where=str(path), remedy="prepare the dataset again"
        ) from error
    return (str(path), status.st_mtime_ns, status.st_size)


def _values(path: Path, column: str, group: int, inside: list[int]) -> list:
    """Values of some rows of a row group; small groups are held for the next call."""
    key = (*_identity(path), column, group)
    with _lock:
        values = _held.get(key)
        if values is None:
            file = _open(path)
            if _bytes_of(file.metadata.row_group(group), column) > HELD_BYTES:
                return _streamed(file, column, group, inside)
            values = file.read_row_group(group, columns=[column], use_threads=False).column(0)
            _held[key] = values
            while len(_held) > 1 and sum(held.nbytes for held in _held.values()) > HELD_BYTES:
                _held.popitem(last=False)
        _held.move_to_end(key)
    return [values[i].as_py() for i in inside]


def _bytes_of(group: Any, column: str) -> int:
    parts = [group.column(i) for i in range(group.num_columns)]
    return sum(
        part.total_uncompressed_size
        for part in parts
        if part.path_in_schema.split(".")[0] == column
    )


def _streamed(file: Any, column: str, group: int, inside: list[int]) -> list:
    """Values of some rows of a large row group, a few of whose rows are in memory at a time."""
    wanted: dict[int, list[int]] = {}
    for position, i in enumerate(inside):
        wanted.setdefault(i, []).append(position)
    values: list[Any] = [None] * len(inside)
    start = 0
    for batch in file.iter_batches(64, [group], [column], use_threads=False):
        for i in [i for i in wanted if start <= i < start + len(batch)]:
            value = batch.column(0)[i - start].as_py()
            for position in wanted[i]:
                values[position] = value
        start += len(batch)
    return values
