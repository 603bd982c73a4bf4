"""The job ``decide``: merge the shards of all variants and decide, without a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from certbench.certify.protocol import Shard
from certbench.errors import CertbenchError
from certbench.params import build
from certbench.results import rows
from certbench.threat import as_threat
from certbench.variants import applying

if TYPE_CHECKING:
    import pyarrow as pa

    from certbench.job import Job


def run(job: Job) -> None:
    """Decide for one experiment, dataset, model and defence; writes ``certificates`` rows."""
    import pyarrow as pa

    work = job.work
    block = work["defense"]
    module = job.plugin("certifier", block["name"])
    where = f"defenses.{block['id']}"
    collect = build(module.CollectParams, block["collect"], where)
    decide = build(module.DecideParams, block["decide"], where)
    threat = as_threat(module.threat(collect, decide))
    by_variant: dict[str, list[tuple[Path, dict]]] = defaultdict(list)
    for path in job.inputs["stats"]:
        footer = rows.provenance(path)
        _check_run(path, footer["work"], work)
        by_variant[footer["identity"].get("variant", "clean")].append((path, footer))
    seconds, jobs = 0.0, 0
    tables: list[pa.Table] = []
    with job.bar(len(work["variants"]), f"decide {block['id']}", "variants") as bar:
        for variant in work["variants"]:
            found = by_variant.get(variant, [])
            if not found:
                raise CertbenchError(f"no shards of variant '{variant}'", where=where)
            items = _items([footer for _, footer in found], work["items"], where)
            shards = [
                Shard(path, rows.read(path, "stats"), footer["identity"]) for path, footer in found
            ]
            stats = module.merge(shards, collect, items["item_index"])
            columns = dict(module.decide(stats, collect, decide, items["label"]))
            columns.setdefault("abstain", np.asarray(columns["predict"]) < 0)
            columns["label"] = items["label"]
            predict = np.asarray(columns["predict"])
            # An unknown label of -1 must not agree with an abstention.
            columns["correct"] = (predict == items["label"]) & (predict >= 0)
            columns["item_id"] = items["item_id"]
            columns["item_index"] = items["item_index"]
            spent = sum(float(footer.get("device_time_s", 0.0)) for _, footer in found)
            seconds += spent
            jobs += len(found)
            size = len(items["label"])
            columns.setdefault("device_time_s", np.full(size, spent / max(size, 1)))
            keys = applying.row_keys(job, variant_id=variant, defense=block["id"], **threat.row())
            tables.append(rows.table("certificates", columns, keys, module.columns))
            bar.update(1)
    made = pa.concat_tables(tables).unify_dictionaries()
    shape = next(iter(by_variant.values()))[0][1]["identity"].get("shape")
    collected = {
        "jobs": jobs,
        "device_time_s": seconds,
        "wall_time_s": _wall(by_variant),
        **_made_with([footer for found in by_variant.values() for _, footer in found]),
    }
    footer = job.provenance(collected=collected, shape=shape)
    rows.write(job.output("rows"), made, "certificates", footer)


def _check_run(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse a shard of another run, which the shards' agreement among themselves cannot show."""
    pairs = [(key, theirs.get(key), ours[key]) for key in ("task", "dataset", "model", "seed")]
    made, wanted = theirs["defense"], ours["defense"]
    pairs += [(f"defense {key}", made.get(key), wanted[key]) for key in ("name", "version")]
    for name, found, planned in pairs:
        if isinstance(planned, Mapping) and isinstance(found, Mapping):
            # What of a block differs says more than the whole of it.
            keys = sorted({*planned, *found})
            key = next((key for key in keys if found.get(key) != planned.get(key)), None)
            if key is None:
                continue
            name, found, planned = f"{name} {key}", found.get(key), planned.get(key)
        if found != planned:
            raise CertbenchError(
                f"is of another run: its {name} is {found!r}, not {planned!r}",
                where=str(path),
                remedy="delete it and run the workflow again",
            )


def _wall(by_variant: dict[str, list[tuple[Path, dict]]]) -> float:
    return sum(footer["wall_time_s"] for found in by_variant.values() for _, footer in found)


def _made_with(footers: list[dict]) -> dict[str, Any]:
    """Where the shards were collected, and the identity that they share.

    A certificate holds for the function as it was evaluated, which this job did not see.
    """
    first = footers[0]["identity"]
    return {
        "devices": sorted({str(footer.get("device", "cpu")) for footer in footers}),
        "torch": sorted({str(footer["torch"]) for footer in footers if "torch" in footer}),
        "identity": {
            key: value
            for key, value in first.items()
            if all(footer["identity"].get(key) == value for footer in footers)
        },
    }


def _items(footers: list[dict], planned: int, where: str) -> dict[str, Any]:
    """The items of all shards of a variant, in order of their shard ranges."""
    found: dict[int, tuple[str, int]] = {}
    for footer in footers:
        listed = footer["items"]
        for index, item_id, label in zip(
            listed["item_index"], listed["item_id"], listed["label"], strict=True
        ):
            if found.setdefault(index, (item_id, label)) != (item_id, label):
                raise CertbenchError(
                    f"item {index} is '{item_id}' in one shard and '{found[index][0]}' in another",
                    where=where,
                    remedy="delete the stats of this dataset and run again",
                )
    if len(found) != planned:
        raise CertbenchError(
            f"shards hold {len(found)} items, planned are {planned}",
            where=where,
            remedy="run the workflow again, so that every planned shard exists",
        )
    order = sorted(found)
    return {
        "item_index": np.array(order, np.uint32),
        "item_id": [found[i][0] for i in order],
        "label": np.array([found[i][1] for i in order], np.int32),
    }
