"""``certbench doctor``: is everything there that a study needs, and what to do where it is not.

Looks and measures, changes nothing, submits nothing. Each check ends in one line: fine, a warning,
or a failure with its remedy.
"""

from __future__ import annotations

import argparse
import errno
import getpass
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certbench.cluster import cost, limits, partitions, preflight
from certbench.errors import CertbenchError

if TYPE_CHECKING:
    from certbench.plan import Plan

MARKS = {"fine": "ok  ", "warning": "warn", "failure": "FAIL"}
# A ResNet-50 with 400 images of 224 x 224 in float32, gradients included, needs about this much.
LEAST_GPU_GB = 16.0
LEAST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        topic: What was looked at.
        level: ``fine``, ``warning`` or ``failure``.
        text: What was found.
        remedy: What to do, where something is wrong.
    """

    topic: str
    level: str
    text: str
    remedy: str = ""

    def line(self) -> str:
        """The finding in one or two lines."""
        text = f"{MARKS[self.level]}  {self.topic}: {self.text}"
        return f"{text}\n        -> {self.remedy}" if self.remedy else text


def examine(plan: Plan, profile: Mapping[str, Any]) -> Iterator[Finding]:
    """All checks for a plan and a profile, in order.

    Args:
        plan: The plan.
        profile: The profile's ``config.yaml``.
    """
    slurm = profile.get("executor") == "slurm"
    yield python()
    yield from torch_and_gpu(plan, slurm)
    yield from programs(slurm)
    yield _guarded("results folder", preflight.results_folder, "can be written")
    yield from datasets(plan)
    yield from variants(plan)
    yield from checkpoints(plan)
    yield from space(plan)
    if slurm:
        yield from cluster(plan, profile)


def _guarded(topic: str, check: Callable[[], Any], fine: str) -> Finding:
    try:
        check()
    except CertbenchError as error:
        text = f"{error.where}: {error.problem}" if error.where else error.problem
        return Finding(topic, "failure", text, error.remedy or "")
    return Finding(topic, "fine", fine)


def python() -> Finding:
    """Python's version."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < LEAST_PYTHON:
        return Finding("Python", "failure", version, "use Python 3.11 or newer")
    return Finding("Python", "fine", f"{version} ({sys.executable})")


def torch_and_gpu(plan: Plan, slurm: bool) -> Iterator[Finding]:
    """PyTorch, CUDA, and the memory of the GPU."""
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways
        yield Finding("torch", "failure", f"cannot be imported: {error}", "run make install")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU alone"
    wants_gpu = plan.config["device"] == "cuda"
    if torch.version.cuda is None and (wants_gpu or slurm):
        level = "failure" if wants_gpu else "warning"
        remedy = "install a CUDA build of torch, or GPU jobs will run on the CPU"
        yield Finding("torch", level, f"{torch.__version__}, {build}", remedy)
    else:
        yield Finding("torch", "fine", f"{torch.__version__}, {build}")
    if not torch.cuda.is_available():
        if wants_gpu and not slurm:
            remedy = "run on a GPU node, use --profile profiles/slurm, or set device: auto or cpu"
            yield Finding("GPU", "failure", "device is cuda, but there is no usable GPU", remedy)
        else:
            where = "jobs get theirs from SLURM" if slurm else "models run on the CPU"
            yield Finding("GPU", "fine", f"none on this machine; {where}")
        return
    free, total = (value / 2**30 for value in torch.cuda.mem_get_info())
    text = f"{torch.cuda.get_device_name()}, {free:.0f} of {total:.0f} GB free"
    if free < LEAST_GPU_GB:
        yield Finding("GPU", "warning", text, "lower batch_size if jobs run out of memory")
    else:
        yield Finding("GPU", "fine", text)


def programs(slurm: bool) -> Iterator[Finding]:
    """Snakemake and, for SLURM, its executor plugin."""
    for name, module, remedy in (
        ("snakemake", "snakemake", "run make install"),
        (
            "snakemake-executor-plugin-slurm",
            "snakemake_executor_plugin_slurm",
            "make install-slurm",
        ),
    ):
        if name != "snakemake" and not slurm:
            continue
        if importlib.util.find_spec(module) is None:
            yield Finding(name, "failure", "is not installed", remedy)
        else:
            yield Finding(name, "fine", importlib.metadata.version(name))


def datasets(plan: Plan) -> Iterator[Finding]:
    """The folder of each dataset."""
    roots = {
        key[0]: job.work["params"].get("root")
        for (rule, key), job in plan.jobs.items()
        if rule == "prepare"
    }
    for name, root in roots.items():
        if root is None:
            yield Finding(f"dataset {name}", "fine", "comes with the package")
        elif Path(root).expanduser().exists():
            yield Finding(f"dataset {name}", "fine", str(root))
        else:
            yield Finding(
                f"dataset {name}",
                "failure",
                f"folder {root} does not exist",
                f"correct datasets.{name}.root; an expired workspace comes back with ws_restore",
            )


def variants(plan: Plan) -> Iterator[Finding]:
    """Folders and files that steps of variants read: published sets, depth."""
    seen: set[tuple[str, str]] = set()
    for job in plan.jobs.values():
        for step in (job.work.get("variant") or {}).get("steps", ()):
            for key in ("root", "depth_root", "depth_model"):
                path = step["params"].get(key)
                if path is None or (step["name"], path) in seen:
                    continue
                seen.add((step["name"], path))
                if Path(path).expanduser().exists():
                    yield Finding(f"variants {step['name']}", "fine", str(path))
                else:
                    remedy = f"correct {key} of the variants of type {step['name']}"
                    text = f"{path} does not exist"
                    yield Finding(f"variants {step['name']}", "failure", text, remedy)


def checkpoints(plan: Plan) -> Iterator[Finding]:
    """Weights from files, and whether downloads are pinned."""
    for (rule, key), job in plan.jobs.items():
        if rule != "fetch":
            continue
        source = job.work["source"]
        path, digest = source["params"].get("path"), source["params"].get("sha256")
        topic = f"weights of {key[0]}"
        if path is not None and not Path(path).expanduser().is_file():
            remedy = f"correct models.{key[0]}.source.path"
            yield Finding(topic, "failure", f"{path} does not exist", remedy)
        elif Path(job.outputs["weights"]).exists():
            yield Finding(topic, "fine", f"fetched ({job.outputs['weights']})")
        elif path is not None:
            yield Finding(topic, "fine", str(path))
        elif digest is None and "sha256" in source["params"]:
            yield Finding(
                topic,
                "warning",
                f"from {source['name']}, without a sha256",
                "compute nodes may have no network: fetch on the login node first (snakemake "
                f"--profile profiles/local {job.outputs['weights']}), and pin its sha256",
            )
        else:
            yield Finding(topic, "fine", f"from {source['name']}, pinned by sha256")


def space(plan: Plan, folder: Path = preflight.RESULTS) -> Iterator[Finding]:
    """Free space and quota for what the study writes."""
    needed = cost.estimate(plan).total.disk
    place = folder if folder.exists() else Path.cwd()
    free = shutil.disk_usage(place).free
    words = f"{free / 1e9:,.1f} GB free, the study writes about {needed / 1e9:,.1f} GB"
    remedy = "link results to a workspace (ws_allocate), or lower limits and attack images"
    if free < needed:
        yield Finding("disk", "failure", words, remedy)
    elif free < 2 * needed:
        yield Finding("disk", "warning", words, remedy)
    else:
        yield Finding("disk", "fine", words)
    probe = place / f".quota-{os.getpid()}"
    try:
        probe.write_bytes(os.urandom(2**20))
    except OSError as error:
        if error.errno in (errno.EDQUOT, errno.ENOSPC):
            yield Finding("quota", "failure", "is used up", "free space or extend it")
    else:
        yield Finding("quota", "fine", "1 MB could be written" + _quota(place))
    finally:
        probe.unlink(missing_ok=True)


def _quota(place: Path) -> str:
    """What the file system says of the user's quota, where it says anything."""
    user = getpass.getuser()
    for command in (["lfs", "quota", "-q", "-u", user, str(place)], ["quota", "-s"]):
        if shutil.which(command[0]):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=10)
            except (OSError, subprocess.SubprocessError):
                continue
            if done.returncode == 0 and done.stdout.strip():
                return f"; {command[0]}: {' '.join(done.stdout.split())[:120]}"
    return ""


def cluster(plan: Plan, profile: Mapping[str, Any]) -> Iterator[Finding]:
    """SLURM: commands, controller, partitions, account, arrays, jobs left over."""
    file = profile.get("slurm-partition-config")
    if not file:
        remedy = "set slurm-partition-config in the profile"
        yield Finding("partitions", "failure", "the profile names no partition file", remedy)
        return
    answering = _guarded("SLURM", preflight.commands, "commands are there, the controller answers")
    yield answering
    listed: list[partitions.Partition] = []
    try:
        listed = partitions.load(file)
    except CertbenchError as error:
        yield Finding("partitions", "failure", str(error.problem), error.remedy or "")
    alive = answering.level == "fine"
    if alive:
        yield from _live_partitions(listed, str(file))
    requests: Mapping[str, Any] = {}
    try:
        requests = limits.requests(plan, profile)
    except CertbenchError as error:
        yield Finding("profile", "failure", error.problem, error.remedy or "")
    for rule, request in requests.items():
        if not listed:
            break
        try:
            name = partitions.choose(listed, request, str(file))
            yield Finding(f"rule {rule}", "fine", f"{request.words()} -> {name}")
        except CertbenchError as error:
            yield Finding(f"rule {rule}", "failure", error.problem, error.remedy or "")
    if requests:
        yield _guarded(
            "GPUs", lambda: preflight.devices(plan, requests.values()), "asked for where needed"
        )
        yield _guarded(
            "job arrays",
            lambda: preflight.arrays(
                [requests[rule] for rule, _ in plan.jobs],
                str(profile.get("slurm-array-jobs") or ""),
                profile.get("jobs"),
                _per_timespan(profile.get("max-jobs-per-timespan", "100/1s")),
            ),
            "every shard can be selected at once",
        )
    if alive:
        account = next((r.account for r in requests.values() if r.account), None)
        yield _account(account)
        yield _guarded("earlier jobs", preflight.earlier_jobs, "none of this folder")


def _per_timespan(value: Any) -> int | None:
    count = str(value).split("/")[0]
    return int(count) if count.isdigit() else None


def _live_partitions(listed: list[partitions.Partition], file: str) -> Iterator[Finding]:
    try:
        text = subprocess.run(
            ["sinfo", "-h", "-o", "%R"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding("partitions", "warning", f"sinfo failed: {error}", "see sinfo")
        return
    there = set(text.split())
    missing = [p.name for p in listed if p.name not in there]
    if missing:
        yield Finding(
            "partitions",
            "failure",
            f"{', '.join(missing)} of {file} not on this cluster",
            f"edit {file}; this cluster has {', '.join(sorted(there))}",
        )
    else:
        yield Finding("partitions", "fine", f"all {len(listed)} of {file} are on this cluster")


def _account(account: str | None) -> Finding:
    try:
        text = subprocess.run(
            ["sacctmgr", "-n", "-P", "list", "assoc", f"user={getpass.getuser()}",
             "format=account"],
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return Finding("account", "fine", account or "the cluster's default (not checked)")
    known = sorted(set(text.split()))
    if account is None:
        return Finding("account", "fine", f"the default of {', '.join(known) or 'the cluster'}")
    if known and account not in known:
        return Finding(
            "account",
            "failure",
            f"'{account}' is not one of yours",
            f"set slurm_account in the profile's default-resources to {' or '.join(known)}",
        )
    return Finding("account", "fine", account)


def add_parser(subparsers: Any) -> None:
    """Add ``certbench doctor`` to the command line."""
    text = "Check Python, torch, GPU, data, weights, disk and SLURM for a study; run nothing."
    made = subparsers.add_parser("doctor", help=text, description=text)
    made.add_argument(
        "--configfile",
        nargs="+",
        default=[],
        metavar="FILE",
        help="configurations laid over config/config.yaml, as for snakemake",
    )
    made.add_argument(
        "--profile",
        default="profiles/local",
        metavar="FOLDER",
        help="where the study is to run (default: profiles/local)",
    )
    made.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Print all findings; exit code 1 where one is a failure."""
    from certbench import config, plan

    profile = config.load_yaml(Path(options.profile) / "config.yaml")
    planned = plan.make(config.load(options.configfile))
    failures = 0
    for finding in examine(planned, profile):
        print(finding.line(), flush=True)
        failures += finding.level == "failure"
    print(f"{failures} failure(s)" if failures else "ready to run")
    return 1 if failures else 0
