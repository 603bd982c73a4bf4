"""The job ``materialise``: the images of a variant, made once and stored for all jobs on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.datasets import masks as label_maps
from certbench.variants import applying, stored

if TYPE_CHECKING:
    from certbench.datasets.access import Batch
    from certbench.job import Job

# Images made between two saves; a kill costs at most these and what was not yet written.
_CHUNK = 20
_WRITE_EVERY_S = 20.0


def run(job: Job) -> None:
    """Store the images (and label maps) of one range of items; writes ``images`` (Parquet).

    What was made is kept as encoded bytes, so that a killed job goes on. What is written does not
    depend on interruptions.
    """
    work = job.work
    start, stop = work["items"]
    variant = work["variant"]
    encoding = variant.get("encoding", "png")
    items = applying.open_items(job, work["dataset"])
    masks = bool(items.mask_class_names) and label_maps.served(items.module, items.params)
    label = f"materialise {variant['variant_id']}"
    with job.progress(_WRITE_EVERY_S) as progress:
        made = _Made(progress.load() or {})
        with job.bar(stop - start, label, "images", done=made.count) as bar:
            for low in range(start + made.count, stop, _CHUNK):
                high = min(low + _CHUNK, stop)
                batch = applying.load_images(job, items, low, high, masks, coded=False)
                made.add(batch, encoding, variant["variant_id"])
                progress.save(made.state())
                bar.update(len(batch))
        rows = items.rows(start, stop)
        described = items.described(rows, np.empty((len(rows), 0)))
        footer = job.provenance(
            encoding=encoding, shape=made.shape, dtype=made.dtype, seconds=progress.seconds
        )
        table = stored.table(described, made.columns, items.class_names)
        stored.write(job.output("images"), table, footer)
        progress.clear()


class _Made:
    """Bytes of what was made so far, by column of the file."""

    def __init__(self, state: Mapping[str, Any]):
        self.shape: list[int] = state.get("shape", [])
        self.dtype: str = state.get("dtype", "")
        self.columns: dict[str, list[bytes]] = {
            name: _split(state[name], state[f"{name}_sizes"]) for name in state.get("columns", ())
        }

    @property
    def count(self) -> int:
        """Items made."""
        return len(self.columns.get("image", ()))

    def add(self, batch: Batch, encoding: str, variant_id: str) -> None:
        """Encode and keep a batch."""
        images = batch.images
        self.shape, self.dtype = list(images.shape[1:]), str(images.dtype)
        fresh = {"image": stored.encode_all(images, encoding, variant_id)}
        if images.dtype != np.uint8:
            fresh["pixels"] = [image.astype("<f4").tobytes() for image in images]
        if batch.masks is not None:
            fresh["mask"] = [label_maps.png(mask) for mask in batch.masks]
        for name, values in fresh.items():
            self.columns.setdefault(name, []).extend(values)

    def state(self) -> dict[str, Any]:
        """What a progress file can hold: arrays and JSON values."""
        state: dict[str, Any] = {
            "shape": self.shape,
            "dtype": self.dtype,
            "columns": list(self.columns),
        }
        for name, values in self.columns.items():
            state[name] = np.frombuffer(b"".join(values), np.uint8)
            state[f"{name}_sizes"] = np.array([len(value) for value in values], np.int64)
        return state


def _split(joined: np.ndarray, sizes: np.ndarray) -> list[bytes]:
    ends = np.cumsum(sizes)
    return [joined[end - size : end].tobytes() for end, size in zip(ends, sizes, strict=True)]
