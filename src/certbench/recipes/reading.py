"""A whole split in one array: in memory, or, if it is large, in a nameless file on the disk."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from certbench.datasets.access import Items
from certbench.errors import CertbenchError
from certbench.job import Job
from certbench.params import build

IN_MEMORY_BYTES = 4 << 30
_CHUNK = 256  # images decoded by one call


@dataclass(frozen=True)
class Split:
    """Images and labels of a split.

    Attributes:
        images: uint8 [N, 3, H, W].
        labels: int64 [N], -1 where an item has no label; for segmentation label maps, uint8
            [N, H, W] with 255 where a pixel has no class.
        class_names: Name of each class of the labels or label maps.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]


def read_split(job: Job, index: str, split: str, limit: int | None = None) -> Split:
    """Read and decode a split of the job's dataset, with as many threads as the job has.

    Args:
        job: A training job; its work names the dataset, and the task says what labels are.
        index: Name of the input that holds the split's index.
        split: Name of the split.
        limit: Largest number of images, or None.

    Raises:
        CertbenchError: The split is empty, an image cannot be decoded, label maps are asked for and
            there are none that fit, or the disk is full.
    """
    dataset = job.work["dataset"]
    plugin = job.plugin("dataset", dataset["plugin"])
    params = build(plugin.Params, dataset["params"], f"config: datasets.{dataset['id']}")

    def opened() -> Items:
        return Items(job.input(index), split, dataset["view"], plugin, params)

    items = opened()
    size = items.size if limit is None else min(limit, items.size)
    if not size:
        raise CertbenchError(
            f"split '{split}' has no items",
            where=f"dataset '{dataset['id']}'",
            remedy="choose another split, or check the dataset's folder",
        )
    task = job.work.get("task", "classification")
    masks = task == "segmentation"
    height, width, channels = items.load(0, 1, masks=masks).images.shape[1:]
    images = _storage((size, channels, height, width))
    labels = _storage((size, height, width)) if masks else np.empty(size, np.int64)
    with job.bar(size, f"read {split}", "images") as bar:
        _fill(images, labels, opened, job.threads, bar.update)
    return Split(torch.from_numpy(images), torch.from_numpy(labels), items.card.classes(task))


def _fill(
    images: np.ndarray,
    labels: np.ndarray,
    opened: Callable[[], Items],
    threads: int,
    tick: Callable[[int], None],
) -> None:
    own = threading.local()  # an Items object keeps the rows it read last: one for each thread

    def read(start: int) -> int:
        if not hasattr(own, "items"):
            own.items = opened()
        stop = min(start + _CHUNK, len(labels))
        batch = own.items.load(start, stop, masks=labels.ndim > 1)
        if batch.images.shape[1:3] != images.shape[2:]:
            raise CertbenchError(
                f"images differ in shape: {batch.images.shape[1:3]} and {images.shape[2:]}",
                where=batch.item_ids[0],
                remedy="use a view that fixes the shape: squash<H>x<W>, resize<S>_crop<C>",
            )
        images[start:stop] = np.moveaxis(batch.images, -1, 1)
        labels[start:stop] = batch.labels if batch.masks is None else batch.masks
        return stop - start

    with ThreadPoolExecutor(max(1, threads)) as pool:
        try:
            for count in pool.map(read, range(0, len(labels), _CHUNK)):
                tick(count)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _storage(shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialised uint8 array; a large one lies in a nameless file, gone with the job."""
    size = int(np.prod(shape))
    if size <= IN_MEMORY_BYTES:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise CertbenchError(
                f"no room for {size / 2**30:.0f} GiB of decoded images",
                where=tempfile.gettempdir(),
                remedy="set TMPDIR to a larger disk of the node, or lower train_on.limit",
            ) from error
        return np.memmap(file, np.uint8, "r+", shape=shape)
