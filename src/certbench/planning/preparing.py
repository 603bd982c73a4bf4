"""Jobs that make what others read: checked splits, trained and fetched models."""

from __future__ import annotations

from certbench import params as parameters
from certbench.datasets import masks
from certbench.definitions import PluginUse
from certbench.errors import CertbenchError
from certbench.plan import PlannedJob
from certbench.planning.planner import Planner


def prepare_job(planner: Planner, use: PluginUse, split: str) -> PlannedJob:
    """The job that checks and indexes one split: whole, so that a limit is no part of it."""
    work = {
        "dataset": use.id,
        "plugin": use.name,
        "version": use.module.version,
        "params": parameters.as_dict(use.params),
        "splits": [split],
        "sizes": {},
        "seed": planner.config["seed"],
        "plugins": list(planner.extra),
    }
    return planner.add("prepare", (use.id, split), {}, work)


def model_job(planner: Planner, name: str, where: str) -> PlannedJob:
    """The job that makes a model: trained by a recipe, or fetched from a source."""
    entry = planner.defined.definition("models", name, where)
    spot = f"models.{name}"
    builder = planner.defined.plugin(f"{spot}.builder", "model", entry["builder"])
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
        source = planner.defined.plugin(f"{spot}.source", "source", entry["source"])
        work = {**common, "source": source.block(), "plugins": list(planner.extra)}
        return planner.add("fetch", (name,), {}, work)
    if "train_on" not in entry:
        raise CertbenchError(
            "is required for a model with a recipe",
            where=f"config: {spot}.train_on",
            remedy="name the dataset, split and view it is trained on",
        )
    recipe = planner.defined.plugin(f"{spot}.recipe", "recipe", entry["recipe"])
    _check_task(recipe, entry["task"], f"config: {spot}")
    on = entry["train_on"]
    chosen = planner.defined.split_of(
        on["dataset"], on["split"], on["view"], f"config: {spot}.train_on"
    )
    check_labels(chosen.dataset, entry["task"], f"config: {spot}.train_on.dataset")
    inputs: dict[str, str] = {}
    if on["val_split"] is not None:
        val = planner.defined.split_of(
            on["dataset"], on["val_split"], on["view"], f"config: {spot}.train_on.val_split"
        )
        inputs["val_index"] = prepare_job(planner, val.dataset, val.split).outputs["index"]
    prepared = prepare_job(planner, chosen.dataset, chosen.split)
    block = chosen.block()
    block["train_split"] = block.pop("split")
    work = {
        **common,
        "recipe": recipe.block(),
        "dataset": {**block, "val_split": on["val_split"], "limit": on["limit"]},
        "model_seed": entry["seed"],
        **planner.runtime,
    }
    inputs |= {"index": prepared.outputs["index"], "card": prepared.outputs["card"]}
    return planner.add("train", (name,), inputs, work)


def _check_task(use: PluginUse, task: str, where: str) -> None:
    """Refuse a builder or recipe that does not know the model's task."""
    known = getattr(use.module, "tasks", ("classification",))
    if task not in known:
        raise CertbenchError(
            f"{'builder' if use.kind == 'model' else use.kind} '{use.name}' does not do {task}",
            where=where,
            remedy=f"it does {', '.join(known)}: set the model's task, or choose another",
        )


def check_labels(dataset: PluginUse, task: str, where: str) -> None:
    """Refuse a dataset that has no label maps where pixels are classified."""
    if task == "segmentation" and not masks.served(dataset.module, dataset.params):
        raise CertbenchError(
            f"dataset '{dataset.id}' (type {dataset.name}) has no label maps",
            where=where,
            remedy="segmentation needs them: use streets, or parquet with a mask column",
        )


def only_classified(model: PlannedJob, where: str) -> None:
    """Refuse to certify or attack what is not a classifier of images."""
    if model.work["task"] != "classification":
        raise CertbenchError(
            f"model '{model.key[0]}' does {model.work['task']}, which is not certified or attacked "
            "yet",
            where=where,
            remedy="leave out defenses and attacks where this model is, "
            "or measure it in an experiment of its own",
        )
