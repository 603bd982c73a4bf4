"""The job ``collect``: model calls of a certifier for one shard of items and samples."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import numpy as np

from certbench.certify.noise import seed64
from certbench.certify.protocol import CollectWork
from certbench.models.predicting import open_model
from certbench.results import rows
from certbench.variants import applying

if TYPE_CHECKING:
    from certbench.job import Job


def run(job: Job) -> None:
    """Collect one shard; writes rows of kind ``stats`` with the shard's identity in the footer."""
    work = job.work
    start, stop = work["items"]
    module = job.plugin("certifier", work["defense"]["name"])
    items = applying.open_items(job, work["dataset"])
    model = open_model(job, len(items.class_names))
    batch, images = applying.load_batch(job, items, start, stop)
    first, last = work["samples"]
    card = json.loads(job.input("model_card").read_text())
    total = len(images) * ((last or 1) - first)
    label = f"{work['defense']['id']} of {work['model']}"
    unit = "images" if last is None else "passes"
    with job.progress() as progress, job.bar(total, label, unit) as bar:
        began = time.perf_counter()
        collect_work = CollectWork(
            network=model,
            params=work["defense"]["collect"],
            images=images,
            labels=batch.labels,
            item_index=batch.item_index,
            samples=(first, last),
            seed64=seed64(work["seed"], work["dataset"]["id"]),
            device=job.device,
            batch_size=job.batch_size,
            numerics=work["numerics"],
            noise_backend=work["noise_backend"],
            model_sha256=card["sha256"],
            variant=work["variant"]["variant_id"],
            progress=progress,
            tick=bar.update,
        )
        columns, identity = module.collect(collect_work)
        spent = progress.seconds if progress.resumed else time.perf_counter() - began
        slot = np.asarray(columns.pop("slot"))
        ids = np.array(batch.item_ids, object)
        columns |= {"item_id": ids[slot], "item_index": batch.item_index[slot]}
        keys = applying.row_keys(job, defense=work["defense"]["id"])
        made = rows.table("stats", columns, keys, module.stats_columns)
        labels = {
            "item_index": batch.item_index.tolist(),
            "item_id": batch.item_ids,
            "label": batch.labels.tolist(),
        }
        footer = job.provenance(identity=identity, items=labels, device_time_s=spent)
        rows.write(job.output("rows"), made, "stats", footer)
        progress.clear()
