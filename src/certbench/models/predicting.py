"""The bare model on a dataset variant: one row per item."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import numpy as np

from certbench.results import rows
from certbench.variants import applying

if TYPE_CHECKING:
    from certbench.job import Job
    from certbench.models.network import Network


def open_model(job: Job, classes: int) -> Network:
    """The job's model on its device, checked against the dataset's number of classes.

    Raises:
        CertbenchError: Weights do not match their card, or another number of classes.
    """
    from certbench.models import network

    card = json.loads(job.input("model_card").read_text(encoding="utf-8"))
    network.check_classes(
        card, classes, f"model '{job.work['model']}' on '{job.work['dataset']['id']}'"
    )
    return network.load_model(
        job.input("weights"), job.input("model_card"), job.device, job.work.get("plugins", ())
    )


def run(job: Job) -> None:
    """Predict the items of one range.

    Writes rows of kind ``predictions``, or for a segmentation model of kind ``segmentation``.
    """
    import torch

    from certbench.models.network import guard_logits

    if job.work["task"] == "segmentation":
        from certbench.models import segmenting

        return segmenting.run(job)

    start, stop = job.work["items"]
    items = applying.open_items(job, job.work["dataset"])
    model = open_model(job, len(items.class_names))
    found: dict[str, list] = {"label": [], "predict": [], "confidence": [], "label_probability": []}
    ids: list[str] = []
    index: list[np.ndarray] = []
    seconds: list[np.ndarray] = []
    with job.bar(stop - start, f"predict {job.work['model']}", "images") as bar:
        for low in range(start, stop, job.batch_size):
            batch, images = applying.load_batch(job, items, low, min(low + job.batch_size, stop))
            began = time.perf_counter()
            with torch.inference_mode():
                logits = model(images.to(job.device))
                guard_logits(logits, job.work["model"], len(items.class_names))
                probability = torch.softmax(logits.double(), 1).cpu().numpy()
            spent = (time.perf_counter() - began) / len(images)
            predict = probability.argmax(1)
            at = np.arange(len(predict))
            found["label"].append(batch.labels)
            found["predict"].append(predict.astype(np.int32))
            found["confidence"].append(probability[at, predict])
            found["label_probability"].append(probability[at, np.maximum(batch.labels, 0)])
            ids += batch.item_ids
            index.append(batch.item_index)
            seconds.append(np.full(len(predict), spent))
            bar.update(len(images))
    columns: dict = {name: np.concatenate(parts) for name, parts in found.items()}
    columns["correct"] = columns["predict"] == columns["label"]
    columns |= {
        "item_id": ids,
        "item_index": np.concatenate(index),
        "n_forward": np.ones(len(ids), np.int64),
        "device_time_s": np.concatenate(seconds),
    }
    keys = applying.row_keys(job, defense="none")
    made = rows.table("predictions", columns, keys)
    rows.write(job.output("rows"), made, "predictions", job.provenance())
