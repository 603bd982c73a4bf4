"""``certbench estimate``: what a study costs before it is launched, in a table and in words."""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certbench.cluster import limits, throughput
from certbench.cluster.cost import Estimate, estimate, rates_of, sides_of

if TYPE_CHECKING:
    from certbench.plan import Plan

LONG_GPU_HOURS = 2000.0


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
                size = limits.shard_size(job, spent / 60, planned)
                print(f"for {rule} jobs of at most {limits.TARGET_MIN} min: {size}")
    profile = config.load_yaml(Path(options.profile) / "config.yaml")
    for warning in limits.warnings(made, planned, profile):
        print(f"warning: {warning}")
    if made.gpu_hours > LONG_GPU_HOURS and not options.long:
        print(
            f"{made.gpu_hours:,.0f} GPU-hours are more than {LONG_GPU_HOURS:,.0f}: "
            "say --long if that is meant"
        )
        return 3
    return 0
