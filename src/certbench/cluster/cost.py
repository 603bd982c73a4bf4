"""What a study costs: passes, GPU-hours, disk, the longest chain of jobs.

Time is passes (:mod:`certbench.cluster.passes`) divided by a rate
(:mod:`certbench.cluster.throughput`), plus the start of each job. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from certbench.cluster import throughput
from certbench.cluster.passes import passes
from certbench.errors import CertbenchError

if TYPE_CHECKING:
    from certbench.plan import Plan, PlannedJob

# A backward pass computes gradients of activations and of weights: two forward passes' work.
BACKWARD = 2
# Seconds from the start of a job to its first batch: Snakemake twice, Python, torch, the model.
START_S = 45.0
# Seconds of a job without a model: reading and merging files, drawing.
LIGHT_S = 60.0


@dataclass
class Cost:
    """Cost of one job or of many.

    Attributes:
        jobs: Number of jobs.
        forward: Forward passes of images.
        backward: Backward passes.
        gpu_s: Seconds on a GPU (or on the machine, where there is none), starts included.
        disk: Bytes written.
        unknown: Jobs whose time is not known, for want of a rate.
    """

    jobs: int = 0
    forward: int = 0
    backward: int = 0
    gpu_s: float = 0.0
    disk: int = 0
    unknown: int = 0

    def add(self, other: Cost) -> None:
        """Add another cost to this one."""
        self.jobs += other.jobs
        self.forward += other.forward
        self.backward += other.backward
        self.gpu_s += other.gpu_s
        self.disk += other.disk
        self.unknown += other.unknown


@dataclass
class Estimate:
    """Cost of a study.

    Attributes:
        stages: Cost by rule, in the order of the plan.
        chain: Longest chain of jobs that wait for each other: seconds, and its rules.
        longest: For each rule, seconds of its longest job and that job.
        sources: Where the rates come from, by model.
        hardware: What was assumed.
    """

    stages: dict[str, Cost] = field(default_factory=dict)
    chain: tuple[float, list[str]] = (0.0, [])
    longest: dict[str, tuple[float, PlannedJob]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    hardware: str = ""

    @property
    def total(self) -> Cost:
        """Cost of everything."""
        made = Cost()
        for cost in self.stages.values():
            made.add(cost)
        return made

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of the rules that run models."""
        from certbench.plan import GPU_RULES

        return sum(cost.gpu_s for rule, cost in self.stages.items() if rule in GPU_RULES) / 3600


def disk(job: PlannedJob, side: int | None) -> int:
    """Bytes a job writes, from the widths of the rows (measured on small studies)."""
    items = 0
    if "items" in job.work and isinstance(job.work["items"], list):
        items = job.work["items"][1] - job.work["items"][0]
    if job.rule == "attack":
        return 20_000 + items * (200 + 3 * (side or 224) ** 2 * 4)
    if job.rule == "collect":
        return 20_000 + items * 250
    if job.rule == "predict":
        return 12_000 + items * 60
    if job.rule == "materialise":
        # PNG of photographs: 96 kB at 224 pixels, 147 kB with noise; JPEG a sixth of it.
        share = 0.4 if job.work["variant"].get("encoding") == "jpeg85" else 2.5
        return 20_000 + items * int(share * (side or 224) ** 2)
    if job.rule == "prepare":
        return 5_000_000
    if job.rule in ("train", "fetch"):
        return 100_000_000
    return 200_000


def estimate(
    plan: Plan,
    hardware: str = "a100",
    measured: Mapping[str, throughput.Rate] | None = None,
) -> Estimate:
    """Cost of a plan.

    Args:
        plan: The plan.
        hardware: Key of :data:`certbench.cluster.throughput.HARDWARE`.
        measured: Rates by model id that replace those of the table (a probe's).
    """
    made = Estimate(hardware=throughput.HARDWARE[hardware].name if hardware else "")
    rates = rates_of(plan, hardware, measured or {})
    made.sources = {name: r.source if r else "no rate: use --probe" for name, r in rates.items()}
    producers = {path: job for job in plan.jobs.values() for path in job.outputs.values()}
    seconds: dict[tuple, float] = {}
    for job in plan.jobs.values():
        cost = _cost(job, plan, rates)
        seconds[job.rule, job.key] = cost.gpu_s
        made.stages.setdefault(job.rule, Cost()).add(cost)
        if cost.gpu_s > made.longest.get(job.rule, (-1.0, job))[0]:
            made.longest[job.rule] = (cost.gpu_s, job)
    made.chain = _longest_chain(plan, producers, seconds)
    return made


def by_experiment(
    config: Mapping[str, Any], devices: Iterable[str]
) -> dict[str, dict[str, float | None]]:
    """What was to be expected of a study that has run: seconds by experiment and stage.

    Args:
        config: Its configuration.
        devices: Names of the devices that it ran on, as its results state them.

    Returns:
        Seconds, None where a model has no rate; empty if the configuration can no longer be
        planned. Jobs that experiments share count in each.
    """
    from certbench import plan as planning

    try:
        plan = planning.make(config)
    except CertbenchError:
        return {}
    rates = rates_of(plan, throughput.hardware_of(devices), {})
    found: dict[str, dict[str, float | None]] = {}
    for name, groups in plan.experiments.items():
        stages: dict[str, Cost] = {}
        for job in {(j.rule, j.key): j for jobs in groups.values() for j in jobs}.values():
            stages.setdefault(job.rule, Cost()).add(_cost(job, plan, rates))
        found[name] = {rule: None if c.unknown else c.gpu_s for rule, c in stages.items()}
    return found


def rates_of(
    plan: Plan, hardware: str, measured: Mapping[str, throughput.Rate]
) -> dict[str, throughput.Rate | None]:
    """Rate of each planned model: measured, or from the table."""
    found: dict[str, throughput.Rate | None] = {}
    sides = sides_of(plan)
    for (rule, key), job in plan.jobs.items():
        if rule in ("train", "fetch"):
            name = key[0]
            found[name] = measured.get(name) or throughput.rate(
                hardware,
                throughput.architecture(job.work["builder"]),
                sides.get(name),
                plan.config["numerics"],
            )
    return found


def sides_of(plan: Plan) -> dict[str, int]:
    """Largest image height at which each model runs, where the view says it."""
    from certbench.datasets import views

    found: dict[str, int] = {}
    for (rule, key), job in plan.jobs.items():
        if rule in ("predict", "collect", "attack", "train"):
            size = views.parse(job.work["dataset"]["view"]).size
            name = key[0] if rule == "train" else job.work["model"]
            if size:
                found[name] = max(found.get(name, 0), size[0])
    return found


def _cost(job: PlannedJob, plan: Plan, rates: Mapping[str, throughput.Rate | None]) -> Cost:
    from certbench.datasets import views
    from certbench.plan import GPU_RULES

    side = None
    if isinstance(job.work.get("dataset"), dict) and "view" in job.work["dataset"]:
        size = views.parse(job.work["dataset"]["view"]).size
        side = size[0] if size else None
    if job.rule not in GPU_RULES:
        return Cost(1, 0, 0, LIGHT_S, disk(job, side))
    items = None
    if job.rule == "train":
        block = job.work["dataset"]
        stated = plan.config["datasets"][block["id"]].get("sizes", {})
        items = stated.get(block["train_split"]) or _split_size(job)
    forward, backward = passes(job, items, side)
    rate = rates.get(job.key[0] if job.rule == "train" else job.work["model"])
    spent = START_S + ((forward + BACKWARD * backward) / rate.images_per_s if rate else 0.0)
    return Cost(1, forward, backward, spent, disk(job, side), 0 if rate else 1)


def _split_size(job: PlannedJob) -> int | None:
    from certbench import params as parameters
    from certbench import plugins

    block = job.work["dataset"]
    module = plugins.load("dataset", block["plugin"], tuple(job.work["plugins"]), where="estimate")
    built = parameters.build(module.Params, block["params"], "estimate")
    return module.splits(built).get(block["train_split"])


def _longest_chain(
    plan: Plan, producers: Mapping[str, PlannedJob], seconds: Mapping[tuple, float]
) -> tuple[float, list[str]]:
    """Jobs are planned after their inputs, except where a model is shared: resolve on demand."""
    best: dict[tuple, tuple[float, list[str]]] = {}

    def until(job: PlannedJob) -> tuple[float, list[str]]:
        key = (job.rule, job.key)
        if key not in best:
            before: tuple[float, list[str]] = (0.0, [])
            for files in job.inputs.values():
                for path in files:
                    if path in producers:
                        before = max(before, until(producers[path]), key=lambda found: found[0])
            best[key] = (before[0] + seconds[key], [*before[1], job.rule])
        return best[key]

    return max((until(job) for job in plan.jobs.values()), key=lambda found: found[0])
