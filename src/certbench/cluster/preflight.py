"""What is checked when a run starts, before anything is submitted.

Called by the workflow's ``onstart``, with the jobs Snakemake is about to run. Everything here is
cheap, and refuses with one message and a remedy what would otherwise fail job by job, or hang.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certbench.cluster import partitions
from certbench.cluster.partitions import Request
from certbench.errors import CertbenchError

if TYPE_CHECKING:
    from certbench.plan import Plan

RESULTS = Path("results")
LEAST_FREE = 16 * 2**20
COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sacct")
# What the tasks of a job array share: those of its first job.
_SHARED = ("threads", "mem_mb", "runtime", "gpu", "gpu_model", "partition", "account")


def check(plan: Plan, workflow: Any) -> None:
    """Check a run that is about to start.

    Args:
        plan: The plan.
        workflow: Snakemake's workflow object.

    Raises:
        CertbenchError: The first thing that would go wrong, with the remedy.
    """
    results_folder()
    free_space()
    jobs = [job for job in workflow.dag.needrun_jobs() if not job.is_group()]
    dataset_folders(plan, {job.rule.name for job in jobs})
    requests = [Request.of(job.rule.name, job.threads, dict(job.resources.items())) for job in jobs]
    if workflow.executor_plugin.name == "slurm":
        settings = workflow.executor_settings
        commands()
        earlier_jobs()
        file = settings.partition_config or os.environ.get("SNAKEMAKE_SLURM_PARTITIONS")
        if file:
            fitting(requests, file)
        limit = workflow.scheduling_settings.max_jobs_per_timespan
        arrays(
            requests,
            settings.array_jobs or "",
            workflow.resource_settings.nodes,
            limit.max_jobs if limit else None,
        )
        devices(plan, requests)
    elif plan.config["device"] == "cuda" and any(r.rule in _gpu_rules() for r in requests):
        local_gpu()


def _gpu_rules() -> tuple[str, ...]:
    from certbench.plan import GPU_RULES

    return GPU_RULES


def results_folder(folder: Path = RESULTS) -> None:
    """Refuse a results folder that is gone or cannot be written.

    Raises:
        CertbenchError: Says which, and what to do.
    """
    if folder.is_symlink() and not folder.exists():
        raise CertbenchError(
            f"leads to {os.readlink(folder)}, which does not exist",
            where=str(folder),
            remedy="if that workspace has expired, restore it (ws_restore) or allocate another "
            "(ws_allocate) and link results to it; otherwise remove the link",
        )
    try:
        folder.mkdir(exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise CertbenchError(
            f"cannot be written: {error.strerror}",
            where=str(folder),
            remedy="check its owner and rights, and the quota; "
            "or link results to a folder you may write",
        ) from error


def free_space(folder: Path = RESULTS) -> None:
    """Refuse a results folder on a full file system.

    Raises:
        CertbenchError: Less than :data:`LEAST_FREE` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE:
        raise CertbenchError(
            f"its file system is full ({free / 2**20:.1f} MB are left)",
            where=str(folder),
            remedy="free space there, then run again: finished work and progress are kept",
        )


def explain_failure(folder: Path = RESULTS) -> None:
    """After a failed run, say on stderr what the jobs could not: that the file system is full."""
    with contextlib.suppress(OSError):
        try:
            free_space(folder)
        except CertbenchError as error:
            print(f"certbench: {error}", file=sys.stderr)


def dataset_folders(plan: Plan, rules: Iterable[str] | None = None) -> None:
    """Refuse datasets whose folder is not there, where something will be read.

    Args:
        plan: The plan.
        rules: Rules that are about to run; all where None.

    Raises:
        CertbenchError: Names the dataset, its folder, and the first part of it that is missing.
    """
    reading = {"prepare", "train", "predict", "collect", "fit", "attack", "figure"}
    if rules is not None and not reading & set(rules):
        return
    for (rule, key), job in plan.jobs.items():
        root = job.work["params"].get("root") if rule == "prepare" else None
        if root is None or Path(root).expanduser().exists():
            continue
        missing = Path(root).expanduser()
        while not missing.parent.exists():
            missing = missing.parent
        raise CertbenchError(
            f"folder {root} does not exist ({missing} is missing)",
            where=f"config: datasets.{key[0]}.root",
            remedy="correct the path; if the workspace it lay in has expired, restore it "
            "(ws_restore) or copy the data into a new one",
        )


def commands() -> None:
    """Refuse a machine without SLURM, or whose controller does not answer.

    Raises:
        CertbenchError: Names what is missing.
    """
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        raise CertbenchError(
            f"this machine has no SLURM ({', '.join(missing)} not found)",
            where="profile",
            remedy="run it on the cluster's login node, or use --profile profiles/local",
        )
    try:
        done = subprocess.run(
            ["squeue", "-h", "-j", "0"], capture_output=True, text=True, timeout=60
        )
        said = done.stderr
    except subprocess.TimeoutExpired:
        said = "no answer within 60 s: Unable to contact slurm controller"
    if "nable to contact" in said or "onfiguration source" in said:
        raise CertbenchError(
            f"SLURM does not answer: {said.strip().splitlines()[-1]}",
            where="squeue",
            remedy="wait for the cluster (sinfo shows its state), then run again",
        )


def earlier_jobs(folder: Path | None = None) -> None:
    """Refuse to start while jobs that an earlier run of this folder submitted are queued or run.

    They outlive a workflow that was killed, and would write the same files as this run's jobs.

    Raises:
        CertbenchError: With the ``scancel`` that ends them; they keep their progress.
    """
    place = str((folder or Path.cwd()).resolve())
    command = ["squeue", "-h", "-u", getpass.getuser(), "-o", "%A|%j|%T|%Z|%k"]
    try:
        listed = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return
    found: dict[str, set[str]] = {}
    for line in listed.splitlines():
        fields = line.strip().split("|", 4)
        if len(fields) == 5 and fields[4].startswith("rule_"):
            with contextlib.suppress(OSError):
                if str(Path(fields[3]).resolve()) == place:
                    found.setdefault(fields[1], set()).add(fields[0])
    if found:
        count = sum(len(ids) for ids in found.values())
        names = ",".join(sorted(found))
        raise CertbenchError(
            f"{count} SLURM job(s) of an earlier run of this folder are still queued or running: "
            + ", ".join(sorted({i for ids in found.values() for i in ids})[:10]),
            where=place,
            remedy=f"end them with `scancel --name={names}` (they keep their progress), wait until "
            "squeue no longer shows them, then run again",
        )


def fitting(requests: Iterable[Request], file: str | Path) -> dict[Request, str]:
    """The partition of each class of jobs.

    Raises:
        CertbenchError: A class fits no partition.
    """
    listed = partitions.load(file)
    return {
        request: partitions.choose(listed, request, str(file))
        for request in dict.fromkeys(requests)
    }


def arrays(
    requests: Iterable[Request], array_rules: str, jobs: int | None, per_timespan: int | None
) -> None:
    """Refuse settings under which a job array waits for ever or gets another job's resources.

    The executor plugin submits an array only once all shards that are ready were selected together;
    ``jobs`` or a rate limit below their number leaves it waiting.

    Raises:
        CertbenchError: Says the smallest number that works.
    """
    names = {name.strip() for name in array_rules.replace(";", ",").split(",") if name.strip()}
    requests = list(requests)
    chosen = [r for r in requests if "all" in names or r.rule in names]
    counts = Counter(request.rule for request in chosen)
    if counts:
        rule, most = counts.most_common(1)[0]
        needed = len(requests)
        for limit, option in ((jobs, "jobs"), (per_timespan, "max-jobs-per-timespan")):
            if limit is not None and limit < needed and most > 1:
                raise CertbenchError(
                    f"{option} is {limit}, but {needed} jobs are planned ({most} of rule {rule}): "
                    "a job array would wait for ever for its missing tasks",
                    where="profile",
                    remedy=f"set {option} to {needed} or more (SLURM itself limits what runs), "
                    f"or take {rule} out of slurm-array-jobs",
                )
    first: dict[str, Request] = {}
    for request in chosen:
        known = first.setdefault(request.rule, request)
        for name in _SHARED:
            if getattr(known, name) != getattr(request, name):
                raise CertbenchError(
                    f"jobs of rule {request.rule} differ in {name} "
                    f"({getattr(known, name)} and {getattr(request, name)}), "
                    "but all tasks of an array get those of the first",
                    where="profile",
                    remedy="give the rule one value, or take it out of slurm-array-jobs",
                )


def devices(plan: Plan, requests: Iterable[Request]) -> None:
    """Refuse jobs that run models and ask for no GPU, unless ``device: cpu`` says so.

    ``--set-resources`` on the command line replaces all that the profile sets, so a change of one
    resource may take the GPU away: the job would run on CPU nodes without a word.

    Raises:
        CertbenchError: Names the rule.
    """
    device = plan.config["device"]
    if device == "cpu":
        return
    for request in requests:
        if request.rule in _gpu_rules() and not request.gpu:
            raise CertbenchError(
                f"device is {device}, but jobs of rule {request.rule} ask for no GPU",
                where="profile: set-resources",
                remedy="set gpu: 1 for the rule in the profile (--set-resources on the command "
                "line replaces all of the profile's), or device: cpu to run on CPU nodes",
            )


def local_gpu() -> None:
    """Refuse ``device: cuda`` on a machine without a usable GPU.

    Raises:
        CertbenchError: There is none.
    """
    import torch

    if not torch.cuda.is_available():
        raise CertbenchError(
            "device is cuda, but this machine has no usable CUDA device",
            where="config: device",
            remedy="use --profile profiles/slurm, run on a GPU node, or set device: auto or cpu",
        )


def describe(choices: Mapping[Request, str]) -> list[str]:
    """One line for each class of jobs and its partition."""
    return [f"{request.rule}: {request.words()} -> {name}" for request, name in choices.items()]
