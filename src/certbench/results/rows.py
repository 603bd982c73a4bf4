"""Long tables are the contract: the kinds of rows, their columns, and the files that hold them.

Every evaluation job writes one Parquet file of one kind. A kind is the key columns, its base
columns, and the columns that the plug-in declares; a column that nobody declared fails. The footer
carries the provenance of the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from certbench.errors import CertbenchError, did_you_mean
from certbench.results.atomic import atomic_path

FOOTER = b"certbench"

KEYS = {
    "task": "label",
    "dataset": "label",
    "split": "label",
    "view": "label",
    "variant_id": "label",
    "model": "label",
    "defense": "label",
    "attack": "label",
    "threat_id": "label",
    "seed": "int64",
    "item_id": "string",
    "item_index": "uint32",
}

COST = {
    "n_forward": "int64",
    "n_backward": "int64",
    "macs": "float64",
    "tokens": "int64",
    "device_time_s": "float64",
}

THREAT = {
    "threat_kind": "label",
    "threat_norm": "label",
    "threat_size": "float64",
    "threat_space": "label",
    "threat_unit": "label",
    "threat_guarantee": "label",
    "threat_alpha": "float64",
}

KINDS: dict[str, dict[str, str]] = {
    "predictions": {
        "label": "int32",
        "predict": "int32",
        "correct": "bool",
        "confidence": "float64",
        "label_probability": "float64",
    },
    # One row for each class that an image shows or is said to show, and always one for class 0,
    # which carries the cost of the image. Pixels without a class (255) count nowhere.
    "segmentation": {
        "class_id": "int32",
        "class_name": "label",
        "intersection": "int64",
        "predicted_pixels": "int64",
        "label_pixels": "int64",
        "predicted_map": "binary",
    },
    "stats": {},
    "certificates": {
        "label": "int32",
        "predict": "int32",
        "radius": "float64",
        "abstain": "bool",
        "correct": "bool",
        **THREAT,
    },
    "attacks": {
        "label": "int32",
        "clean_pred": "int32",
        "adv_pred": "int32",
        "status": "label",
        "attacked": "label",
        "judged_by": "label",
        "knowledge": "label",
        "pert_linf": "float64",
        "pert_l2": "float64",
        **THREAT,
    },
    "audit": {
        "label": "int32",
        "verdict": "label",
        "certified_size": "float64",
        "attack_size": "float64",
        "certified_in_attack_norm": "float64",
        "predict": "int32",
        "adv_pred": "int32",
        **THREAT,
    },
    "cost": {"stage": "label", "jobs": "int64", "wall_time_s": "float64"},
    "training": {
        "epoch": "int32",
        "loss": "float64",
        "accuracy": "float64",
        "learning_rate": "float64",
        "wall_time_s": "float64",
    },
    "rag": {},
}

# Rows that are not about one item (an epoch, a stage) have no item columns.
_NO_ITEMS = {"cost", "training"}

_TYPES = {
    "label": pa.dictionary(pa.int32(), pa.string()),
    "string": pa.string(),
    "binary": pa.binary(),
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint32": pa.uint32(),
    "float32": pa.float32(),
    "float64": pa.float64(),
}


def schema(kind: str, declared: Mapping[str, str] | None = None) -> dict[str, str]:
    """Column names and type names of a kind with the columns a plug-in declares.

    Args:
        kind: A key of :data:`KINDS`.
        declared: Extra columns: name to a type name (``int32``, ``float64``, ``label``, ...).

    Raises:
        CertbenchError: Unknown kind or type, or a declared column that the kind already has with
            another type.
    """
    if kind not in KINDS:
        raise CertbenchError(
            f"unknown kind of rows '{kind}'", where="rows", remedy=did_you_mean(kind, KINDS)
        )
    keys = KEYS if kind not in _NO_ITEMS else {k: v for k, v in KEYS.items() if "item" not in k}
    columns = {**keys, **KINDS[kind], **COST}
    for name, type_name in (declared or {}).items():
        if type_name not in _TYPES:
            raise CertbenchError(
                f"unknown column type '{type_name}'",
                where=f"{kind}: {name}",
                remedy=did_you_mean(type_name, _TYPES),
            )
        if name in columns and columns[name] != type_name:
            raise CertbenchError(
                f"column '{name}' is {columns[name]} in every {kind} row, not {type_name}",
                where=f"{kind}: {name}",
                remedy="declare it under another name",
            )
        columns[name] = type_name
    return columns


def table(
    kind: str,
    columns: Mapping[str, Any],
    keys: Mapping[str, Any],
    declared: Mapping[str, str] | None = None,
    length: int | None = None,
) -> pa.Table:
    """Rows of a kind from arrays and constants.

    Args:
        kind: A key of :data:`KINDS`.
        columns: Per-row values: arrays or lists of equal length.
        keys: Constants repeated in every row (dataset, model, ...).
        declared: Columns that the plug-in declares.
        length: Number of rows, where no array tells it.

    Raises:
        CertbenchError: A column that neither the kind nor the plug-in declares, or arrays of
            unequal length. Declared columns that are not given are null.
    """
    wanted = schema(kind, declared)
    given = {**keys, **columns}
    for name in given:
        if name not in wanted:
            raise CertbenchError(
                f"column '{name}' is not declared for {kind} rows",
                where=f"{kind} rows",
                remedy="declare it in the plug-in's columns; " + did_you_mean(name, wanted),
            )
    lengths = {name: len(values) for name, values in columns.items()}
    if length is not None:
        lengths["(length)"] = length
    if len(set(lengths.values())) > 1:
        raise CertbenchError(f"columns of unequal length: {lengths}", where=f"{kind} rows")
    rows = next(iter(lengths.values()), 0)
    arrays = [
        _column(columns[name], type_name)
        if name in columns
        else _constant(keys.get(name), type_name, rows)
        for name, type_name in wanted.items()
    ]
    return pa.table(arrays, names=list(wanted))


def _column(values: Any, type_name: str) -> pa.Array:
    wanted = _TYPES[type_name]
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values.cast(wanted) if values.type != wanted else values
    if isinstance(values, np.ndarray) and values.dtype == object:
        values = list(values)
    if type_name == "label":
        return pa.array([None if v is None else str(v) for v in values], pa.string()).cast(wanted)
    return pa.array(values, wanted, from_pandas=False)


def _constant(value: Any, type_name: str, rows: int) -> pa.Array:
    wanted = _TYPES[type_name]
    if value is None:
        return pa.nulls(rows, wanted)
    if type_name == "label":
        codes = pa.array(np.zeros(rows, np.int32))
        return pa.DictionaryArray.from_arrays(codes, pa.array([str(value)], pa.string()))
    return pa.repeat(pa.scalar(value, wanted), rows)


def write(path: str | Path, rows: pa.Table, kind: str, provenance: Mapping[str, Any]) -> None:
    """Write rows atomically, with the provenance in the footer.

    Args:
        path: The Parquet file.
        rows: A table made by :func:`table`.
        kind: Kind of the rows.
        provenance: JSON values: versions, parameters, device, seconds, identity.
    """
    footer = json.dumps({"kind": kind, **provenance}, sort_keys=True, default=str)
    rows = rows.replace_schema_metadata({FOOTER: footer.encode()})
    with atomic_path(path) as temporary:
        pq.write_table(rows, temporary, compression="zstd")


def read(
    paths: str | Path | Iterable[str | Path], kind: str, columns: Sequence[str] | None = None
) -> pa.Table:
    """Rows of one kind from one or many files, in the order given.

    Raises:
        CertbenchError: A file is missing, torn, or holds another kind.
    """
    if isinstance(paths, (str, Path)):
        paths = [paths]
    tables = []
    for path in paths:
        found = provenance(path).get("kind")
        if found != kind:
            raise CertbenchError(f"holds {found} rows, not {kind}", where=str(path))
        tables.append(_read_table(path, columns).replace_schema_metadata(None))
    if not tables:
        wanted = schema(kind)
        return pa.table({k: pa.nulls(0, _TYPES[t]) for k, t in wanted.items()})
    return pa.concat_tables(tables, promote_options="permissive").unify_dictionaries()


def provenance(path: str | Path) -> dict[str, Any]:
    """The provenance that :func:`write` put into a file's footer.

    Raises:
        CertbenchError: The file is missing, torn, or not one of ours.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        return json.loads(metadata[FOOTER])
    except FileNotFoundError as error:
        raise CertbenchError("does not exist", where=str(path)) from error
    except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
        raise CertbenchError(
            "is torn, or not a file of this project",
            where=str(path),
            remedy="delete it and run again",
        ) from error


def _read_table(path: str | Path, columns: Sequence[str] | None) -> pa.Table:
    try:
        return pq.read_table(path, columns=list(columns) if columns else None)
    except (pa.ArrowInvalid, OSError) as error:
        raise CertbenchError("is torn", where=str(path), remedy="delete it, run again") from error
