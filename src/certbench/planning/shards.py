"""Jobs that show a model the items of a split: predictions, certificates, attacks."""

from __future__ import annotations

import dataclasses
from typing import Any

from certbench import paths
from certbench.definitions import BARE, CLEAN, Defense, PluginUse, Selection, Variant
from certbench.errors import CertbenchError
from certbench.plan import PlannedJob
from certbench.planning import preparing
from certbench.planning.planner import Planner
from certbench.variants import protocol

#: Jobs that one defence may become on one variant: Snakemake's own planning is linear in jobs.
MOST_SHARDS = 100_000


def predict_jobs(
    planner: Planner, selection: Selection, variant: Variant, model: PlannedJob
) -> list[PlannedJob]:
    """The shards of the bare model's predictions."""
    return [
        planner.add(
            "predict",
            (selection.id, variant.variant_id, model.key[0], paths.item_range(*items)),
            _files(planner, selection, model, variant, items),
            {**_common(planner, selection, variant, model), "items": list(items)},
        )
        for items in _item_ranges(planner, selection)
    ]


def certify_jobs(
    planner: Planner,
    experiment: str,
    selection: Selection,
    variants: list[Variant],
    model: PlannedJob,
    defense: Defense,
    jobs: dict[str, list[PlannedJob]],
) -> None:
    """Enter into ``jobs`` the shards of a defence's statistics, and the decision from them all."""
    shards: list[PlannedJob] = []
    for variant in variants:
        total = defense.module.samples(defense.collect)
        item_ranges = list(_item_ranges(planner, selection))
        size = planner.config["shards"]["samples"]
        if total is not None and -(-total // size) * len(item_ranges) > MOST_SHARDS:
            raise CertbenchError(
                f"{total:,} samples in shards of {size:,}, over {len(item_ranges):,} shards of "
                f"items, make more than {MOST_SHARDS:,} jobs",
                where=f"defenses.{defense.name}",
                remedy="raise shards.samples or shards.items, or lower the samples",
            )
        sample_ranges: list[tuple[int, int | None]] = (
            [(0, None)] if total is None else list(paths.ranges(total, size))
        )
        for items in item_ranges:
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
                    **_common(planner, selection, variant, model),
                    "defense": {
                        "id": defense.id,
                        "name": defense.name,
                        "version": defense.module.version,
                        "collect": defense.shard_params(start, stop),
                    },
                    "items": list(items),
                    "samples": [start, stop],
                    "noise_backend": planner.config["noise_backend"],
                }
                files = _files(planner, selection, model, variant, items)
                shards.append(planner.add("collect", shard_key, files, work))
    if not variants:
        return
    jobs["collect"] += shards
    key = (experiment, selection.id, model.key[0], defense.id)
    work = {
        "task": model.work["task"],
        "dataset": selection.block(),
        "variants": [variant.variant_id for variant in variants],
        "model": model.key[0],
        "defense": defense.block(),
        "items": selection.size,
        "seed": planner.config["seed"],
        "plugins": list(planner.extra),
    }
    jobs["decide"].append(
        planner.add("decide", key, {"stats": [s.outputs["rows"] for s in shards]}, work)
    )


def attack_jobs(
    planner: Planner,
    selection: Selection,
    variant: Variant,
    model: PlannedJob,
    defense: Defense | None,
    attack: PluginUse,
    jobs: dict[str, list[PlannedJob]],
    where: str,
    whole: bool = False,
) -> list[PlannedJob]:
    """The shards of an attack; ``whole``: on all items, because a variant is made of them.

    A job that fits the attack beforehand is entered into ``jobs``.

    Raises:
        CertbenchError: The defence does not say how it is attacked, or a surrogate is misused.
    """
    if defense is not None and not hasattr(defense.module, "attack_surface"):
        raise CertbenchError(
            f"certifier '{defense.name}' does not say how it is attacked",
            where=f"{where}.attacks",
            remedy=f"define attack_surface, or exclude {{defense: {defense.id}}}",
        )
    defense_id = defense.id if defense else BARE
    work = {
        **_common(planner, selection, variant, model),
        "defense": defense.attack_block() if defense else {"id": BARE},
        "attack": {"id": attack.id, **attack.block()},
    }
    if defense is not None:
        work["noise_backend"] = planner.config["noise_backend"]
    entry = planner.config["attacks"][attack.definition]
    if entry["checks"]:
        work["checks"] = entry["checks"]
    size = selection.size if whole else min(selection.size, entry["items"] or selection.size)
    ranges = paths.ranges(size, planner.config["shards"]["items"])
    borrowed: list[dict[str, str]] = [{} for _ in ranges]
    if entry["surrogate"] is not None:
        borrowed = _surrogate_images(
            planner, selection, variant, model, defense, attack, ranges, whole
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
        fitted = planner.add("fit", key, _files(planner, taught, model), fit_work)
        jobs["fit"].append(fitted)
        artifact["artifact"] = fitted.outputs["artifact"]
    return [
        planner.add(
            "attack",
            (
                selection.id,
                variant.variant_id,
                model.key[0],
                defense_id,
                attack.id,
                paths.item_range(*items),
            ),
            {**_files(planner, selection, model, variant, items), **artifact, **images},
            {**work, "items": list(items)},
        )
        for items, images in zip(ranges, borrowed, strict=True)
    ]


def _surrogate_images(
    planner: Planner,
    selection: Selection,
    variant: Variant,
    model: PlannedJob,
    defense: Defense | None,
    attack: PluginUse,
    ranges: list[tuple[int, int]],
    whole: bool,
) -> list[dict[str, str]]:
    """What the same attack makes of an undefended surrogate, range by range (check C10)."""
    entry = planner.config["attacks"][attack.definition]
    spot = f"config: attacks.{attack.definition}.surrogate"
    if not entry["checks"]:
        raise CertbenchError(
            "is used by check C10, and no images are checked",
            where=spot,
            remedy="set checks to a number of images, or leave the surrogate out",
        )
    if defense is None and model.key[0] == entry["surrogate"]:
        return [{} for _ in ranges]
    surrogate = preparing.model_job(planner, entry["surrogate"], spot)
    made = attack_jobs(
        planner, selection, variant, surrogate, None, attack, {"fit": []}, spot, whole
    )
    return [{"surrogate_images": shard.outputs["images"]} for shard in made]


def _common(
    planner: Planner, selection: Selection, variant: Variant, model: PlannedJob
) -> dict[str, Any]:
    return {
        "task": model.work["task"],
        "dataset": selection.block(),
        "variant": variant.block(),
        "model": model.key[0],
        **planner.runtime,
    }


def _files(
    planner: Planner,
    selection: Selection,
    model: PlannedJob,
    variant: Variant | None = None,
    items: tuple[int, int] = (0, 0),
) -> dict[str, Any]:
    """Input files of a job that shows a model items of a selection."""
    prepared = preparing.prepare_job(planner, selection.dataset, selection.split)
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
        return {**files, "stored": _materialise(planner, selection, variant, items)}
    return {**files, **_step_files(planner, selection, variant)}


def _materialise(
    planner: Planner, selection: Selection, variant: Variant, items: tuple[int, int]
) -> str:
    """The file that stores a variant's images of a range of items (made by a job)."""
    prepared = preparing.prepare_job(planner, selection.dataset, selection.split)
    work = {
        "dataset": selection.block(),
        "variant": variant.block(),
        "items": list(items),
        "seed": planner.config["seed"],
        "plugins": list(planner.extra),
    }
    files = {"index": prepared.outputs["index"], **_step_files(planner, selection, variant)}
    key = (selection.id, variant.variant_id, paths.item_range(*items))
    return planner.add("materialise", key, files, work).outputs["images"]


def _step_files(planner: Planner, selection: Selection, variant: Variant) -> dict[str, Any]:
    """Files that the steps of a variant read beside the dataset."""
    where = f"config: variants.{variant.definition}"
    files: dict[str, Any] = {}
    for step in variant.steps:
        if "attack_images" in getattr(step.module, "needs", ()):
            files["attack_images"] = _attack_images(planner, selection, step.params, where)
    return files


def _attack_images(planner: Planner, selection: Selection, source: Any, where: str) -> list[str]:
    """The image files of the attack that an adversarial step names (planned if need be)."""
    model = preparing.model_job(planner, source.model, f"{where}.model")
    preparing.only_classified(model, f"{where}.model")
    defense = (
        None
        if source.defense == BARE
        else planner.defined.defense(source.defense, f"{where}.defense")
    )
    (attack,) = planner.defined.attacks(source.attack, f"{where}.attack")
    jobs: dict[str, list[PlannedJob]] = {"fit": []}
    clean = planner.defined.variant(CLEAN, where)[0]
    shards = attack_jobs(planner, selection, clean, model, defense, attack, jobs, where, whole=True)
    return [shard.outputs["images"] for shard in shards]


def _item_ranges(planner: Planner, selection: Selection) -> list[tuple[int, int]]:
    return paths.ranges(selection.size, planner.config["shards"]["items"])
