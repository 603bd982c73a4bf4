"""Which combinations an experiment asks for, its audit and its table."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any

from certbench.definitions import BARE, CLEAN, Selection, Variant
from certbench.errors import CertbenchError
from certbench.plan import PlannedJob
from certbench.planning import preparing, shards
from certbench.planning.planner import ANSWERS, Planner
from certbench.threat import Threat


def add_experiments(planner: Planner) -> None:
    """Add the jobs of all experiments.

    Raises:
        CertbenchError: The first thing that is wrong.
    """
    config = planner.config
    names = Counter(experiment["name"] for experiment in config["experiments"])
    for name, count in names.items():
        if count > 1:
            raise CertbenchError(
                f"two experiments are called '{name}'",
                where="config: experiments",
                remedy="give each its own name",
            )
    for i, experiment in enumerate(config["experiments"]):
        _experiment(planner, experiment, f"config: experiments[{i}]")


def _experiment(planner: Planner, entry: Mapping[str, Any], where: str) -> None:
    name = entry["name"]
    for i, rule in enumerate(entry["exclude"]):
        for key, section in (
            ("dataset", "datasets"),
            ("variant", "variants"),
            ("model", "models"),
            ("defense", "defenses"),
            ("attack", "attacks"),
        ):
            value = rule.get(key)
            if value not in (None, CLEAN, BARE):
                planner.defined.definition(section, value, f"{where}.exclude[{i}].{key}")
    for i, threat in enumerate(entry["threats"]):
        _checked_threat(threat, f"{where}.threats[{i}]")
    jobs: dict[str, list[PlannedJob]] = {
        rule: [] for rule in ("prepare", "model", "predict", "collect", "decide", "fit", "attack")
    }
    variants = [
        variant
        for i, variant_name in enumerate(entry["variants"])
        for variant in planner.defined.variant(variant_name, f"{where}.variants[{i}]")
    ]
    defenses = [
        None if d == BARE else planner.defined.defense(d, f"{where}.defenses[{i}]")
        for i, d in enumerate(entry["defenses"])
    ]
    attacks = [
        attack
        for i, a in enumerate(entry["attacks"])
        for attack in planner.defined.attacks(a, f"{where}.attacks[{i}]")
    ]
    for i, dataset_entry in enumerate(entry["datasets"]):
        selection = planner.defined.selection(dataset_entry, f"{where}.datasets[{i}]")
        jobs["prepare"].append(preparing.prepare_job(planner, selection.dataset, selection.split))
        for j, model_name in enumerate(entry["models"]):
            model = preparing.model_job(planner, model_name, f"{where}.models[{j}]")
            jobs["model"].append(model)
            _check(planner, entry, model, selection, f"{where}.models[{j}]")
            combo = {"dataset": selection.dataset.id, "model": model_name}
            for variant in variants:
                at = {**combo, "variant": variant}
                if not _excluded(entry, {**at, "defense": BARE}):
                    jobs["predict"] += shards.predict_jobs(planner, selection, variant, model)
            for defense in defenses:
                if defense is not None:
                    at = {**combo, "defense": defense.id}
                    kept = [v for v in variants if not _excluded(entry, {**at, "variant": v})]
                    shards.certify_jobs(planner, name, selection, kept, model, defense, jobs)
            for defense, attack, variant in itertools.product(defenses, attacks, variants):
                at = {
                    **combo,
                    "variant": variant,
                    "defense": defense.id if defense else BARE,
                    "attack": attack.id,
                    "attack_definition": attack.definition,
                }
                if not _excluded(entry, at):
                    jobs["attack"] += shards.attack_jobs(
                        planner, selection, variant, model, defense, attack, jobs, where
                    )
    jobs = {rule: _unique(found) for rule, found in jobs.items()}
    _summaries(planner, name, entry, variants, jobs)
    planner.plan.experiments[name] = jobs


def _check(
    planner: Planner, entry: Mapping[str, Any], model: PlannedJob, selection: Selection, where: str
) -> None:
    """Refuse a model that does not do what the experiment is about."""
    task = model.work["task"]
    if task != entry["task"]:
        raise CertbenchError(
            f"model '{model.key[0]}' does {task}, the experiment is about {entry['task']}",
            where=where,
            remedy=f"set the experiment's task: {task}, or choose other models",
        )
    preparing.check_labels(selection.dataset, task, where)
    if entry["attacks"] or any(defense != BARE for defense in entry["defenses"]):
        preparing.only_classified(model, where)


def _summaries(
    planner: Planner,
    name: str,
    entry: Mapping[str, Any],
    variants: list[Variant],
    jobs: dict[str, list],
) -> None:
    def rows(rule: str) -> list[str]:
        return [job.outputs["rows"] for job in jobs[rule]]

    audit = planner.add(
        "audit",
        (name,),
        {"certificates": rows("decide"), "attacks": rows("attack")},
        {"experiment": name},
    )
    work = {
        "experiment": name,
        "title": entry.get("title", name),
        "metrics": [metric.block() for metric in planner.metrics],
        "threats": entry["threats"],
        # Metrics of shift know what a variant is by its steps, not by its name.
        "variants": [variant.block() for variant in variants],
        "plugins": list(planner.extra),
    }
    answers: dict[str, list[str]] = {kind: [] for kind in ANSWERS.values()}
    for job in jobs["predict"]:
        answers[ANSWERS[job.work["task"]]].append(job.outputs["rows"])
    inputs = {
        **answers,
        "certificates": rows("decide"),
        "attacks": rows("attack"),
        "audit": audit.outputs["rows"],
        "training": [j.outputs["training"] for j in jobs["model"] if "training" in j.outputs],
    }
    table = planner.add("table", (name,), inputs, work)
    jobs["audit"], jobs["table"] = [audit], [table]


def _unique(jobs: list[PlannedJob]) -> list[PlannedJob]:
    return list({(job.rule, job.key): job for job in jobs}.values())


def _excluded(entry: Mapping[str, Any], at: Mapping[str, Any]) -> bool:
    """Whether an exclude rule matches: every key it gives is there and equal."""

    def matches(key: str, wanted: str) -> bool:
        if key not in at:
            return False
        if key == "variant":
            return wanted in (at["variant"].definition, at["variant"].variant_id)
        if key == "attack":
            return at[key] == wanted or at.get("attack_definition") == wanted
        return at[key] == wanted

    return any(all(matches(k, v) for k, v in rule.items()) for rule in entry["exclude"])


def _checked_threat(entry: Mapping[str, Any], where: str) -> Threat:
    try:
        return Threat(entry["kind"], entry["norm"], entry["size"], entry["space"])
    except CertbenchError as error:
        raise CertbenchError(error.problem, where=where, remedy=error.remedy) from None
