"""The job ``attack``: one attack on one defended model, variant and range of items."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.certify.noise import seed64
from certbench.certify.protocol import Surface, SurfaceWork
from certbench.errors import CertbenchError
from certbench.models.predicting import open_model
from certbench.params import build
from certbench.results import rows
from certbench.results.atomic import atomic_path
from certbench.threat import as_threat
from certbench.variants import applying

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from certbench.job import Job


# In exact numerics every forward pass is padded to this many images, whatever the configured batch
# size, so that an image's arithmetic does not depend on its company. Small, because late steps work
# on the few images that are left.
EXACT_BATCH = 50


@dataclass
class AttackWork:
    """What an attack plug-in is given; see :mod:`certbench.attacks.protocol`."""

    params: Any
    logits: Any
    judge: Any
    images: torch.Tensor
    labels: torch.Tensor
    item_index: np.ndarray
    item_ids: list[str]
    seed64: int
    device: Any
    batch_size: int
    num_classes: int
    progress: Any
    tick: Callable[[int, int], None]
    exact: bool = False
    artifact: Any = None
    scores: Any = None
    attacked: str = ""
    judged_by: str = ""
    objectives: Mapping[str, Any] = field(default_factory=dict)


def surface_of(job: Job, model: Any, num_classes: int, seed: int) -> Surface:
    """What the attack climbs and what judges it: the bare model, or the job's defence."""
    block = job.work["defense"]
    if block["id"] == "none":
        return Surface(logits=model, judge=None, attacked="base", judged_by="argmax")
    module = job.plugin("certifier", block["name"])
    return module.attack_surface(
        SurfaceWork(
            network=model,
            params=block["params"],
            num_classes=num_classes,
            seed64=seed,
            device=job.device,
            batch_size=job.batch_size,
            numerics=job.work["numerics"],
            noise_backend=job.work["noise_backend"],
        )
    )


def run(job: Job) -> None:
    """Attack one range of items; writes ``attacks`` rows and the adversarial images.

    Each row's ``status`` is ``clean_error`` (wrong before any attack), ``broken`` or ``survived``.
    Images are kept losslessly (float32) beside the rows.
    """
    import torch

    work = job.work
    start, stop = work["items"]
    block = work["attack"]
    module = job.plugin("attack", block["name"])
    params = build(module.Params, block["params"], f"attacks.{block['id']}")
    items = applying.open_items(job, work["dataset"])
    num_classes = len(items.class_names)
    model = open_model(job, num_classes)
    batch, images = applying.load_batch(job, items, start, stop)
    seed = seed64(work["seed"], work["dataset"]["id"])
    surface = surface_of(job, model, num_classes, seed)
    label = f"{block['id']} on {work['defense']['id']} of {work['model']}"
    exact = work["numerics"] == "exact"
    with job.progress() as progress, job.bar(len(images), label, "images") as bar:
        began = time.perf_counter()
        attack_work = AttackWork(
            params=params,
            logits=surface.logits,
            judge=surface.judge,
            images=images.to(job.device),
            labels=torch.from_numpy(batch.labels.astype(np.int64)).to(job.device),
            item_index=batch.item_index.astype(np.int64),
            item_ids=batch.item_ids,
            seed64=seed,
            device=job.device,
            batch_size=EXACT_BATCH if exact else job.batch_size,
            num_classes=num_classes,
            progress=progress,
            tick=lambda done, total: bar.update(done - bar.done),
            exact=exact,
            artifact=job.inputs.get("artifact"),
            scores=surface.scores,
            attacked=surface.attacked,
            judged_by=surface.judged_by,
            objectives=surface.objectives,
        )
        columns = dict(module.attack(attack_work))
        adversarial = np.asarray(columns.pop("x_adv"), np.float32)
        spent = progress.seconds if progress.resumed else time.perf_counter() - began
        if surface.confirm is not None:
            _confirm(columns, surface.confirm, adversarial, batch, attack_work)
        borrowed = _surrogate_images(job, batch.item_index, int(work.get("checks", 0)))
        checks = _checks(attack_work, columns, int(work.get("checks", 0)), borrowed)
        _write(job, module, params, columns, adversarial, batch, images, spent, checks, attack_work)
        progress.clear()


# What a success leaves in the columns, and what stands there where nothing succeeded.
_UNBROKEN = {
    "status": "survived",
    "first_breaking_attack": "",
    "broken_by": "",
    "restart": -1,
    "iterations_to_success": -1,
}


def _confirm(
    columns: dict, confirm: Any, adversarial: np.ndarray, batch: Any, work: AttackWork
) -> None:
    """Judge successes once more with noise that the attack has never seen.

    An attack asks its judge many times, so a lucky draw of the judge's noise may look like success.
    """
    import torch

    broken = np.flatnonzero(np.asarray(columns["status"]) == "broken")
    if not len(broken):
        return
    points = torch.from_numpy(adversarial[broken]).to(work.device)
    answers = confirm(points, items=batch.item_index[broken].astype(np.int64)).cpu().numpy()
    undone = answers == batch.labels[broken]
    if not getattr(work.params, "abstain_breaks", True):
        undone |= answers < 0
    for name, value in _UNBROKEN.items():
        if name in columns:
            changed = np.asarray(columns[name], object if isinstance(value, str) else None).copy()
            changed[broken[undone]] = value
            columns[name] = changed
    predictions = np.asarray(columns["adv_pred"]).copy()
    predictions[broken] = answers
    forward = np.asarray(columns["n_forward"]).copy()
    forward[broken] += np.asarray(getattr(confirm, "spent", getattr(confirm, "passes", 1)))
    columns |= {"adv_pred": predictions, "n_forward": forward}


def _surrogate_images(job: Job, item_index: np.ndarray, limit: int) -> Any:
    """Adversarial images of the surrogate for the first items: float32 [n, C, H, W], or None.

    Raises:
        CertbenchError: An item is not among them.
    """
    if not limit or "surrogate_images" not in job.inputs:
        return None
    import torch

    (path,) = job.inputs["surrogate_images"]
    with np.load(path, allow_pickle=False) as archive:
        row = {int(item): at for at, item in enumerate(archive["item_index"])}
        missing = [int(item) for item in item_index[:limit] if int(item) not in row]
        if missing:
            raise CertbenchError(
                f"item {missing[0]} is missing",
                where=str(path),
                remedy="delete the file and run again",
            )
        images = archive["x_adv"][[row[int(item)] for item in item_index[:limit]]]
    return torch.from_numpy(images).to(job.device)


def _checks(
    work: AttackWork, columns: dict, limit: int, surrogate_adv: Any
) -> list[dict[str, Any]]:
    """Checks C1 to C12 of this evaluation on its first images, where they are asked for."""
    if not limit or not hasattr(work.params, "norm"):
        return []
    from certbench.attacks import checks

    found = checks.examine(work, columns, limit=limit, surrogate_adv=surrogate_adv)
    return [check.row() for check in found]


def _write(job, module, params, columns, adversarial, batch, images, spent, checks, work) -> None:
    threat = as_threat(module.threat(params))
    # An attack from elsewhere may say nothing of itself; what it was given is known.
    for name, text in (("attacked", work.attacked), ("judged_by", work.judged_by)):
        columns.setdefault(name, np.full(len(adversarial), text or None, object))
    columns.setdefault("knowledge", np.full(len(adversarial), "not stated"))
    delta = (adversarial - images.numpy()).astype(np.float64).reshape(len(adversarial), -1)
    columns |= {
        "label": batch.labels,
        "item_id": batch.item_ids,
        "item_index": batch.item_index,
        "pert_linf": np.abs(delta).max(1, initial=0.0),
        "pert_l2": np.sqrt((delta**2).sum(1)),
    }
    passes = np.asarray(columns.get("n_forward", np.ones(len(adversarial))), np.float64)
    columns["device_time_s"] = spent * passes / max(passes.sum(), 1.0)
    keys = applying.row_keys(
        job,
        defense=job.work["defense"]["id"],
        attack=job.work["attack"]["id"],
        **threat.row(),
    )
    with atomic_path(job.output("images")) as path:
        np.savez_compressed(
            path, x_adv=adversarial, item_index=batch.item_index, label=batch.labels
        )
    made = rows.table("attacks", columns, keys, module.columns)
    footer = job.provenance(device_time_s=spent, shape=list(images.shape[1:]), checks=checks)
    rows.write(job.output("rows"), made, "attacks", footer)
