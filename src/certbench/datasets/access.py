"""Load items of a prepared dataset by rank. Imports Pillow, numpy and pyarrow only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from certbench.datasets import masks as label_maps
from certbench.datasets import views
from certbench.datasets.card import Card
from certbench.errors import CertbenchError, did_you_mean
from certbench.results.rows import provenance


@dataclass(frozen=True)
class Batch:
    """Items in rank order.

    Attributes:
        images: uint8 [n, H, W, 3].
        labels: int32 [n]; -1 where an item has no label.
        item_ids: n names.
        item_index: uint32 [n], positions in the source split.
        masks: Label maps, uint8 [n, H, W] with 255 where a pixel has no class; None where they were
            not asked for.
    """

    images: np.ndarray
    labels: np.ndarray
    item_ids: list[str]
    item_index: np.ndarray
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.item_ids)


class Items:
    """The items of one split of a prepared dataset, under one view.

    Opening reads the footer of the index only; :meth:`load` reads the rows it needs.

    Args:
        index_path: The dataset's ``index.parquet``.
        split: Name of a prepared split.
        view: Name of a view, see :mod:`certbench.datasets.views`.
        plugin_module: The dataset plug-in that prepared the index.
        params: Its parameters.

    Raises:
        CertbenchError: No such index, split or view.
    """

    def __init__(
        self,
        index_path: str | Path,
        split: str,
        view: str | views.View,
        plugin_module: ModuleType,
        params: Any,
    ):
        self.path = Path(index_path)
        self.split = split
        self.view = views.parse(view) if isinstance(view, str) else view
        self.module, self.params = plugin_module, params
        footer = provenance(self.path)
        if footer.get("kind") != "index":
            raise CertbenchError("is not the index of a dataset", where=str(self.path))
        if split not in footer["splits"]:
            raise CertbenchError(
                f"split '{split}' was not prepared",
                where=str(self.path),
                remedy=did_you_mean(split, footer["splits"]),
            )
        self.card = Card.from_dict(footer["card"])
        self._first, self.size = footer["splits"][split]
        self._file: pq.ParquetFile | None = None
        self._groups: tuple[int, int] | None = None
        self._held: pa.Table | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label, label 0 first."""
        return self.card.class_names

    @property
    def mask_class_names(self) -> tuple[str, ...]:
        """Name of each class of the label maps, class 0 first; empty without label maps."""
        return self.card.mask_class_names

    def __len__(self) -> int:
        return self.size

    def rows(self, start: int, stop: int) -> pa.Table:
        """Index rows of ranks [start, stop), in rank order.

        Raises:
            CertbenchError: The range reaches beyond the split.
        """
        if not 0 <= start <= stop <= self.size:
            raise CertbenchError(
                f"items {start} to {stop} of split '{self.split}' were asked for, which has "
                f"{self.size}",
                where=str(self.path),
                remedy="lower the limit, or prepare the dataset again",
            )
        if self._file is None:
            self._file = pq.ParquetFile(self.path)
            sizes = [
                self._file.metadata.row_group(i).num_rows
                for i in range(self._file.metadata.num_row_groups)
            ]
            self._starts = np.concatenate([[0], np.cumsum(sizes)])
        low, high = self._first + start, self._first + stop
        first = int(np.searchsorted(self._starts, low, "right")) - 1
        first = min(first, len(self._starts) - 2)
        last = max(first + 1, int(np.searchsorted(self._starts, high, "left")))
        # A job walks through its items in order: the row groups it is in serve many calls.
        if self._held is None or self._groups != (first, last):
            self._held = self._file.read_row_groups(range(first, last), use_threads=False)
            self._groups = (first, last)
        return self._held.slice(low - int(self._starts[first]), stop - start)

    def load(self, start: int, stop: int, masks: bool = False) -> Batch:
        """The items of ranks [start, stop), in rank order.

        Args:
            start: First rank.
            stop: Rank after the last.
            masks: Whether to load the label maps too.

        Raises:
            CertbenchError: The range reaches beyond the split, an image cannot be decoded, images
                differ in shape under the view, or there are no label maps that fit.
        """
        rows = self.rows(start, stop)
        ids = rows.column("item_id").to_pylist()
        images = self.module.read(self.params, rows)
        if len(images) != len(ids):
            raise CertbenchError(
                f"the plug-in returned {len(images)} images for {len(ids)} rows",
                where=str(self.path),
            )
        stacked = self._stack(images, ids)
        return self.described(rows, stacked, self._masks(rows, images) if masks else None)

    def load_masks(self, start: int, stop: int) -> np.ndarray:
        """The label maps of ranks [start, stop) under the view, without their images.

        Returns:
            uint8 [n, H, W], 255 where a pixel has no class.

        Raises:
            CertbenchError: As :meth:`load`.
        """
        return self._masks(self.rows(start, stop), None)

    def described(
        self, rows: pa.Table, images: np.ndarray, masks: np.ndarray | None = None
    ) -> Batch:
        """The batch of index rows with images that were made elsewhere (a stored variant)."""
        labels = rows.column("label").to_pylist()
        return Batch(
            images=images,
            masks=masks,
            labels=np.array([-1 if label is None else label for label in labels], np.int32),
            item_ids=rows.column("item_id").to_pylist(),
            item_index=np.array(rows.column("item_index").to_pylist(), np.uint32),
        )

    def chunks(self, start: int, stop: int, size: int) -> Iterator[Batch]:
        """The items of ranks [start, stop), at most ``size`` at a time."""
        if size < 1:
            raise CertbenchError(f"chunks of {size} items", where=str(self.path))
        for low in range(start, stop, size):
            yield self.load(low, min(low + size, stop))

    def _masks(self, rows: pa.Table, images: list | None) -> np.ndarray:
        if not self.mask_class_names or not label_maps.served(self.module, self.params):
            raise CertbenchError(
                "the dataset has no label maps",
                where=str(self.path),
                remedy="segmentation needs a dataset that serves them",
            )
        if not len(rows):
            return np.zeros((0, *(self.view.size or (0, 0))), np.uint8)
        classes = len(self.mask_class_names)
        found = label_maps.read(self.module, self.params, rows, classes, images)
        seen = [self.view.nearest(mask) for mask in found]
        if len({mask.shape for mask in seen}) > 1:
            raise CertbenchError(
                f"label maps differ in shape under view '{self.view.name}'",
                where=str(self.path),
                remedy="use a view that fixes the shape: squash<H>x<W>, resize<S>_crop<C>",
            )
        return np.stack(seen)

    def _stack(self, images: list, ids: list[str]) -> np.ndarray:
        if not images:
            height, width = self.view.size or (0, 0)
            return np.zeros((0, height, width, 3), np.uint8)
        i = 0
        try:
            first = self.view.apply(images[0])
            stacked = np.empty((len(images), *first.shape), np.uint8)
            stacked[0] = first
            for i in range(1, len(images)):
                pixels = self.view.apply(images[i])
                if pixels.shape != first.shape:
                    raise CertbenchError(
                        f"images differ in shape under view '{self.view.name}': {ids[0]} is "
                        f"{first.shape[0]}x{first.shape[1]}, {ids[i]} is "
                        f"{pixels.shape[0]}x{pixels.shape[1]} (height x width)",
                        where=str(self.path),
                        remedy="use a view that fixes the shape: squash<H>x<W>, resize<S>_crop<C>",
                    )
                stacked[i] = pixels
        except CertbenchError as error:
            if error.where != "view":
                raise
            raise CertbenchError(error.problem, where=ids[i], remedy=error.remedy) from error
        return stacked
