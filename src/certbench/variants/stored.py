"""Files of a variant's images: Parquet in the style of Hugging Face, one row for each item.

``image`` holds encoded bytes (PNG, or JPEG of quality 85), beside it ``label``, ``item_id`` and
``item_index`` and, where the dataset has label maps, ``mask`` (PNG); datasets of type ``parquet``
and other readers of that style can read it. Images that are not 8-bit keep their exact values in
``pixels`` (float32, row by row), and ``image`` shows them rounded.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from certbench.datasets import images as image_files
from certbench.datasets import masks as label_maps
from certbench.datasets.index import IMAGE
from certbench.errors import CertbenchError
from certbench.results.atomic import atomic_path
from certbench.results.rows import FOOTER, provenance

if TYPE_CHECKING:
    from certbench.datasets.access import Batch

KIND = "variant_images"

# How images are saved. Quality 85 with optimised tables is that of the published ImageNet-C files.
_SAVED: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "jpeg85": {"format": "JPEG", "quality": 85, "optimize": True},
}

# A batch of a job reads whole groups of rows.
_ROWS_IN_GROUP = 50


def encode(image: np.ndarray, encoding: str) -> bytes:
    """One image, uint8 [H, W, 3], as the bytes of a file."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, **_SAVED[encoding])
    return stream.getvalue()


def encode_all(images: np.ndarray, encoding: str, variant_id: str) -> list[bytes]:
    """Encoded images; float images are rounded to levels, which only PNG beside them may do.

    Args:
        images: uint8 [N, H, W, 3], or float32 in [0, 1].
        encoding: ``png`` or ``jpeg85``.
        variant_id: For messages.

    Raises:
        CertbenchError: Float images are to be JPEG, which would lose what makes them float.
    """
    if images.dtype != np.uint8:
        if encoding != "png":
            raise CertbenchError(
                f"images that are not 8-bit are kept losslessly, not as {encoding}",
                where=f"variant {variant_id}",
                remedy="set encoding: png, or let a step that needs 8-bit images come last",
            )
        images = np.rint(images * 255.0).clip(0, 255).astype(np.uint8)
    return [encode(image, encoding) for image in images]


def as_coded(images: np.ndarray, encoding: str, variant_id: str) -> np.ndarray:
    """Images as they come back from an encoding.

    Args:
        images: uint8 [N, H, W, 3], or float32 in [0, 1] (``png`` only).
        encoding: ``png`` (changes nothing) or ``jpeg85``.
        variant_id: For messages.
    """
    if encoding == "png" or not len(images):
        return images
    return np.stack([_pixels(data, "") for data in encode_all(images, encoding, variant_id)])


def table(batch: Batch, made: Mapping[str, Sequence[bytes]], names: Sequence[str]) -> pa.Table:
    """Rows of a file.

    Args:
        batch: The items: names, indices, labels.
        made: Bytes of each item: ``image`` (encoded) and, where there are any, ``mask`` (PNG) and
            ``pixels`` (float32, of images that are not 8-bit).
        names: Class names.
    """
    labels = [None if label < 0 else int(label) for label in batch.labels]
    columns = {
        "image": _files(made["image"]),
        "label": pa.array(labels, pa.int64()),
        "item_id": pa.array(batch.item_ids, pa.string()),
        "item_index": pa.array(batch.item_index, pa.uint32()),
    }
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(names), "_type": "ClassLabel"},
        "item_id": {"dtype": "string", "_type": "Value"},
        "item_index": {"dtype": "uint32", "_type": "Value"},
    }
    if "mask" in made:
        columns["mask"] = _files(made["mask"])
        features["mask"] = {"_type": "Image"}
    if "pixels" in made:
        columns["pixels"] = pa.array(made["pixels"], pa.binary())
        features["pixels"] = {"dtype": "binary", "_type": "Value"}
    return pa.table(columns).replace_schema_metadata(
        {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    )


def _files(encoded: Sequence[bytes]) -> pa.Array:
    return pa.array([{"bytes": data, "path": None} for data in encoded], IMAGE)


def write(path: str | Path, rows: pa.Table, footer: Mapping[str, Any]) -> None:
    """Write a file atomically.

    Args:
        path: The Parquet file.
        rows: From :func:`table`.
        footer: Provenance, with ``shape`` (of one image) and ``encoding``.
    """
    text = json.dumps({"kind": KIND, **footer}, sort_keys=True, default=str)
    rows = rows.replace_schema_metadata({**(rows.schema.metadata or {}), FOOTER: text.encode()})
    with atomic_path(path) as temporary:
        # Encoded images do not shrink further; float values do a little.
        pq.write_table(rows, temporary, compression="zstd", row_group_size=_ROWS_IN_GROUP)


class Stored:
    """Some items of a file, once it is what the reading job expects.

    Args:
        path: The Parquet file.
        work: Work of the reading job: its dataset, variant and seed must be those of the file.
        start: Rank of the first item.
        rows: Index rows of the items.

    Raises:
        CertbenchError: The file is missing, torn, or holds other images.
    """

    def __init__(self, path: str | Path, work: Mapping[str, Any], start: int, rows: pa.Table):
        self.path = Path(path)
        self._ids = rows.column("item_id").to_pylist()
        footer = provenance(path)
        made = footer.get("work", {})
        first, last = made.get("items", (0, 0))
        same = all(made.get(key) == work[key] for key in ("dataset", "variant", "seed"))
        inside = first <= start and start + len(self._ids) <= last
        if footer.get("kind") != KIND or not same or not inside:
            raise self._refused("holds images of another dataset, variant, seed or range")
        self._shape = tuple(footer["shape"])
        self._low = start - first
        self._file = pq.ParquetFile(path)
        if self._column("item_id") != self._ids:
            raise self._refused("holds images of other items than the index of the dataset")

    def images(self) -> np.ndarray:
        """uint8 or float32 [N, H, W, 3]."""
        if "pixels" in self._file.schema_arrow.names:
            exact = self._column("pixels")
            made = np.empty((len(exact), *self._shape), np.float32)
            for i, data in enumerate(exact):
                made[i] = np.frombuffer(data, "<f4").reshape(self._shape)
            return made
        encoded = self._column("image")
        pictures = np.empty((len(encoded), *self._shape), np.uint8)
        for i, value in enumerate(encoded):
            pictures[i] = _pixels(value["bytes"], f"{self.path} ({self._ids[i]})")
        return pictures

    def masks(self) -> np.ndarray:
        """Label maps, uint8 [N, H, W].

        Raises:
            CertbenchError: There are none.
        """
        if "mask" not in self._file.schema_arrow.names:
            raise self._refused("holds no label maps")
        encoded = self._column("mask")
        made = np.empty((len(encoded), *self._shape[:2]), np.uint8)
        for i, value in enumerate(encoded):
            made[i] = label_maps.decode(value["bytes"], f"{self.path} ({self._ids[i]})")
        return made

    def _column(self, name: str) -> list[Any]:
        first = self._low // _ROWS_IN_GROUP
        groups = range(first, -(-(self._low + len(self._ids)) // _ROWS_IN_GROUP))
        found = self._file.read_row_groups(groups, [name], use_threads=False)
        inside = found.slice(self._low - first * _ROWS_IN_GROUP, len(self._ids))
        return inside.column(name).to_pylist()

    def _refused(self, problem: str) -> CertbenchError:
        return CertbenchError(problem, where=str(self.path), remedy="delete it and run again")


def _pixels(data: bytes, name: str) -> np.ndarray:
    return np.asarray(image_files.decode(data, name), np.uint8)
