"""Jobs that show results: figures and the report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from certbench import plugins
from certbench.errors import CertbenchError, did_you_mean
from certbench.plan import PlannedJob
from certbench.planning.planner import ANSWERS, Planner

# What a figure plug-in may ask for: the rule and the output that hold it.
_NEEDS = {
    "tables": ("table", "rows"),
    "costs": ("table", "cost"),
    "predictions": ("predict", "rows"),
    "segmentation": ("predict", "rows"),
    "certificates": ("decide", "rows"),
    "attacks": ("attack", "rows"),
    "attack_images": ("attack", "images"),
    "audits": ("audit", "rows"),
    "training": ("model", "training"),
    "index": ("prepare", "index"),
}


def add_figures(planner: Planner) -> None:
    """Add the job of each figure whose experiments have what it draws.

    Raises:
        CertbenchError: It names an unknown experiment, or needs what no rule makes.
    """
    for figure, entry in planner.config["figures"].items():
        spot = f"figures.{figure}"
        use = planner.defined.plugin(spot, "figure", entry, skip=("experiments", "caption"))
        wanted = entry.get("experiments") or list(planner.plan.experiments)
        for i, experiment in enumerate(wanted):
            if experiment not in planner.plan.experiments:
                raise CertbenchError(
                    f"no experiment '{experiment}'",
                    where=f"config: {spot}.experiments[{i}]",
                    remedy=did_you_mean(experiment, planner.plan.experiments),
                )
        needs = getattr(use.module, "needs", ("tables",))
        inputs = {need: _needed(planner, need, wanted) for need in needs}
        if not any(inputs.values()):
            continue
        work = {
            "figure": {"id": figure, **use.block()},
            "caption": entry.get("caption", ""),
            "experiments": wanted,
            "order": _order(planner),
            "plugins": list(planner.extra),
        }
        if "index" in needs:
            work["selections"] = _selections(planner, wanted)
            work["embed_images"] = planner.config["report"]["embed_images"]
        planner.add("figure", (figure,), inputs, work)


def _order(planner: Planner) -> dict[str, list[str]]:
    """Models and defences in the order of the experiments: figures give colours by it."""
    entries = planner.config["experiments"]
    return {
        key: list(dict.fromkeys(name for entry in entries for name in entry[key]))
        for key in ("models", "defenses")
    }


def _needed(planner: Planner, need: str, experiments: list[str]) -> list[str]:
    """The files a figure asks for, over its experiments."""
    if need not in _NEEDS:
        raise CertbenchError(
            f"a figure plug-in needs '{need}', which no rule makes",
            where="figures",
            remedy=did_you_mean(need, _NEEDS),
        )
    rule, output = _NEEDS[need]
    files = [
        job.outputs[output]
        for experiment in experiments
        for job in planner.plan.experiments[experiment][rule]
        if output in job.outputs
        and (need not in ANSWERS.values() or need == ANSWERS[job.work["task"]])
    ]
    return list(dict.fromkeys(files))


def _selections(planner: Planner, experiments: list[str]) -> list[dict[str, Any]]:
    """Which datasets and variants the experiments show, for figures of images."""
    found: dict[str, dict[str, Any]] = {}
    for experiment in experiments:
        for job in planner.plan.experiments[experiment]["predict"]:
            one = found.setdefault(
                job.key[0],
                {"dataset": job.work["dataset"], "index": job.inputs["index"], "variants": {}},
            )
            # Adversarial images belong to an attack's files, not to a gallery of data.
            if not _adversarial(planner, job.work["variant"]):
                one["variants"][job.key[1]] = job.work["variant"]
    return [{**one, "variants": list(one["variants"].values())} for one in found.values()]


def _adversarial(planner: Planner, variant: Mapping[str, Any]) -> bool:
    modules = (plugins.load("variant", step["name"], planner.extra) for step in variant["steps"])
    return any("attack_images" in getattr(module, "needs", ()) for module in modules)


def add_report(planner: Planner) -> None:
    """Add the job of the report, which shows all others."""
    jobs: dict[str, list[PlannedJob]] = defaultdict(list)
    for job in planner.plan.jobs.values():
        jobs[job.rule].append(job)
    # Device and versions stand in the footers of shards; the first of each kind tells them.
    shards: dict[tuple[str, ...], str] = {}
    for rule in ("predict", "collect", "attack"):
        for job in jobs[rule]:
            shards.setdefault((rule, job.key[0], job.work["model"]), job.outputs["rows"])
    inputs = {
        "tables": [job.outputs["rows"] for job in jobs["table"]],
        "costs": [job.outputs["cost"] for job in jobs["table"]],
        "audits": [job.outputs["rows"] for job in jobs["audit"]],
        "verdicts": [job.outputs["verdict"] for job in jobs["audit"]],
        "certificates": [job.outputs["rows"] for job in jobs["decide"]],
        "shards": list(shards.values()),
        "dataset_cards": [job.outputs["card"] for job in jobs["prepare"]],
        "model_cards": [job.outputs["card"] for job in (*jobs["train"], *jobs["fetch"])],
        "figures": [job.outputs["svg"] for job in jobs["figure"]],
    }
    figures = [
        {
            "id": job.key[0],
            "type": job.work["figure"]["name"],
            "caption": job.work["caption"],
        }
        for job in jobs["figure"]
    ]
    work = {
        "report": planner.config["report"],
        "figures": figures,
        "experiments": [job.work["experiment"] for job in jobs["table"]],
        "config": planner.config,
    }
    planner.add("report", (), inputs, work)
