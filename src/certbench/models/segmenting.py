"""The bare segmentation model on a dataset variant: what it says of the pixels of each class.

Every metric of segmentation is a ratio of sums of these counts over the data set, so that it can be
formed of any subset of the images, of several files together, or of resampled images.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from certbench.datasets import masks
from certbench.models.network import guard_logits
from certbench.models.predicting import open_model
from certbench.results import rows
from certbench.variants import applying

if TYPE_CHECKING:
    from certbench.job import Job

PICTURES = 50
"""Predicted maps of so many first items of a split are kept, for figures."""

# Larger batches are taken in parts: the maps of activations of one batch must fit into memory.
_PIXELS = 1 << 21


def run(job: Job) -> None:
    """Segment the items of one range; writes rows of kind ``segmentation``.

    Raises:
        CertbenchError: The dataset has no label maps, or other classes than the model.
    """
    start, stop = job.work["items"]
    items = applying.open_items(job, job.work["dataset"])
    names = items.mask_class_names
    model = open_model(job, len(names))
    found: list[np.ndarray] = []
    ids: list[str] = []
    index: list[np.ndarray] = []
    seconds: list[np.ndarray] = []
    pictures: list[bytes | None] = []
    with job.bar(stop - start, f"predict {job.work['model']}", "images") as bar:
        for low in range(start, stop, job.batch_size):
            high = min(low + job.batch_size, stop)
            batch, images = applying.load_batch(job, items, low, high, masks=True)
            assert batch.masks is not None
            size = (images.shape[2], images.shape[3])
            part = max(1, _PIXELS // (size[0] * size[1]))
            for first in range(0, len(images), part):
                last = min(first + part, len(images))
                began = time.perf_counter()
                with torch.inference_mode():
                    logits = model(images[first:last].to(job.device))
                    guard_logits(logits, job.work["model"], len(names), size)
                    predicted = logits.argmax(1)
                    wanted = torch.from_numpy(batch.masks[first:last]).to(job.device)
                    counts = class_counts(predicted, wanted, len(names)).cpu().numpy()
                spent = (time.perf_counter() - began) / (last - first)
                found.append(counts)
                seconds.append(np.full(last - first, spent))
                kept = max(0, min(last, PICTURES - low) - first)
                maps = predicted[:kept].to(torch.uint8).cpu().numpy()
                pictures += [masks.png(one) for one in maps] + [None] * (last - first - kept)
                bar.update(last - first)
            ids += batch.item_ids
            index.append(batch.item_index)
    made = table(
        np.concatenate(found),
        names,
        {
            "item_id": np.array(ids, object),
            "item_index": np.concatenate(index),
            "n_forward": np.ones(len(ids), np.int64),
            "device_time_s": np.concatenate(seconds),
            "predicted_map": np.array(pictures, object),
        },
        applying.row_keys(job, defense="none"),
    )
    rows.write(job.output("rows"), made, "segmentation", job.provenance())


def class_counts(predicted: torch.Tensor, wanted: torch.Tensor, classes: int) -> torch.Tensor:
    """How many pixels of each class an image has, is said to have, and both.

    Args:
        predicted: Class of each pixel, integers [N, H, W] in 0 .. classes - 1.
        wanted: Label maps, integers [N, H, W]; pixels of 255 count nowhere.
        classes: Number K of classes.

    Returns:
        int64 [N, 3, K]: intersection, predicted pixels, label pixels.
    """
    predicted, wanted = predicted.flatten(1).long(), wanted.flatten(1).long()
    n = len(predicted)
    # Pixels without a class go to a bin of their own, which is dropped.
    none = wanted == masks.IGNORE
    base = torch.arange(n, device=predicted.device)[:, None] * (classes + 1)

    def counted(values: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        bins = base + values.masked_fill(out, classes)
        flat = torch.bincount(bins.flatten(), minlength=n * (classes + 1))
        return flat.view(n, classes + 1)[:, :classes]

    both = counted(wanted, none | (predicted != wanted))
    return torch.stack([both, counted(predicted, none), counted(wanted, none)], 1)


def table(counts: np.ndarray, names: tuple[str, ...], columns: dict, keys: dict):
    """Rows of kind ``segmentation``.

    Args:
        counts: int64 [N, 3, K] as from :func:`class_counts`.
        names: Names of the K classes.
        columns: Columns of the N items; all but the names of the items stand in one row of each.
        keys: Columns that are constant.

    Returns:
        A pyarrow table, a row for each item and each class that it shows or is said to show.
    """
    every = np.arange(len(names)) == 0  # so that each item has a row
    item, class_id = np.nonzero((counts[:, 1:] > 0).any(1) | every)
    once = class_id == 0
    made: dict = {
        "class_id": class_id.astype(np.int32),
        "class_name": np.array(names, object)[class_id],
    }
    for position, column in enumerate(("intersection", "predicted_pixels", "label_pixels")):
        made[column] = counts[item, position, class_id]
    for column, values in columns.items():
        spread = values[item]
        if column not in ("item_id", "item_index"):
            spread = np.where(once, spread.astype(object), None)
        made[column] = spread
    return rows.table("segmentation", made, keys)
