"""A whole study without a model: fabricated rows upstream, the project's own jobs downstream.

Predictions, certificates and attacks are drawn from a seeded generator; preparing, audit and tables
are the real jobs. So figures and report meet real files, in the time that writing them takes.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from certbench import job as jobs
from certbench import plan as planning
from certbench.certify import randomized_smoothing
from certbench.certify.intervals import cp_lower
from certbench.certify.radii import radius_one
from certbench.params import build
from certbench.results import rows
from certbench.results.atomic import write_text
from certbench.threat import Threat

N, ALPHA, SIGMA = 1000, 0.001, 0.5

CONFIG: dict[str, Any] = {
    "shards": {"items": 40, "samples": 1100},
    "datasets": {"digits": {"type": "digits"}},
    "models": {
        name: {
            "builder": {"type": "small_cnn"},
            "recipe": {"type": "standard", "epochs": 4},
            "train_on": {"dataset": "digits", "view": "squash32"},
        }
        for name in ("plain", "noisy")
    },
    "defenses": {
        "smoothing": {
            "type": "randomized_smoothing",
            "sigma": SIGMA,
            "n": N,
            "alpha": ALPHA,
        }
    },
    "attacks": {
        "pgd-l2": {"type": "pgd", "norm": "l2", "epsilon": 0.5},
        "pgd-linf": {"type": "pgd", "norm": "linf", "epsilon": 8 / 255},
    },
    "variants": {
        "shift": {
            "type": "corruption",
            "corruption": ["fog", "contrast", "gaussian_noise"],
            "severity": 3,
            "severity_table": "cifar32",
        }
    },
    "metrics": [
        {"type": "accuracy"},
        {"type": "certified"},
        {"type": "attacked"},
        {"type": "gap"},
        {"type": "paired"},
        {
            "type": "corruption",
            "types": ["fog", "contrast", "gaussian_noise"],
            "severities": [3],
            "references": ["plain"],
        },
    ],
    "figures": {
        name.replace("_", "-"): {"type": name, "caption": f"Caption of {name}."}
        for name in (
            "certified_curve",
            "shift",
            "attack_summary",
            "audit_bars",
            "pa_distribution",
            "cost",
            "gallery",
            "training",
        )
    },
    "experiments": [
        {
            "name": "attacked",
            "title": "Digits under attack",
            "datasets": [{"name": "digits", "view": "squash32", "limit": 40}],
            "models": ["plain", "noisy"],
            "defenses": ["none", "smoothing"],
            "attacks": ["pgd-l2", "pgd-linf"],
            "threats": [{"kind": "lp", "norm": "l2", "size": 0.5}],
        },
        {
            "name": "shifted",
            "title": "Digits under shift",
            "datasets": [{"name": "digits", "view": "squash32", "limit": 40}],
            "variants": ["clean", "shift"],
            "models": ["plain", "noisy"],
            "defenses": ["none", "smoothing"],
            "exclude": [{"model": "plain", "defense": "smoothing"}],
        },
    ],
}


_SHARED: list[tuple[Path, planning.Plan]] = []


def shared(tmp_path_factory: Any) -> tuple[Path, planning.Plan]:
    """One finished study for a whole test session: its folder and its plan."""
    if not _SHARED:
        folder = tmp_path_factory.mktemp("study")
        before = Path.cwd()
        os.chdir(folder)
        try:
            made = study(CONFIG)
            finish(made)
        finally:
            os.chdir(before)
        _SHARED.append((folder, made))
    return _SHARED[0]


def study(config: dict[str, Any], violations: int = 0) -> planning.Plan:
    """Fabricate all results of a configuration, up to tables, in the working folder.

    Args:
        config: The configuration.
        violations: Number of certificates that the attacks on smoothing break inside their region.
    """
    made = planning.make(config)
    order = ("prepare", "train", "predict", "collect", "decide", "attack", "audit", "table")
    for rule in order:
        for (name, _), job in made.jobs.items():
            if name == rule:
                if rule in ("prepare", "audit", "table"):
                    run(job)
                else:
                    globals()[f"_{rule}"](_job(job), violations)
    return made


def run(job: planning.PlannedJob) -> None:
    """Run a planned job as the workflow would."""
    code = jobs.execute(
        job.rule,
        json.loads(job.work_text),
        {name: [Path(p) for p in paths] for name, paths in job.inputs.items()},
        {name: Path(path) for name, path in job.outputs.items()},
        Path("results/logs") / f"{job.rule}.log",
    )
    assert code == 0, Path(f"results/logs/{job.rule}.log").read_text()


def finish(made: planning.Plan) -> Path:
    """Draw all figures and build the report; returns its path."""
    for rule in ("figure", "report"):
        for (name, _), job in made.jobs.items():
            if name == rule:
                run(job)
    return Path(made.jobs["report", ()].outputs["html"])


def _job(job: planning.PlannedJob) -> jobs.Job:
    return jobs.Job(
        job.rule,
        json.loads(job.work_text),
        {name: [Path(p) for p in paths] for name, paths in job.inputs.items()},
        {name: Path(path) for name, path in job.outputs.items()},
    )


def _footer(job: jobs.Job, **extra: Any) -> dict[str, Any]:
    """Provenance as on a machine that does not change between runs."""
    return {
        **job.provenance(**extra),
        "commit": "0123456789abcdef",
        "torch": "2.9.0",
        "device": "cpu",
        "wall_time_s": 12.5,
    }


def _generator(*key: Any) -> np.random.Generator:
    return np.random.default_rng([sum(map(ord, str(part))) for part in key])


def _items(job: jobs.Job, start: int, stop: int, masks: bool = False):
    from certbench.datasets.access import Items

    block = job.work["dataset"]
    module = job.plugin("dataset", block["plugin"])
    index = next(iter(Path("results/datasets").glob(f"{block['id']}/**/{block['split']}/index.*")))
    items = Items(
        index, block["split"], block["view"], module, build(module.Params, block["params"], "")
    )
    return items.load(start, stop, masks=masks)


def _keys(job: jobs.Job, variant: str, **extra: Any) -> dict[str, Any]:
    block = job.work["dataset"]
    return {
        "task": job.work["task"],
        "dataset": block["id"],
        "split": block["split"],
        "view": block["view"],
        "variant_id": variant,
        "model": job.work["model"],
        "seed": job.work["seed"],
        **extra,
    }


def _margin(model: str, variant: str, item_index: np.ndarray) -> np.ndarray:
    """How far each image is from being misclassified; lower under shift."""
    shared = np.array([_generator("item", int(i)).normal() for i in item_index])
    own = np.array([_generator(model, variant, int(i)).normal() for i in item_index])
    shift = {"clean": 1.9}.get(variant, 0.4 + 0.2 * (len(variant) % 5))
    return shift + shared + 0.4 * own


def _train(job: jobs.Job, _: int) -> None:
    epochs = np.arange(1, 5)
    columns = {
        "epoch": epochs,
        "loss": 2.0 / epochs,
        "accuracy": 1 - 0.5 / epochs,
        "learning_rate": [0.1] * 4,
        "wall_time_s": [1.0] * 4,
    }
    keys = {
        "task": "classification",
        "dataset": "digits",
        "split": "train",
        "model": job.work["model"],
    }
    rows.write(
        job.output("training"), rows.table("training", columns, keys), "training", _footer(job)
    )
    write_text(job.output("weights"), "no weights")
    card = {
        "model": job.work["model"],
        "task": "classification",
        "builder": "small_cnn",
        "builder_version": 1,
        "builder_params": {"width": 16},
        "origin": {
            "kind": "trained",
            "dataset": "digits",
            "split": "train",
            "view": "squash32",
            "images": 1097,
        },
        "recipe": job.work["recipe"],
        "parameters": 19546,
        "seed": 0,
        "sha256": "ab" * 32,
        "mean": [0.3] * 3,
        "std": [0.3] * 3,
        "num_classes": 10,
    }
    write_text(job.output("card"), json.dumps(card))


def _segment(job: jobs.Job) -> None:
    """Label maps with rectangles of another class, larger ones under shift."""
    import torch

    from certbench.datasets import masks
    from certbench.models import segmenting

    batch = _items(job, *job.work["items"], masks=True)
    card = json.loads(job.input("dataset_card").read_text())
    variant = job.work["variant"]["variant_id"]
    predicted = batch.masks.astype(int)
    side = 6 if variant == "clean" else 14
    for i, index in enumerate(batch.item_index.tolist()):
        y, x = _generator("box", index).integers(0, 18, 2)
        predicted[i, y : y + side, x : x + 2 * side] = index % len(card["mask_class_names"])
    maps = torch.from_numpy(predicted), torch.from_numpy(batch.masks)
    counts = segmenting.class_counts(*maps, len(card["mask_class_names"]))
    columns = {
        "item_id": np.array(batch.item_ids, object),
        "item_index": batch.item_index,
        "n_forward": np.ones(len(batch), int),
        "predicted_map": np.array([masks.png(one.astype(np.uint8)) for one in predicted], object),
    }
    keys = _keys(job, variant, defense="none")
    made = segmenting.table(counts.numpy(), tuple(card["mask_class_names"]), columns, keys)
    rows.write(job.output("rows"), made, "segmentation", _footer(job))


def _predict(job: jobs.Job, _: int) -> None:
    if job.work["task"] == "segmentation":
        return _segment(job)
    batch = _items(job, *job.work["items"])
    variant = job.work["variant"]["variant_id"]
    right = _margin(job.work["model"], variant, batch.item_index) > 0
    columns = {
        "label": batch.labels,
        "predict": np.where(right, batch.labels, (batch.labels + 1) % 10),
        "correct": right,
        "confidence": np.full(len(batch), 0.9),
        "label_probability": np.where(right, 0.9, 0.1),
        "item_id": batch.item_ids,
        "item_index": batch.item_index,
        "n_forward": np.ones(len(batch), int),
    }
    keys = _keys(job, variant, defense="none")
    made = rows.table("predictions", columns, keys)
    rows.write(job.output("rows"), made, "predictions", _footer(job))


def _collect(job: jobs.Job, _: int) -> None:
    made = rows.table("stats", {}, {}, length=0)
    rows.write(job.output("rows"), made, "stats", _footer(job))


def _decide(job: jobs.Job, _: int) -> None:
    work = job.work
    batch = _items(job, 0, work["items"])
    parts = []
    for variant in work["variants"]:
        margin = _margin(work["model"], variant, batch.item_index)
        generator = _generator("votes", work["model"], variant)
        p = 0.5 * (1 + np.vectorize(math.erf)(np.abs(margin) / math.sqrt(2)))
        n_top = generator.binomial(N, p)
        lower = cp_lower(n_top, N, ALPHA)
        radius = radius_one(lower, SIGMA)
        abstain = radius <= 0
        guess = np.where(margin > 0, batch.labels, (batch.labels + 1) % 10)
        predict = np.where(abstain, -1, guess).astype(np.int32)
        columns = {
            "label": batch.labels,
            "predict": predict,
            "radius": np.where(abstain, 0.0, radius),
            "abstain": abstain,
            "correct": predict == batch.labels,
            "item_id": batch.item_ids,
            "item_index": batch.item_index,
            "n_forward": np.full(len(batch), N + 100),
            "device_time_s": np.full(len(batch), 0.4),
            "n_top": n_top,
            "p_lower": lower,
            "radius_capped": n_top == N,
        }
        threat = {
            "threat_id": "lp-l2",
            "threat_kind": "lp",
            "threat_norm": "l2",
            "threat_space": "pixel01",
            "threat_unit": "item",
            "threat_guarantee": "probabilistic",
            "threat_alpha": ALPHA,
        }
        fixed = {"sigma": SIGMA, "n0": 100, "n": N, "alpha": ALPHA, "bound": "one"}
        keys = _keys(job, variant, defense=work["defense"]["id"], **threat, **fixed)
        parts.append(rows.table("certificates", columns, keys, randomized_smoothing.columns))
    import pyarrow as pa

    footer = _footer(
        job, shape=[3, 32, 32], collected={"jobs": 2, "device_time_s": 80.0, "wall_time_s": 94.0}
    )
    rows.write(
        job.output("rows"), pa.concat_tables(parts).unify_dictionaries(), "certificates", footer
    )


def _attack(job: jobs.Job, violations: int) -> None:
    work = job.work
    batch = _items(job, *work["items"])
    module = job.plugin("attack", work["attack"]["name"])
    threat = module.threat(build(module.Params, work["attack"]["params"], ""))
    threat = threat if isinstance(threat, Threat) else Threat(**threat)
    margin = _margin(work["model"], "clean", batch.item_index)
    defended = work["defense"]["id"] != "none"
    # An attack of the other norm is stronger here; none reaches into a certified region by itself.
    reach = 0.9 if threat.norm == "linf" else 0.25
    if defended and threat.norm == "l2":
        reach = 0.02
    clean = margin > 0
    broken = clean & (margin < reach)
    if defended and violations and threat.norm == "l2" and work["items"][0] == 0:
        broken |= clean & (np.cumsum(clean & (margin > 1.8)) <= violations) & (margin > 1.8)
    status = np.where(clean, np.where(broken, "broken", "survived"), "clean_error")
    wrong = (batch.labels + 1) % 10
    size = threat.size
    columns = {
        "label": batch.labels,
        "clean_pred": np.where(clean, batch.labels, wrong),
        "adv_pred": np.where(status == "survived", batch.labels, wrong),
        "status": status,
        "pert_linf": np.full(len(batch), min(size, 0.2)),
        "pert_l2": np.full(len(batch), size if threat.norm == "l2" else 1.2),
        "item_id": batch.item_ids,
        "item_index": batch.item_index,
        "n_forward": np.full(len(batch), 21),
        "device_time_s": np.full(len(batch), 0.05),
    }
    keys = _keys(
        job, "clean", defense=work["defense"]["id"], attack=work["attack"]["id"], **threat.row()
    )
    footer = _footer(job, device_time_s=3.0, shape=[3, 32, 32])
    rows.write(
        job.output("rows"), rows.table("attacks", columns, keys, module.columns), "attacks", footer
    )
    images = batch.images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.savez_compressed(
        job.output("images"), x_adv=images * 0.9 + 0.05, item_index=batch.item_index
    )
