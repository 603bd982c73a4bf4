"""The index of a dataset: one row per item, in a seeded order whose every prefix is a sample.

Within a split, the item of rank k is chosen so that for every k the first k items hold each class
in proportion, to within less than one item. So a limit of 500 is a prefix of the split, it is
stratified, and raising it keeps what is there. The order depends on the item ids, the labels and
the seed; neither on the file system nor on a library's random numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from certbench.datasets.card import Card
from certbench.datasets.sampling import ordered
from certbench.errors import CertbenchError
from certbench.results.atomic import atomic_path
from certbench.results.rows import FOOTER

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

COLUMNS = {
    "item_id": pa.string(),
    "item_index": pa.uint32(),
    "split": pa.string(),
    "label": pa.int32(),
    "path": pa.string(),
    "row": pa.int64(),
    "image": IMAGE,
}

_ROWS_IN_GROUP = 1024
_BYTES_IN_GROUP = 32 << 20


def table(
    item_id: Sequence[str],
    item_index: Any,
    split: str | Sequence[str],
    label: Any,
    path: Sequence[str | None] | None = None,
    row: Any = None,
    image: Sequence[bytes] | None = None,
    mask: Sequence[bytes] | None = None,
) -> pa.Table:
    """The table that a dataset plug-in's ``prepare`` returns.

    Args:
        item_id: Name of each item, unique in the dataset.
        item_index: Position of each item in its source split; it keys random numbers.
        split: Split of each item, or one for all.
        label: Class of each item.
        path: File of each item, relative to the dataset's root.
        row: Row of each item in that file.
        image: Encoded bytes of each image (PNG, JPEG), to be kept in the index itself.
        mask: Encoded bytes of each label map (PNG), likewise; a column of its own.
    """
    n = len(item_id)
    splits = [split] * n if isinstance(split, str) else split
    images = None if image is None else [{"bytes": data, "path": None} for data in image]
    values = [item_id, item_index, splits, label, path, row, images]
    arrays = [
        pa.nulls(n, type_) if value is None else pa.array(value, type_)
        for value, type_ in zip(values, COLUMNS.values(), strict=True)
    ]
    made = pa.table(arrays, names=list(COLUMNS))
    return made if mask is None else made.append_column("mask", pa.array(mask, pa.binary()))


def check(items: pa.Table, classes: int, where: str) -> None:
    """Refuse a table of items that cannot be an index.

    Args:
        items: Table with at least :data:`COLUMNS`.
        classes: Number of classes of the dataset.
        where: Prefix for messages.

    Raises:
        CertbenchError: Missing columns, an item twice (in one split or two), two items of a split
            with one ``item_index``, or labels outside ``0 .. classes - 1``.
    """
    for name, type_ in COLUMNS.items():
        if name not in items.column_names or items.schema.field(name).type != type_:
            raise CertbenchError(f"the index needs a column '{name}' of type {type_}", where=where)
    ids = items.column("item_id").to_pylist()
    splits = items.column("split").to_pylist()
    seen: dict[str, str] = {}
    twice: list[str] = []
    for item_id, split in zip(ids, splits, strict=True):
        if item_id in seen:
            twice.append(f"{item_id} ({seen[item_id]}, {split})")
        seen[item_id] = split
    if twice:
        raise CertbenchError(
            f"{len(twice)} items are there twice: " + ", ".join(twice[:20]),
            where=where,
            remedy="splits must be disjoint: give each its own files",
        )
    places = set(zip(splits, items.column("item_index").to_pylist(), strict=True))
    if len(places) != len(ids):
        raise CertbenchError("two items of a split share one item_index", where=where)
    labels = items.column("label").drop_null().to_numpy()
    outside = np.unique(labels[(labels < 0) | (labels >= classes)])
    if outside.size:
        raise CertbenchError(
            f"labels {', '.join(map(str, outside[:20]))} are outside 0..{classes - 1} "
            f"({classes} classes)",
            where=where,
            remedy="correct the labels, or the number of classes",
        )


def order(items: pa.Table, seed: int) -> pa.Table:
    """Add ``rank`` (uint32) to the items: the seeded, stratified, nested order within each split.

    Args:
        items: Table with at least ``item_id``, ``split`` and ``label``.
        seed: Any integer.

    Returns:
        The same rows and columns with ``rank``, sorted by split and rank.
    """
    ids = items.column("item_id").to_pylist()
    splits = items.column("split").to_pylist()
    labels = items.column("label").to_pylist()
    members: dict[str, list[int]] = {}
    for i, split in enumerate(splits):
        members.setdefault(split, []).append(i)
    positions: list[int] = []
    ranks: list[int] = []
    for split in sorted(members):
        inside = members[split]
        sequence = ordered([ids[i] for i in inside], [labels[i] for i in inside], seed)
        positions += [inside[i] for i in sequence]
        ranks += range(len(inside))
    taken = items.take(pa.array(positions, pa.int64()))
    if "rank" in taken.column_names:
        taken = taken.drop_columns(["rank"])
    return taken.append_column("rank", pa.array(ranks, pa.uint32()))


def without(items: pa.Table, bad: Iterable[str]) -> pa.Table:
    """An ordered index without some items.

    The next item of the same class moves up into each gap, so that prefixes stay stratified and a
    longer one still begins with the shorter one.

    Args:
        items: What :func:`order` returned.
        bad: Ids of the items to leave out.

    Returns:
        The index with dense ranks, sorted by split and rank.
    """
    gone = set(bad)
    ids = items.column("item_id").to_pylist()
    groups: dict[tuple, list[int]] = {}
    keys = zip(items.column("split").to_pylist(), items.column("label").to_pylist(), strict=True)
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    # Rows are sorted by split and rank, so a row's position stands for its rank.
    kept = []
    for places in groups.values():
        good = [i for i in places if ids[i] not in gone]
        kept += list(zip(places, good, strict=False))
    kept.sort()
    taken = items.take(pa.array([good for _, good in kept], pa.int64())).drop_columns(["rank"])
    return taken.append_column("rank", pa.array(_count_up(taken), pa.uint32()))


def _count_up(items: pa.Table) -> list[int]:
    counted: dict[str, int] = {}
    ranks = []
    for split in items.column("split").to_pylist():
        ranks.append(counted.get(split, 0))
        counted[split] = ranks[-1] + 1
    return ranks


def write(path: str | Path, items: pa.Table, card: Card, provenance: Mapping[str, Any]) -> None:
    """Write an ordered index atomically; the footer holds the card and where each split lies.

    Args:
        path: The Parquet file.
        items: What :func:`order` returned, or a part of it in that order.
        card: The dataset's card.
        provenance: JSON values: versions, parameters, seed, identity.
    """
    bounds: dict[str, list[int]] = {}
    for i, split in enumerate(items.column("split").to_pylist()):
        bounds.setdefault(split, [i, 0])[1] += 1
    footer = {"kind": "index", **provenance, "card": card.to_dict(), "splits": bounds}
    text = json.dumps(footer, sort_keys=True, default=str)
    items = items.replace_schema_metadata({FOOTER: text.encode()})
    mean = items.nbytes / max(1, len(items))
    group = int(max(1, min(_ROWS_IN_GROUP, _BYTES_IN_GROUP / max(mean, 1))))
    with atomic_path(path) as temporary:
        pq.write_table(items, temporary, compression="zstd", row_group_size=group)
