"""Whether the planned jobs fit their time limits and partitions, and the shards that would.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from certbench.cluster import partitions
from certbench.cluster.cost import START_S, Estimate
from certbench.cluster.partitions import Request
from certbench.errors import CertbenchError

if TYPE_CHECKING:
    from certbench.plan import Plan, PlannedJob

# Minutes that a proposed shard takes.
TARGET_MIN = 45


def requests(plan: Plan, profile: Mapping[str, Any]) -> dict[str, Request]:
    """What each planned rule asks for under a profile.

    Args:
        plan: The plan.
        profile: The profile's ``config.yaml``.
    """
    found = {}
    defaults = dict(profile.get("default-resources") or {})
    for rule in plan.counts():
        asked = {
            **defaults,
            **plan.resources(rule),
            **((profile.get("set-resources") or {}).get(rule) or {}),
        }
        threads = (profile.get("set-threads") or {}).get(rule, asked.get("threads", 1))
        found[rule] = Request.of(rule, threads, asked)
    return found


def warnings(made: Estimate, plan: Plan, profile: Mapping[str, Any]) -> list[str]:
    """Where a job would outrun its time limit or its partition; with what to change."""
    found = []
    file = profile.get("slurm-partition-config")
    listed = partitions.load(file) if file else []
    for rule, request in requests(plan, profile).items():
        spent, job = made.longest[rule]
        minutes = spent / 60
        if request.runtime and minutes > request.runtime / 2:
            what = "outruns" if minutes > request.runtime else "comes close to"
            found.append(
                f"{rule}: the longest job takes about {minutes:,.0f} min and {what} its limit of "
                f"{request.runtime:,.0f} min\n  -> {_remedy(rule, job, minutes, plan)}"
            )
        if listed:
            try:
                partitions.choose(listed, request, str(file))
            except CertbenchError as error:
                found.append(str(error))
    return found


def _remedy(rule: str, job: PlannedJob, minutes: float, plan: Plan) -> str:
    size = shard_size(job, minutes, plan)
    group = "train_jobs" if rule == "train" else "gpu_jobs" if size else "cpu_jobs"
    raised = f"raise resources.{group}.runtime to {max(10, math.ceil(minutes * 2))}"
    return f"set {size}, or {raised}" if size else raised


def shard_size(job: PlannedJob, minutes: float, plan: Plan) -> str | None:
    """The shard size with which a job of this kind takes about :data:`TARGET_MIN` minutes."""
    if job.rule not in ("collect", "predict", "attack"):
        return None
    most = max(j.work["items"][1] for (r, _), j in plan.jobs.items() if r == job.rule)
    fraction = (TARGET_MIN - START_S / 60) / max(minutes - START_S / 60, 1e-9)
    wanted = job_items(job) * fraction
    if wanted < 1 and job.rule == "collect" and job.work["samples"][1] is not None:
        start, stop = job.work["samples"]
        samples = f"{_round(max((stop - start) * wanted, 1)):,.0f}".replace(",", "_")
        return f"shards.items: 1 and shards.samples: {samples}"
    return f"shards.items: {_round(min(max(wanted, 1), most)):,.0f}".replace(",", "_")


def job_items(job: PlannedJob) -> int:
    """Items of a shard."""
    return job.work["items"][1] - job.work["items"][0]


def _round(value: float) -> int:
    """Down to one significant digit, 1, 2 or 5."""
    power = 10 ** math.floor(math.log10(value))
    return int(max(step * power for step in (1, 2, 5) if step * power <= value))
