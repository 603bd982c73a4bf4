"""From a prepared dataset to network input: items, view, variant steps, [0, 1].

Every job that needs images goes through :func:`load_batch`, so that predictions, certificates and
attacks of a variant see the same pixels, made on the fly or stored before.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.errors import CertbenchError
from certbench.params import build
from certbench.variants.protocol import Source, needs_of

if TYPE_CHECKING:
    import torch

    from certbench.datasets.access import Batch, Items
    from certbench.job import Job


def open_items(job: Job, block: Mapping[str, Any]) -> Items:
    """The items of a job's dataset block (``plugin``, ``params``, ``split``, ``view``).

    Raises:
        CertbenchError: No such index or split, or a step of the job's variant cannot be applied to
            the job's items (missing files, for example).
    """
    from certbench.datasets.access import Items

    module = job.plugin("dataset", block["plugin"])
    params = build(module.Params, block["params"], f"datasets.{block['id']}")
    items = Items(job.input("index"), block["split"], block["view"], module, params)
    if "stored" not in job.inputs:
        for step in job.work.get("variant", {}).get("steps", ()):
            plugin = job.plugin("variant", step["name"])
            if hasattr(plugin, "check"):
                rows = items.rows(*job.work["items"])
                source = Source(items.module, items.params, rows, items.view)
                with _naming(plugin, step):
                    plugin.check(_params(plugin, step), source)
    return items


def apply_steps(
    steps: Sequence[Mapping[str, Any]],
    images: np.ndarray,
    item_ids: list[str],
    seed: int,
    dataset: str,
    load: Callable[[str, str], Any],
    **context: Any,
) -> np.ndarray:
    """Apply variant steps in order.

    Args:
        steps: Blocks with ``name`` and ``params``.
        images: uint8 [N, H, W, 3], or float32 in [0, 1].
        item_ids: N names; randomness belongs to them.
        seed: Run seed.
        dataset: Id of the dataset.
        load: ``(kind, name) -> plug-in module``.
        **context: What steps may need, see :data:`certbench.variants.protocol.NEEDS`.

    Returns:
        uint8 or float32 [N, H, W, 3]. A step that needs uint8 gets float images rounded to levels.

    Raises:
        CertbenchError: A step changed the shape or left the value range.
    """
    for step in steps:
        module = load("variant", step["name"])
        params = _params(module, step)
        if getattr(module, "needs_uint8", False) and images.dtype != np.uint8:
            images = np.rint(images * 255.0).clip(0, 255).astype(np.uint8)
        extra = {need: context.get(need) for need in needs_of(module, step["name"])}
        with _naming(module, step):
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


def apply_label_maps(
    steps: Sequence[Mapping[str, Any]],
    maps: np.ndarray,
    item_ids: list[str],
    seed: int,
    dataset: str,
    load: Callable[[str, str], Any],
    **context: Any,
) -> np.ndarray:
    """Label maps in a variant: steps that move objects or the camera move labels too.

    Args:
        steps: Blocks with ``name`` and ``params``.
        maps: Label maps of the clean images under the view, uint8 [N, H, W].
        item_ids: N names; randomness belongs to them.
        seed: Run seed.
        dataset: Id of the dataset.
        load: ``(kind, name) -> plug-in module``.
        **context: As for :func:`apply_steps`.

    Returns:
        uint8 [N, H, W].
    """
    for step in steps:
        module = load("variant", step["name"])
        if hasattr(module, "label_maps"):
            extra = {need: context.get(need) for need in needs_of(module, step["name"])}
            with _naming(module, step):
                params = _params(module, step)
                made = module.label_maps(params, maps, item_ids, seed, dataset, **extra)
            if made.shape != maps.shape or made.dtype != np.uint8:
                raise CertbenchError(
                    f"gave label maps {made.dtype} {made.shape} for {maps.shape}",
                    where=f"variant step {step['name']}",
                )
            maps = made
    return maps


def as_coded(variant: Mapping[str, Any], images: np.ndarray) -> np.ndarray:
    """Images as they come back from the variant's encoding, where that changes pixels."""
    if "encoding" not in variant:
        return images
    from certbench.variants import stored

    return stored.as_coded(images, variant["encoding"], variant["variant_id"])


def context_of(
    batch: Batch, items: Items, start: int, attack_images: Sequence[Any] = ()
) -> dict[str, Any]:
    """What steps may need beside the images.

    Args:
        batch: Items [start, start + n).
        items: Where they come from.
        start: Rank of the first.
        attack_images: Image files of an attack, for adversarial steps.
    """
    rows = items.rows(start, start + len(batch))
    return {
        "item_index": batch.item_index,
        "labels": batch.labels,
        "attack_images": attack_images,
        "source": Source(items.module, items.params, rows, items.view),
    }


def _params(module: Any, step: Mapping[str, Any]) -> Any:
    return build(module.Params, step["params"], f"variant step {step['name']}")


@contextlib.contextmanager
def _naming(module: Any, step: Mapping[str, Any]) -> Iterator[None]:
    """Complete messages of a step that name a key of its parameters with the step."""
    try:
        yield
    except CertbenchError as error:
        if error.where not in {field.name for field in dataclasses.fields(module.Params)}:
            raise
        where = f"variant step {step['name']}: {error.where}"
        raise CertbenchError(error.problem, where=where, remedy=error.remedy) from error


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """float32 [N, 3, H, W] in [0, 1] from uint8 or float32 [N, H, W, 3]."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return tensor.float().div_(255.0) if tensor.dtype == torch.uint8 else tensor


def load_images(
    job: Job, items: Items, start: int, stop: int, masks: bool = False, coded: bool = True
) -> Batch:
    """Items [start, stop) of the job's dataset as its variant shows them.

    Args:
        job: The job; where it has the input ``stored``, images come from that file.
        items: The job's items.
        start: First rank.
        stop: Rank after the last.
        masks: Whether to load the label maps too, as the variant's steps leave them.
        coded: Whether the images have gone through the variant's encoding.
    """
    if "stored" in job.inputs:
        from certbench.variants import stored

        rows = items.rows(start, stop)
        file = stored.Stored(job.input("stored"), job.work, start, rows)
        return items.described(rows, file.images(), file.masks() if masks else None)
    batch = items.load(start, stop, masks=masks)
    steps, seed = job.work["variant"]["steps"], int(job.work["seed"])
    named = (batch.item_ids, seed, job.work["dataset"]["id"], job.plugin)
    context = context_of(batch, items, start, job.inputs.get("attack_images", ()))
    images = apply_steps(steps, batch.images, *named, **context)
    if coded:
        images = as_coded(job.work["variant"], images)
    maps = batch.masks
    if maps is not None:
        maps = apply_label_maps(steps, maps, *named, **context)
    return dataclasses.replace(batch, images=images, masks=maps)


def load_batch(
    job: Job, items: Items, start: int, stop: int, masks: bool = False
) -> tuple[Batch, torch.Tensor]:
    """Items [start, stop) of the job's dataset and variant: the batch and its network input.

    Returns:
        The batch with its variant's images (and label maps, if asked for), and float32
        [N, 3, H, W] in [0, 1] on the CPU.
    """
    batch = load_images(job, items, start, stop, masks)
    return batch, to_tensor(batch.images)


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
