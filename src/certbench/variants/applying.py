"""From a prepared dataset to network input: items, view, variant steps, [0, 1].

Every job that needs images goes through :func:`load_batch`, so that predictions, certificates and
attacks of a variant see the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.errors import CertbenchError
from certbench.params import build

if TYPE_CHECKING:
    import torch

    from certbench.datasets.access import Batch, Items
    from certbench.job import Job


def open_items(job: Job, block: Mapping[str, Any]) -> Items:
    """The items of a job's dataset block (``plugin``, ``params``, ``split``, ``view``)."""
    from certbench.datasets.access import Items

    module = job.plugin("dataset", block["plugin"])
    params = build(module.Params, block["params"], f"datasets.{block['id']}")
    return Items(job.input("index"), block["split"], block["view"], module, params)


def apply_steps(
    steps: Sequence[Mapping[str, Any]],
    images: np.ndarray,
    item_ids: list[str],
    seed: int,
    dataset: str,
    load: Callable[[str, str], Any],
    item_index: np.ndarray | None = None,
    files: Sequence[Path] = (),
) -> np.ndarray:
    """Apply variant steps in order.

    Args:
        steps: Blocks with ``name`` and ``params``.
        images: uint8 [N, H, W, 3], or float32 in [0, 1].
        item_ids: N names; randomness belongs to them.
        seed: Run seed.
        dataset: Id of the dataset.
        load: ``(kind, name) -> plug-in module``.
        item_index: uint32 [N], for steps that read an attack's images.
        files: The image files of that attack.

    Returns:
        uint8 or float32 [N, H, W, 3]. A step that needs uint8 gets float images rounded to levels.

    Raises:
        CertbenchError: A step changed the shape or left the value range.
    """
    for step in steps:
        module = load("variant", step["name"])
        params = build(module.Params, step["params"], f"variant step {step['name']}")
        if getattr(module, "needs_uint8", False) and images.dtype != np.uint8:
            images = np.rint(images * 255.0).clip(0, 255).astype(np.uint8)
        extra = {}
        if getattr(module, "reads_attack", False):
            extra = {"item_index": item_index, "files": files}
        made = module.apply(params, images, item_ids, seed, dataset, **extra)
        if made.shape != images.shape:
            raise CertbenchError(
                f"changed the shape from {images.shape} to {made.shape}",
                where=f"variant step {step['name']}",
                remedy="geometry belongs to the view; a step keeps the shape",
            )
        if made.dtype != np.uint8:
            made = np.asarray(made, np.float32)
            if made.size and not (made.min() >= 0.0 and made.max() <= 1.0):
                raise CertbenchError(
                    "returned float images outside [0, 1]", where=f"variant step {step['name']}"
                )
        images = made
    return images


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """float32 [N, 3, H, W] in [0, 1] from uint8 or float32 [N, H, W, 3]."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return tensor.float().div_(255.0) if tensor.dtype == torch.uint8 else tensor


def load_batch(job: Job, items: Items, start: int, stop: int) -> tuple[Batch, torch.Tensor]:
    """Items [start, stop) of the job's dataset and variant: the batch and its network input.

    Returns:
        The batch with its variant's images, and float32 [N, 3, H, W] in [0, 1] on the CPU.
    """
    import dataclasses

    batch = items.load(start, stop)
    images = apply_steps(
        job.work["variant"]["steps"],
        batch.images,
        batch.item_ids,
        int(job.work["seed"]),
        job.work["dataset"]["id"],
        job.plugin,
        batch.item_index,
        job.inputs.get("variant_images", ()),
    )
    return dataclasses.replace(batch, images=images), to_tensor(images)


def row_keys(job: Job, **extra: Any) -> dict[str, Any]:
    """The key columns that are constant in a job's rows."""
    work = job.work
    dataset = work["dataset"]
    keys = {
        "task": work["task"],
        "dataset": dataset["id"],
        "split": dataset["split"],
        "view": dataset["view"],
        "variant_id": work["variant"]["variant_id"] if "variant" in work else None,
        "model": work["model"],
        "seed": work["seed"],
    }
    return {**keys, **extra}
