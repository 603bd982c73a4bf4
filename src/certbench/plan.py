"""From the configuration to all work, before anything runs.

:func:`make` checks the configuration and enumerates every job with its inputs, outputs and complete
work description. The Snakefile, the cost estimate and the doctor read this plan; nothing is probed
while planning, and no torch is imported. The number of jobs is known in advance.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from certbench import config as configuration
from certbench import params as parameters
from certbench import paths, plugins
from certbench.datasets import masks
from certbench.definitions import BARE, CLEAN, Definitions, PluginUse, Selection, Variant
from certbench.errors import CertbenchError, did_you_mean
from certbench.threat import Threat
from certbench.variants import protocol

GPU_RULES = ("train", "predict", "collect", "fit", "attack")

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

# What rows a model's answers are depends on its task.
_ANSWERS = {"classification": "predictions", "segmentation": "segmentation"}


@dataclass(frozen=True)
class PlannedJob:
    """One job: a rule with its wildcard values, files and work.

    Attributes:
        rule: Rule name.
        key: Wildcard values in the order of :func:`certbench.paths.wildcards`.
        inputs: Input files by name.
        outputs: Output files by name.
        work: Everything the job depends on (JSON values); a change makes it run again.
    """

    rule: str
    key: tuple[str, ...]
    inputs: dict[str, list[str]]
    outputs: dict[str, str]
    work: dict[str, Any]

    @property
    def work_text(self) -> str:
        """The work as canonical JSON: equal work gives equal text."""
        return parameters.canonical(self.work)


@dataclass
class Plan:
    """All work of a configuration.

    Attributes:
        config: The checked configuration with defaults.
        jobs: Every job, by rule and wildcard values.
        experiments: For each experiment, the keys of its jobs by rule (predict, collect, ...).
    """

    config: dict[str, Any]
    jobs: dict[tuple[str, tuple[str, ...]], PlannedJob] = field(default_factory=dict)
    experiments: dict[str, dict[str, list[PlannedJob]]] = field(default_factory=dict)

    def job(self, rule: str, wildcards: Any) -> PlannedJob:
        """The job of a rule for Snakemake's wildcards (any object with those attributes).

        Raises:
            CertbenchError: The configuration plans no such job.
        """
        key = tuple(str(getattr(wildcards, name)) for name in paths.wildcards(rule))
        try:
            return self.jobs[rule, key]
        except KeyError:
            known = {"/".join(k) for r, k in self.jobs if r == rule}
            raise CertbenchError(
                f"the configuration plans no {rule} job '{'/'.join(key)}'",
                where="target",
                remedy=did_you_mean("/".join(key), known),
            ) from None

    def targets(self) -> list[str]:
        """What ``rule all`` asks for: the report, and every table and figure.

        Snakemake does not make a deleted file again that only an up-to-date target needs, so tables
        and figures are targets of their own.
        """
        shown = ("table", "figure", "report")
        return [
            path
            for (rule, _), job in self.jobs.items()
            if rule in shown
            for path in job.outputs.values()
        ]

    def counts(self) -> Counter:
        """Number of jobs by rule."""
        return Counter(rule for rule, _ in self.jobs)

    def models(self, rule: str) -> list[str]:
        """Ids of the models that a rule (``train`` or ``fetch``) makes."""
        return [key[0] for r, key in self.jobs if r == rule]

    def verdicts(self) -> list[str]:
        """The audit verdict files of all experiments."""
        return [job.outputs["verdict"] for (rule, _), job in self.jobs.items() if rule == "audit"]

    def resources(self, rule: str) -> dict[str, int]:
        """Threads, memory, runtime, GPUs and batch size of a rule's jobs (constant per rule)."""
        group = "gpu_jobs" if rule in GPU_RULES else "cpu_jobs"
        asked = dict(self.config["resources"][group])
        if rule == "train":
            asked |= self.config["resources"].get("train_jobs", {})
        return {**asked, "batch_size": self.config["batch_size"]}


def make(config: Mapping[str, Any]) -> Plan:
    """Check a configuration and enumerate all of its work.

    Args:
        config: The merged configuration, as from YAML.

    Raises:
        CertbenchError: The first thing that is wrong, with its key and the remedy.
    """
    return _Planner(configuration.check(config)).plan


class _Planner:
    """Resolves definitions on first use, so that only what experiments reference is checked."""

    def __init__(self, config: dict[str, Any]):
        self.config = config
        self.defined = Definitions(config)
        self.extra = self.defined.extra
        self.plan = Plan(config)
        self.runtime = {
            "seed": config["seed"],
            "device": config["device"],
            "numerics": config["numerics"],
            "plugins": list(self.extra),
        }
        self._metrics = [
            self.defined.plugin(f"metrics[{i}]", "metric", entry)
            for i, entry in enumerate(config["metrics"])
        ]
        names = Counter(experiment["name"] for experiment in config["experiments"])
        for name, count in names.items():
            if count > 1:
                raise CertbenchError(
                    f"two experiments are called '{name}'",
                    where="config: experiments",
                    remedy="give each its own name",
                )
        for i, experiment in enumerate(config["experiments"]):
            self._experiment(experiment, f"config: experiments[{i}]")
        self._figures()
        self._report()

    def _add(self, rule: str, key: tuple[str, ...], inputs: dict, work: dict) -> PlannedJob:
        known = self.plan.jobs.get((rule, key))
        if known is None:
            files = {k: [v] if isinstance(v, str) else list(v) for k, v in inputs.items()}
            known = PlannedJob(rule, key, files, paths.fill(rule, key), work)
            self.plan.jobs[rule, key] = known
        elif known.work != work:
            raise CertbenchError(
                f"two different {rule} jobs would write {next(iter(known.outputs.values()))}",
                where="config",
                remedy="rename one of the definitions",
            )
        return known

    def _prepare(self, use: PluginUse, split: str) -> PlannedJob:
        """The job that checks and indexes one split: whole, so that a limit is no part of it."""
        work = {
            "dataset": use.id,
            "plugin": use.name,
            "version": use.module.version,
            "params": parameters.as_dict(use.params),
            "splits": [split],
            "sizes": {},
            "seed": self.config["seed"],
            "plugins": list(self.extra),
        }
        return self._add("prepare", (use.id, split), {}, work)

    def _model(self, name: str, where: str) -> PlannedJob:
        """The job that makes a model: trained by a recipe, or fetched from a source."""
        entry = self.defined.definition("models", name, where)
        spot = f"models.{name}"
        builder = self.defined.plugin(f"{spot}.builder", "model", entry["builder"])
        _check_task(builder, entry["task"], f"config: {spot}")
        if ("recipe" in entry) == ("source" in entry):
            raise CertbenchError(
                "a model has either a recipe (it is trained) or a source (it is fetched)",
                where=f"config: {spot}",
                remedy="give exactly one of recipe and source",
            )
        common = {
            "model": name,
            "task": entry["task"],
            "builder": builder.block(),
            "num_classes": entry["num_classes"],
            "normalisation": entry["normalisation"],
        }
        if "source" in entry:
            if entry["num_classes"] is None:
                raise CertbenchError(
                    "is required for a model with a source",
                    where=f"config: {spot}.num_classes",
                    remedy="set the number of classes of the checkpoint",
                )
            source = self.defined.plugin(f"{spot}.source", "source", entry["source"])
            work = {**common, "source": source.block(), "plugins": list(self.extra)}
            return self._add("fetch", (name,), {}, work)
        if "train_on" not in entry:
            raise CertbenchError(
                "is required for a model with a recipe",
                where=f"config: {spot}.train_on",
                remedy="name the dataset, split and view it is trained on",
            )
        recipe = self.defined.plugin(f"{spot}.recipe", "recipe", entry["recipe"])
        _check_task(recipe, entry["task"], f"config: {spot}")
        on = entry["train_on"]
        chosen = self.defined.split_of(
            on["dataset"], on["split"], on["view"], f"config: {spot}.train_on"
        )
        _check_labels(chosen.dataset, entry["task"], f"config: {spot}.train_on.dataset")
        inputs: dict[str, str] = {}
        if on["val_split"] is not None:
            val = self.defined.split_of(
                on["dataset"], on["val_split"], on["view"], f"config: {spot}.train_on.val_split"
            )
            inputs["val_index"] = self._prepare(val.dataset, val.split).outputs["index"]
        prepared = self._prepare(chosen.dataset, chosen.split)
        block = chosen.block()
        block["train_split"] = block.pop("split")
        work = {
            **common,
            "recipe": recipe.block(),
            "dataset": {**block, "val_split": on["val_split"], "limit": on["limit"]},
            "model_seed": entry["seed"],
            **self.runtime,
        }
        inputs |= {"index": prepared.outputs["index"], "card": prepared.outputs["card"]}
        return self._add("train", (name,), inputs, work)

    def _experiment(self, entry: Mapping[str, Any], where: str) -> None:
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
                    self.defined.definition(section, value, f"{where}.exclude[{i}].{key}")
        for i, threat in enumerate(entry["threats"]):
            _checked_threat(threat, f"{where}.threats[{i}]")
        jobs: dict[str, list[PlannedJob]] = {
            rule: []
            for rule in ("prepare", "model", "predict", "collect", "decide", "fit", "attack")
        }
        variants = [
            variant
            for i, variant_name in enumerate(entry["variants"])
            for variant in self.defined.variant(variant_name, f"{where}.variants[{i}]")
        ]
        defenses = [
            None if d == BARE else self.defined.defense(d, f"{where}.defenses[{i}]")
            for i, d in enumerate(entry["defenses"])
        ]
        attacks = [
            attack
            for i, a in enumerate(entry["attacks"])
            for attack in self.defined.attacks(a, f"{where}.attacks[{i}]")
        ]
        for i, dataset_entry in enumerate(entry["datasets"]):
            selection = self.defined.selection(dataset_entry, f"{where}.datasets[{i}]")
            jobs["prepare"].append(self._prepare(selection.dataset, selection.split))
            for j, model_name in enumerate(entry["models"]):
                model = self._model(model_name, f"{where}.models[{j}]")
                jobs["model"].append(model)
                self._check_experiment(entry, model, selection, f"{where}.models[{j}]")
                combo = {"dataset": selection.dataset.id, "model": model_name}
                for variant in variants:
                    at = {**combo, "variant": variant}
                    if not _excluded(entry, {**at, "defense": BARE}):
                        jobs["predict"] += self._predict(selection, variant, model)
                for defense in defenses:
                    if defense is not None:
                        self._certify(entry, selection, variants, model, defense, jobs)
                for defense, attack, variant in itertools.product(defenses, attacks, variants):
                    at = {
                        **combo,
                        "variant": variant,
                        "defense": defense.id if defense else BARE,
                        "attack": attack.id,
                        "attack_definition": attack.definition,
                    }
                    if not _excluded(entry, at):
                        jobs["attack"] += self._attack(
                            selection, variant, model, defense, attack, jobs, where
                        )
        jobs = {rule: _unique(found) for rule, found in jobs.items()}
        self._summaries(name, entry, variants, jobs)
        self.plan.experiments[name] = jobs

    def _check_experiment(
        self, entry: Mapping[str, Any], model: PlannedJob, selection: Selection, where: str
    ) -> None:
        """Refuse a model that does not do what the experiment is about."""
        task = model.work["task"]
        if task != entry["task"]:
            raise CertbenchError(
                f"model '{model.key[0]}' does {task}, the experiment is about {entry['task']}",
                where=where,
                remedy=f"set the experiment's task: {task}, or choose other models",
            )
        _check_labels(selection.dataset, task, where)
        if entry["attacks"] or any(defense != BARE for defense in entry["defenses"]):
            _only_classified(model, where)

    def _common(self, selection: Selection, variant: Variant, model: PlannedJob) -> dict[str, Any]:
        return {
            "task": model.work["task"],
            "dataset": selection.block(),
            "variant": variant.block(),
            "model": model.key[0],
            **self.runtime,
        }

    def _files(
        self,
        selection: Selection,
        model: PlannedJob,
        variant: Variant | None = None,
        items: tuple[int, int] = (0, 0),
    ) -> dict[str, Any]:
        """Input files of a job that shows a model items of a selection."""
        prepared = self._prepare(selection.dataset, selection.split)
        files: dict[str, Any] = {
            "index": prepared.outputs["index"],
            "dataset_card": prepared.outputs["card"],
            "weights": model.outputs["weights"],
            "model_card": model.outputs["card"],
        }
        if variant is None:
            return files
        where = f"config: variants.{variant.definition}"
        for position, step in enumerate(variant.steps):
            protocol.check_fit(step, position, selection.dataset, model.work["task"], where)
        if variant.materialise:
            return {**files, "stored": self._materialise(selection, variant, items)}
        return {**files, **self._step_files(selection, variant)}

    def _materialise(self, selection: Selection, variant: Variant, items: tuple[int, int]) -> str:
        """The file that stores a variant's images of a range of items (made by a job)."""
        prepared = self._prepare(selection.dataset, selection.split)
        work = {
            "dataset": selection.block(),
            "variant": variant.block(),
            "items": list(items),
            "seed": self.config["seed"],
            "plugins": list(self.extra),
        }
        files = {"index": prepared.outputs["index"], **self._step_files(selection, variant)}
        key = (selection.id, variant.variant_id, paths.item_range(*items))
        return self._add("materialise", key, files, work).outputs["images"]

    def _step_files(self, selection: Selection, variant: Variant) -> dict[str, Any]:
        """Files that the steps of a variant read beside the dataset."""
        where = f"config: variants.{variant.definition}"
        files: dict[str, Any] = {}
        for step in variant.steps:
            if "attack_images" in getattr(step.module, "needs", ()):
                files["attack_images"] = self._attack_images(selection, step.params, where)
        return files

    def _attack_images(self, selection: Selection, source: Any, where: str) -> list[str]:
        """The image files of the attack that an adversarial step names (planned if need be)."""
        model = self._model(source.model, f"{where}.model")
        _only_classified(model, f"{where}.model")
        defense = (
            None
            if source.defense == BARE
            else self.defined.defense(source.defense, f"{where}.defense")
        )
        (attack,) = self.defined.attacks(source.attack, f"{where}.attack")
        jobs: dict[str, list[PlannedJob]] = {"fit": []}
        clean = self.defined.variant(CLEAN, where)[0]
        shards = self._attack(selection, clean, model, defense, attack, jobs, where, whole=True)
        return [shard.outputs["images"] for shard in shards]

    def _item_ranges(self, selection: Selection) -> list[tuple[int, int]]:
        return paths.ranges(selection.size, self.config["shards"]["items"])

    def _predict(self, selection, variant, model) -> list[PlannedJob]:
        return [
            self._add(
                "predict",
                (selection.id, variant.variant_id, model.key[0], paths.item_range(*items)),
                self._files(selection, model, variant, items),
                {**self._common(selection, variant, model), "items": list(items)},
            )
            for items in self._item_ranges(selection)
        ]

    def _certify(self, entry, selection, variants, model, defense, jobs) -> None:
        shards: list[PlannedJob] = []
        kept: list[Variant] = []
        for variant in variants:
            at = {
                "dataset": selection.dataset.id,
                "model": model.key[0],
                "variant": variant,
                "defense": defense.id,
            }
            if _excluded(entry, at):
                continue
            kept.append(variant)
            total = defense.module.samples(defense.collect)
            sample_ranges: list[tuple[int, int | None]] = (
                [(0, None)]
                if total is None
                else list(paths.ranges(total, self.config["shards"]["samples"]))
            )
            for items in self._item_ranges(selection):
                for start, stop in sample_ranges:
                    shard_key = (
                        selection.id,
                        variant.variant_id,
                        model.key[0],
                        defense.id,
                        paths.item_range(*items),
                        paths.sample_range(start, stop),
                    )
                    work = {
                        **self._common(selection, variant, model),
                        "defense": {
                            "id": defense.id,
                            "name": defense.name,
                            "version": defense.module.version,
                            "collect": defense.shard_params(start, stop),
                        },
                        "items": list(items),
                        "samples": [start, stop],
                        "noise_backend": self.config["noise_backend"],
                    }
                    files = self._files(selection, model, variant, items)
                    shards.append(self._add("collect", shard_key, files, work))
        if not kept:
            return
        jobs["collect"] += shards
        key = (entry["name"], selection.id, model.key[0], defense.id)
        work = {
            "task": model.work["task"],
            "dataset": selection.block(),
            "variants": [variant.variant_id for variant in kept],
            "model": model.key[0],
            "defense": defense.block(),
            "items": selection.size,
            "seed": self.config["seed"],
            "plugins": list(self.extra),
        }
        jobs["decide"].append(
            self._add("decide", key, {"stats": [s.outputs["rows"] for s in shards]}, work)
        )

    def _attack(
        self, selection, variant, model, defense, attack, jobs, where, whole=False
    ) -> list[PlannedJob]:
        """The shards of an attack; ``whole``: on all items, because a variant is made of them."""
        if defense is not None and not hasattr(defense.module, "attack_surface"):
            raise CertbenchError(
                f"certifier '{defense.name}' does not say how it is attacked",
                where=f"{where}.attacks",
                remedy=f"define attack_surface, or exclude {{defense: {defense.id}}}",
            )
        defense_id = defense.id if defense else BARE
        work = {
            **self._common(selection, variant, model),
            "defense": defense.attack_block() if defense else {"id": BARE},
            "attack": {"id": attack.id, **attack.block()},
        }
        if defense is not None:
            work["noise_backend"] = self.config["noise_backend"]
        entry = self.config["attacks"][attack.definition]
        if entry["checks"]:
            work["checks"] = entry["checks"]
        size = selection.size if whole else min(selection.size, entry["items"] or selection.size)
        ranges = paths.ranges(size, self.config["shards"]["items"])
        borrowed: list[dict[str, str]] = [{} for _ in ranges]
        if entry["surrogate"] is not None:
            borrowed = self._surrogate_images(
                selection, variant, model, defense, attack, ranges, whole
            )
            if borrowed[0]:
                work["surrogate"] = entry["surrogate"]
        artifact: dict[str, str] = {}
        if hasattr(attack.module, "fit"):
            key = (selection.id, model.key[0], defense_id, attack.id)
            fit_work = {k: v for k, v in work.items() if k != "variant"}
            split = getattr(attack.module, "fit_split", "train")
            taught = dataclasses.replace(selection, split=split)
            fit_work["dataset"] = taught.block()
            fitted = self._add("fit", key, self._files(taught, model), fit_work)
            jobs["fit"].append(fitted)
            artifact["artifact"] = fitted.outputs["artifact"]
        return [
            self._add(
                "attack",
                (
                    selection.id,
                    variant.variant_id,
                    model.key[0],
                    defense_id,
                    attack.id,
                    paths.item_range(*items),
                ),
                {**self._files(selection, model, variant, items), **artifact, **images},
                {**work, "items": list(items)},
            )
            for items, images in zip(ranges, borrowed, strict=True)
        ]

    def _surrogate_images(
        self, selection, variant, model, defense, attack, ranges, whole
    ) -> list[dict[str, str]]:
        """What the same attack makes of an undefended surrogate, range by range (check C10)."""
        entry = self.config["attacks"][attack.definition]
        spot = f"config: attacks.{attack.definition}.surrogate"
        if not entry["checks"]:
            raise CertbenchError(
                "is used by check C10, and no images are checked",
                where=spot,
                remedy="set checks to a number of images, or leave the surrogate out",
            )
        if defense is None and model.key[0] == entry["surrogate"]:
            return [{} for _ in ranges]
        surrogate = self._model(entry["surrogate"], spot)
        made = self._attack(selection, variant, surrogate, None, attack, {"fit": []}, spot, whole)
        return [{"surrogate_images": shard.outputs["images"]} for shard in made]

    def _summaries(
        self, name: str, entry: Mapping[str, Any], variants: list[Variant], jobs: dict[str, list]
    ) -> None:
        def rows(rule: str) -> list[str]:
            return [job.outputs["rows"] for job in jobs[rule]]

        audit = self._add(
            "audit",
            (name,),
            {"certificates": rows("decide"), "attacks": rows("attack")},
            {"experiment": name},
        )
        work = {
            "experiment": name,
            "title": entry.get("title", name),
            "metrics": [metric.block() for metric in self._metrics],
            "threats": entry["threats"],
            # Metrics of shift know what a variant is by its steps, not by its name.
            "variants": [variant.block() for variant in variants],
            "plugins": list(self.extra),
        }
        answers: dict[str, list[str]] = {kind: [] for kind in _ANSWERS.values()}
        for job in jobs["predict"]:
            answers[_ANSWERS[job.work["task"]]].append(job.outputs["rows"])
        inputs = {
            **answers,
            "certificates": rows("decide"),
            "attacks": rows("attack"),
            "audit": audit.outputs["rows"],
            "training": [j.outputs["training"] for j in jobs["model"] if "training" in j.outputs],
        }
        table = self._add("table", (name,), inputs, work)
        jobs["audit"], jobs["table"] = [audit], [table]

    def _figures(self) -> None:
        for figure, entry in self.config["figures"].items():
            spot = f"figures.{figure}"
            use = self.defined.plugin(spot, "figure", entry, skip=("experiments", "caption"))
            wanted = entry.get("experiments") or list(self.plan.experiments)
            for i, experiment in enumerate(wanted):
                if experiment not in self.plan.experiments:
                    raise CertbenchError(
                        f"no experiment '{experiment}'",
                        where=f"config: {spot}.experiments[{i}]",
                        remedy=did_you_mean(experiment, self.plan.experiments),
                    )
            needs = getattr(use.module, "needs", ("tables",))
            inputs = {need: self._needed(need, wanted) for need in needs}
            if not any(inputs.values()):
                continue
            work = {
                "figure": {"id": figure, **use.block()},
                "caption": entry.get("caption", ""),
                "experiments": wanted,
                "order": self._order(),
                "plugins": list(self.extra),
            }
            if "index" in needs:
                work["selections"] = self._selections(wanted)
                work["embed_images"] = self.config["report"]["embed_images"]
            self._add("figure", (figure,), inputs, work)

    def _order(self) -> dict[str, list[str]]:
        """Models and defences in the order of the experiments: figures give colours by it."""
        entries = self.config["experiments"]
        return {
            key: list(dict.fromkeys(name for entry in entries for name in entry[key]))
            for key in ("models", "defenses")
        }

    def _needed(self, need: str, experiments: list[str]) -> list[str]:
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
            for job in self.plan.experiments[experiment][rule]
            if output in job.outputs
            and (need not in _ANSWERS.values() or need == _ANSWERS[job.work["task"]])
        ]
        return list(dict.fromkeys(files))

    def _selections(self, experiments: list[str]) -> list[dict[str, Any]]:
        """Which datasets and variants the experiments show, for figures of images."""
        found: dict[str, dict[str, Any]] = {}
        for experiment in experiments:
            for job in self.plan.experiments[experiment]["predict"]:
                one = found.setdefault(
                    job.key[0],
                    {"dataset": job.work["dataset"], "index": job.inputs["index"], "variants": {}},
                )
                # Adversarial images belong to an attack's files, not to a gallery of data.
                if not self._adversarial(job.work["variant"]):
                    one["variants"][job.key[1]] = job.work["variant"]
        return [{**one, "variants": list(one["variants"].values())} for one in found.values()]

    def _adversarial(self, variant: Mapping[str, Any]) -> bool:
        modules = (plugins.load("variant", step["name"], self.extra) for step in variant["steps"])
        return any("attack_images" in getattr(module, "needs", ()) for module in modules)

    def _report(self) -> None:
        jobs: dict[str, list[PlannedJob]] = defaultdict(list)
        for job in self.plan.jobs.values():
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
            "report": self.config["report"],
            "figures": figures,
            "experiments": [job.work["experiment"] for job in jobs["table"]],
            "config": self.config,
        }
        self._add("report", (), inputs, work)


def _unique(jobs: list[PlannedJob]) -> list[PlannedJob]:
    return list({(job.rule, job.key): job for job in jobs}.values())


def _check_task(use: PluginUse, task: str, where: str) -> None:
    """Refuse a builder or recipe that does not know the model's task."""
    known = getattr(use.module, "tasks", ("classification",))
    if task not in known:
        raise CertbenchError(
            f"{'builder' if use.kind == 'model' else use.kind} '{use.name}' does not do {task}",
            where=where,
            remedy=f"it does {', '.join(known)}: set the model's task, or choose another",
        )


def _check_labels(dataset: PluginUse, task: str, where: str) -> None:
    """Refuse a dataset that has no label maps where pixels are classified."""
    if task == "segmentation" and not masks.served(dataset.module, dataset.params):
        raise CertbenchError(
            f"dataset '{dataset.id}' (type {dataset.name}) has no label maps",
            where=where,
            remedy="segmentation needs them: use streets, or parquet with a mask column",
        )


def _only_classified(model: PlannedJob, where: str) -> None:
    """Refuse to certify or attack what is not a classifier of images."""
    if model.work["task"] != "classification":
        raise CertbenchError(
            f"model '{model.key[0]}' does {model.work['task']}, which is not certified or attacked "
            "yet",
            where=where,
            remedy="leave out defenses and attacks where this model is, "
            "or measure it in an experiment of its own",
        )


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
