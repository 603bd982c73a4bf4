"""``certbench watch``: what runs, how far it is, and when the study will be done.

Reads files only: the plan's outputs that exist, the status file of each running job, the progress
files of interrupted ones, and the benchmark files of finished ones. So it works from any machine
that sees the folder, without asking SLURM.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certbench import paths
from certbench.cluster.estimate import duration

if TYPE_CHECKING:
    from certbench.plan import Plan, PlannedJob

PROGRESS = Path("results/.progress")
# A running job rewrites its status every 5 s, at the latest after its slowest batch.
STALE_S = 120.0


@dataclass(frozen=True)
class Running:
    """A job at work, as its status file tells.

    Attributes:
        rule: Rule name.
        label: What it works on.
        done: Units done.
        total: Units to do.
        unit: Their name.
        rate: Units per second.
        age_s: Seconds since it said so.
        place: Host and SLURM job.
    """

    rule: str
    label: str
    done: int
    total: int
    unit: str
    rate: float
    age_s: float
    place: str

    @property
    def stale(self) -> bool:
        """Whether it has been silent for so long that it is probably dead."""
        return self.age_s > STALE_S

    @property
    def left_s(self) -> float | None:
        """Seconds left at its rate."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None


@dataclass
class State:
    """How far a study is.

    Attributes:
        done: Finished jobs by rule.
        planned: Planned jobs by rule.
        running: Jobs at work (and stale ones).
        kept: Progress files of jobs that are not at work.
        left_s: Seconds until the end, None where nothing is known yet.
        unknown: Rules that nothing is known of, left out of ``left_s``.
    """

    done: dict[str, int] = field(default_factory=dict)
    planned: dict[str, int] = field(default_factory=dict)
    running: list[Running] = field(default_factory=list)
    kept: int = 0
    left_s: float | None = None
    unknown: list[str] = field(default_factory=list)


def read(plan: Plan, now: float | None = None) -> State:
    """The state of a plan from the files in the working folder.

    Args:
        plan: The plan.
        now: Seconds since the epoch (default, the clock).
    """
    now = time.time() if now is None else now
    state = State()
    remaining: dict[str, list[PlannedJob]] = defaultdict(list)
    for (rule, _), job in plan.jobs.items():
        state.planned[rule] = state.planned.get(rule, 0) + 1
        if all(os.path.exists(path) for path in job.outputs.values()):
            state.done[rule] = state.done.get(rule, 0) + 1
        else:
            remaining[rule].append(job)
    state.running = statuses(now)
    names = {path.stem for path in PROGRESS.glob("*.json")}
    state.kept = sum(path.stem not in names for path in PROGRESS.glob("*.npz"))
    _forecast(state, remaining)
    return state


def statuses(now: float) -> list[Running]:
    """What the running jobs told last."""
    found = []
    for path in sorted(PROGRESS.glob("*.json")):
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            place = str(told["host"]) + (
                f", SLURM {told['slurm_job']}" if told["slurm_job"] else ""
            )
            found.append(
                Running(
                    told["rule"],
                    told["label"],
                    int(told["done"]),
                    int(told["total"]),
                    told["unit"],
                    float(told["rate"]),
                    max(0.0, now - float(told["updated"])),
                    place,
                )
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue  # replaced or removed while we looked
    return found


def _forecast(state: State, remaining: dict[str, list[PlannedJob]]) -> None:
    """Rule after rule: jobs left over jobs at once, times how long one takes."""
    alive = [job for job in state.running if not job.stale]
    at_once = max(1, len(alive))
    total = 0.0
    for rule, jobs in remaining.items():
        spent = durations(rule)
        here = [job for job in alive if job.rule == rule]
        lefts = [job.left_s for job in here if job.left_s is not None]
        if spent:
            each = sum(spent) / len(spent)
        elif lefts:
            each = sum((j.total / j.rate) for j in here if j.rate > 0) / len(lefts)
        else:
            state.unknown.append(rule)
            continue
        waiting = max(0, len(jobs) - len(here))
        total += max(lefts, default=0.0) + each * -(-waiting // at_once)
    if remaining and len(state.unknown) == len(remaining):
        return
    state.left_s = total


def durations(rule: str) -> list[float]:
    """Seconds of the finished jobs of a rule, from their benchmark files."""
    pattern = paths.benchmark(rule)
    folder = Path(pattern.split("{")[0]) if "{" in pattern else Path(pattern).parent
    found = []
    for path in folder.rglob("*.tsv") if folder.is_dir() else ():
        try:
            head, values = path.read_text(encoding="utf-8").splitlines()[:2]
            found.append(float(values.split("\t")[head.split("\t").index("s")]))
        except (OSError, ValueError):
            continue
    return found


def lines(state: State, now: float | None = None) -> Iterable[str]:
    """The state in lines of text."""
    now = time.time() if now is None else now
    finished, planned = sum(state.done.values()), sum(state.planned.values())
    alive = [job for job in state.running if not job.stale]
    yield f"{finished:,} of {planned:,} jobs done ({100 * finished // max(planned, 1)}%)"
    width = max(map(len, state.planned), default=0)
    for rule, count in state.planned.items():
        done = state.done.get(rule, 0)
        here = sum(job.rule == rule for job in alive)
        yield (
            f"  {rule:{width}}  {_bar(done, count)}  {done:>6,} / {count:,}"
            + (f"  ({here} at work)" if here else "")
        )
    for job in alive:
        left = f", {duration(job.left_s)} left" if job.left_s is not None else ""
        yield (
            f"  {job.rule}  {_bar(job.done, job.total)}  {job.label}: {job.done:,} / "
            f"{job.total:,} {job.unit}, {job.rate:,.3g}/s{left}  [{job.place}]"
        )
    for job in state.running:
        if job.stale:
            yield (
                f"  silent for {duration(job.age_s)}: {job.rule}, {job.label}, at {job.done:,} / "
                f"{job.total:,} {job.unit}  [{job.place}]; it probably died, a re-run goes on there"
            )
    if state.kept:
        yield f"  {state.kept} interrupted job(s) with kept progress"
    if finished == planned:
        yield "done"
    elif state.left_s is None:
        yield "end: not known before the first jobs have finished"
    else:
        end = time.strftime("%a %d %b %H:%M", time.localtime(now + state.left_s))
        rest = f", without {', '.join(state.unknown)}" if state.unknown else ""
        yield f"end: {end}, in {duration(state.left_s)}{rest}, at the present pace"


def _bar(done: int, total: int, width: int = 20) -> str:
    filled = width * done // max(total, 1)
    return "[" + "#" * filled + "." * (width - filled) + "]"


def add_parser(subparsers: Any) -> None:
    """Add ``certbench watch`` to the command line."""
    text = "Show what runs, how far it is, and when the study will be done."
    made = subparsers.add_parser("watch", help=text, description=text)
    made.add_argument(
        "--configfile",
        nargs="+",
        default=[],
        metavar="FILE",
        help="configurations laid over config/config.yaml, as for snakemake",
    )
    made.add_argument("--once", action="store_true", help="print it once and end")
    made.add_argument(
        "--interval", type=float, default=5.0, metavar="SECONDS", help="between two looks"
    )
    made.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Show the state, once or until the study is done or Ctrl-C."""
    from certbench import config, plan

    planned = plan.make(config.load(options.configfile))
    terminal = sys.stdout.isatty()
    try:
        while True:
            state = read(planned)
            if terminal and not options.once:
                print("\x1b[H\x1b[2J", end="")
            print("\n".join(lines(state)), flush=True)
            if options.once or sum(state.done.values()) == sum(state.planned.values()):
                return 0
            time.sleep(options.interval)
    except KeyboardInterrupt:
        return 0
