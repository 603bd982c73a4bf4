"""The job ``fit``: what an attack learns before it attacks (a universal patch, a surrogate)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from certbench.attacks.running import AttackWork, surface_of
from certbench.certify.noise import seed64
from certbench.models.predicting import open_model
from certbench.params import build
from certbench.results.atomic import atomic_path
from certbench.variants import applying

if TYPE_CHECKING:
    from certbench.job import Job


def run(job: Job) -> None:
    """Fit on the training split; writes the artifact (named tensors) as safetensors.

    The plug-in states ``fit_split`` (default ``train``) and ``fit_limit`` (default 1000 items).
    """
    import torch
    from safetensors.torch import save_file

    work = job.work
    block = work["attack"]
    module = job.plugin("attack", block["name"])
    params = build(module.Params, block["params"], f"attacks.{block['id']}")
    items = applying.open_items(job, work["dataset"])
    model = open_model(job, len(items.class_names))
    stop = min(items.size, int(getattr(module, "fit_limit", 1000)))
    batch = items.load(0, stop)
    seed = seed64(work["seed"], work["dataset"]["id"])
    surface = surface_of(job, model, len(items.class_names), seed)
    with job.progress() as progress, job.bar(stop, f"fit {block['id']}", "images") as bar:
        artifact = module.fit(
            AttackWork(
                params=params,
                logits=surface.logits,
                judge=surface.judge,
                images=applying.to_tensor(batch.images).to(job.device),
                labels=torch.from_numpy(batch.labels.astype(np.int64)).to(job.device),
                item_index=batch.item_index.astype(np.int64),
                item_ids=batch.item_ids,
                seed64=seed,
                device=job.device,
                batch_size=job.batch_size,
                num_classes=len(items.class_names),
                progress=progress,
                tick=lambda done, total: bar.update(done - bar.done),
                exact=work["numerics"] == "exact",
            )
        )
        tensors = {name: value.detach().cpu().contiguous() for name, value in artifact.items()}
        with atomic_path(job.output("artifact")) as path:
            save_file(tensors, path)
        progress.clear()
