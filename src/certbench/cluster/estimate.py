"""What a study costs before it is launched: jobs, passes, GPU-hours, disk, the longest chain.

Passes are counted from the plan, not guessed: what an attack or a sequential certification might
save by stopping early is not subtracted, so the numbers are upper bounds. Time is passes divided by
a rate (:mod:`certbench.cluster.throughput`), plus the start of each job. Imports no torch.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certbench.cluster import partitions, throughput
from certbench.cluster.partitions import Request
from certbench.errors import CertbenchError

if TYPE_CHECKING:
    from certbench.plan import Plan, PlannedJob

# A backward pass computes gradients of activations and of weights: two forward passes' work.
BACKWARD = 2
# Seconds from the start of a job to its first batch: Snakemake twice, Python, torch, the model.
START_S = 45.0
# Seconds of a job without a model: reading and merging files, drawing.
LIGHT_S = 60.0
LONG_GPU_HOURS = 2000.0
TARGET_MIN = 45

# Forward and backward passes for each image and epoch, by what the recipes' papers compute.
_RECIPES: dict[str, Any] = {
    "standard": lambda p: (1, 1),
    "gaussian": lambda p: (1, 1),
    "consistency": lambda p: (p["noise_samples"], p["noise_samples"]),
    "macer": lambda p: (p["noise_samples"], p["noise_samples"]),
    "smoothadv": lambda p: 2 * (p["noise_samples"] * (p["attack_steps"] + 1),),
    "smoothmix": lambda p: 2 * (p["noise_samples"] * (p["attack_steps"] + 2),),
}


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


SIDE = 224
"""Side of an image where the view does not say it."""

SURROGATES = 5
"""What a masked or voting defence offers to the attack on every surrogate, at most."""


def passes(
    job: PlannedJob, train_items: int | None = None, side: int | None = None
) -> tuple[int, int]:
    """Forward and backward passes of a job: an upper bound.

    Args:
        job: A planned job.
        train_items: Training images, where the job trains (None if unknown: counted as 50,000).
        side: Height and width of the images (None if unknown: 224).
    """
    work = job.work
    if job.rule == "predict":
        return work["items"][1] - work["items"][0], 0
    if job.rule == "collect":
        start, stop = work["samples"]
        params = work["defense"]["collect"]
        fixed = _fixed_passes(work, params, side)
        if fixed is not None:
            return (work["items"][1] - work["items"][0]) * fixed, 0
        samples = (params.get("n", 0) if stop is None else stop - start) + params.get("n0", 0)
        return (work["items"][1] - work["items"][0]) * int(samples), 0
    if job.rule == "attack":
        forward, backward = _attack_passes(work, side)
        items = work["items"][1] - work["items"][0]
        return items * forward, items * backward
    if job.rule == "fit":
        forward, backward = _attack_passes(work, side)
        items = work["attack"]["params"].get("fit_items", 10_000)
        return items * forward, items * backward
    if job.rule == "train":
        params = work["recipe"]["params"]
        items = work["dataset"]["limit"] or train_items or 50_000
        counts = _RECIPES.get(work["recipe"]["name"], lambda p: (1, 1))(params)
        epochs = int(params.get("epochs", 1))
        return items * epochs * counts[0], items * epochs * counts[1]
    return 0, 0


def _fixed_passes(
    work: Mapping[str, Any], params: Mapping[str, Any], side: int | None
) -> int | None:
    """What a certifier says one certificate costs; None where samples say it."""
    from certbench import plugins

    if "name" not in work["defense"]:
        return None
    module = plugins.load(
        "certifier", work["defense"]["name"], tuple(work.get("plugins", ())), where="estimate"
    )
    told = getattr(module, "forward_passes", None)
    return int(told(params, side or SIDE)) if told else None


def _attack_passes(work: Mapping[str, Any], side: int | None = None) -> tuple[int, int]:
    """Forward and backward passes for one image that survives the whole attack."""
    name, params = work["attack"]["name"], work["attack"]["params"]
    defense = work["defense"].get("params", {})
    draws = sum(
        int(defense.get(name, 0))
        for name in ("attack_draws", "attack_masks", "attack_pairs", "attack_views")
    )
    draws = max(1, draws)
    predict = int(defense.get("predict_n", 0)) or _fixed_passes(work, defense, side) or 0

    def climbing(steps: int, runs: int, each: int = 1) -> tuple[int, int, int]:
        return steps * runs * each, steps * runs * each, steps * runs

    def one(attack: str) -> tuple[int, int, int]:
        steps, restarts = int(params.get("steps", 100)), int(params.get("restarts", 1))
        targets, eot = int(params.get("targets", 9)), int(params.get("eot", 1))
        if attack in ("apgd-t", "fab-t"):
            return climbing(steps, targets, eot if attack == "apgd-t" else 2)
        if attack == "square":
            queries = int(params.get("queries", 5000)) * restarts
            return queries, 0, queries
        return climbing(steps, restarts, eot)

    if name == "autoattack":
        suites = {
            "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
            "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
            "rand": ("apgd-ce", "apgd-dlr"),
        }
        parts = [one(a) for a in suites.get(params["suite"], params["attacks"])]
    elif name == "apgd" and params.get("loss") == "dlr-targeted":
        parts = [one("apgd-t")]
    elif name == "fab":
        parts = [one("fab-t" if params.get("targeted") else "fab")]
    elif name == "adaptive":
        offered = SURROGATES if predict else 1
        count = len(params.get("objectives", ())) or offered
        queries = int(params["queries"])
        parts = [one("pgd")] * count + ([(queries, 0, queries)] if predict else [])
    elif name == "patch_pgd":
        places = int(params["positions"]) + int(params["random_positions"])
        places += 4 * bool(params["corners"])
        parts = [climbing(int(params["steps"]) * int(params["restarts"]), places)]
    else:
        parts = [one(name)]
    forward, backward, steps = (sum(column) for column in zip(*parts, strict=True))
    if not predict:
        return forward + 3, backward
    looks = math.ceil(steps / int(params.get("judge_every", 1)))
    return forward * draws + (looks + 2) * predict, backward * draws


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


def lines(made: Estimate) -> list[str]:
    """The estimate as a table."""
    head = ("stage", "jobs", "forward passes", "backward", "GPU-hours", "disk")
    rows = [head]
    from certbench.plan import GPU_RULES

    for rule, cost in [*made.stages.items(), ("total", made.total)]:
        hours = made.gpu_hours if rule == "total" else cost.gpu_s / 3600
        shown = f"{hours:,.1f}" if rule in (*GPU_RULES, "total") else "-"
        if cost.unknown:
            shown += " + ?"
        rows.append(
            (
                rule,
                f"{cost.jobs:,}",
                f"{cost.forward:,}",
                f"{cost.backward:,}",
                shown,
                _bytes(cost.disk),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def duration(seconds: float) -> str:
    """Seconds in words: ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min"


def chain_words(rules: list[str]) -> str:
    """The rules of a chain, repeats counted."""
    counted: dict[str, int] = defaultdict(int)
    for rule in rules:
        counted[rule] += 1
    return " > ".join(f"{rule} x {n}" if n > 1 else rule for rule, n in counted.items())


def probed(plan: Plan, seconds: float) -> dict[str, throughput.Rate]:
    """Measured rates of the planned models on this machine, in ``seconds`` altogether."""
    found: dict[str, throughput.Rate] = {}
    sides = sides_of(plan)
    models = {key[0]: job for (rule, key), job in plan.jobs.items() if rule in ("train", "fetch")}
    for name, job in models.items():
        work = {
            "task": job.work["task"],
            "builder": job.work["builder"],
            "num_classes": job.work["num_classes"] or 10,
            "side": sides.get(name, 224),
            "plugins": job.work["plugins"],
            "device": plan.config["device"],
            "numerics": plan.config["numerics"],
            "noise_backend": plan.config["noise_backend"],
        }
        found[name] = throughput.probe(work, seconds / len(models), plan.config["batch_size"])
    return found


def add_parser(subparsers: Any) -> None:
    """Add ``certbench estimate`` to the command line."""
    text = "Say what a study costs before it is launched: jobs, passes, GPU-hours, disk, time."
    made = subparsers.add_parser("estimate", help=text, description=text)
    made.add_argument(
        "--configfile",
        nargs="+",
        default=[],
        metavar="FILE",
        help="configurations laid over config/config.yaml, as for snakemake",
    )
    made.add_argument(
        "--hardware",
        default="a100",
        choices=sorted(throughput.HARDWARE),
        help="whose rates to assume (default: a100)",
    )
    made.add_argument(
        "--probe",
        nargs="?",
        type=float,
        const=20.0,
        metavar="SECONDS",
        help="measure the rates on this machine instead (default: 20 seconds)",
    )
    made.add_argument(
        "--profile",
        default="profiles/slurm",
        metavar="FOLDER",
        help="whose time limits and partitions to check (default: profiles/slurm)",
    )
    made.add_argument(
        "--long", action="store_true", help=f"accept more than {LONG_GPU_HOURS:,.0f} GPU-hours"
    )
    made.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print the estimate; exit code 3 above :data:`LONG_GPU_HOURS` without ``--long``."""
    from certbench import config, plan

    planned = plan.make(config.load(options.configfile))
    measured = probed(planned, options.probe) if options.probe else {}
    made = estimate(planned, options.hardware, measured)
    print("\n".join(lines(made)))
    seconds, rules = made.chain
    print(f"\nlongest chain: {duration(seconds)} ({chain_words(rules)}), without waiting in queues")
    for name, source in made.sources.items():
        rate = rates_of(planned, options.hardware, measured)[name]
        print(f"rate of {name}: {f'{rate.images_per_s:,.0f} images/s, ' if rate else ''}{source}")
    if options.probe:
        for rule in ("collect", "attack"):
            if rule in made.longest:
                spent, job = made.longest[rule]
                size = shard_size(job, spent / 60, planned)
                print(f"for {rule} jobs of at most {TARGET_MIN} min: {size}")
    profile = config.load_yaml(Path(options.profile) / "config.yaml")
    for warning in warnings(made, planned, profile):
        print(f"warning: {warning}")
    if made.gpu_hours > LONG_GPU_HOURS and not options.long:
        print(
            f"{made.gpu_hours:,.0f} GPU-hours are more than {LONG_GPU_HOURS:,.0f}: "
            "say --long if that is meant"
        )
        return 3
    return 0
