"""Which partition a class of jobs goes to, and why none fits.

``profiles/slurm/partitions.yaml`` is read by the SLURM executor plugin of Snakemake, which chooses
among the partitions by how tightly a job fills their limits. Where nothing fits, the plugin warns
and submits without a partition; :func:`choose` makes the same choice beforehand and refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certbench.config import load_yaml
from certbench.errors import CertbenchError, did_you_mean

LIMITS = (
    "max_runtime",
    "max_mem_mb",
    "max_mem_mb_per_cpu",
    "max_cpus_per_task",
    "max_threads",
    "max_nodes",
    "max_tasks",
    "max_tasks_per_node",
    "max_gpu",
    "available_gpu_models",
    "max_cpus_per_gpu",
    "supports_mpi",
    "max_mpi_tasks",
    "available_constraints",
)


@dataclass(frozen=True)
class Partition:
    """A partition and its limits; None where there is none.

    Attributes:
        name: Its name for ``sbatch --partition``.
        max_runtime: Minutes.
        max_mem_mb: Main memory of a job, MB.
        max_threads: CPU cores of a job.
        max_gpu: GPUs of a job; 0 for a partition without GPUs.
        gpu_models: Models of its GPUs; empty where the file does not say.
    """

    name: str
    max_runtime: float | None = None
    max_mem_mb: float | None = None
    max_threads: float | None = None
    max_gpu: int = 0
    gpu_models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """What one class of jobs asks for.

    Attributes:
        rule: Rule name.
        threads: CPU cores.
        mem_mb: Main memory, MB; None for the partition's default.
        runtime: Minutes; None for the partition's default.
        gpu: GPUs.
        gpu_model: Model, or None for any.
        partition: A partition named outright, which bypasses the choice.
        account: Account to charge, or None.
    """

    rule: str
    threads: int = 1
    mem_mb: float | None = None
    runtime: float | None = None
    gpu: int = 0
    gpu_model: str | None = None
    partition: str | None = None
    account: str | None = None

    @classmethod
    def of(cls, rule: str, threads: Any, resources: Mapping[str, Any]) -> Request:
        """From a rule's threads and resources.

        Raises:
            CertbenchError: ``gpus`` instead of ``gpu``, which the executor plugin ignores.
        """
        if resources.get("gpus") and not resources.get("gpu"):
            raise CertbenchError(
                "asks for 'gpus', which is not read: the job would run without a GPU",
                where=f"rule {rule}",
                remedy="write gpu: 1",
            )
        model = resources.get("gpu_model")
        named = resources.get("slurm_partition")
        account = resources.get("slurm_account")
        return cls(
            rule,
            int(threads or 1),
            _number(resources.get("mem_mb")),
            _number(resources.get("runtime")),
            int(_number(resources.get("gpu")) or 0),
            str(model) if model else None,
            str(named) if named else None,
            str(account) if account else None,
        )

    def words(self) -> str:
        """The request in words."""
        parts = [f"{self.threads} CPU" + ("s" if self.threads > 1 else "")]
        if self.gpu:
            parts.insert(0, f"{self.gpu} {self.gpu_model or 'GPU'}")
        if self.mem_mb:
            parts.append(f"{self.mem_mb:,.0f} MB")
        if self.runtime:
            parts.append(f"{self.runtime:,.0f} min")
        return ", ".join(parts)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def load(path: str | Path) -> list[Partition]:
    """The partitions of a partition file.

    Raises:
        CertbenchError: The file is missing, no YAML, or holds an unknown key.
    """
    content = load_yaml(path)
    listed = content.get("partitions")
    if not isinstance(listed, dict) or not listed:
        raise CertbenchError(
            "lists no partitions",
            where=str(path),
            remedy="give 'partitions:' with at least one name and its limits",
        )
    found = []
    for name, limits in listed.items():
        where = f"{path}: partitions.{name}"
        for key in limits or {}:
            if key not in (*LIMITS, "cluster", "clusters", "slurm_cluster"):
                raise CertbenchError(
                    f"unknown key '{key}'", where=where, remedy=did_you_mean(key, LIMITS)
                )
        found.append(_partition(str(name), limits or {}, where))
    return found


def _partition(name: str, limits: Mapping[str, Any], where: str) -> Partition:
    def number(key: str) -> float | None:
        value = limits.get(key)
        if value is None:
            return None
        parsed = minutes(value) if key == "max_runtime" else _number(value)
        if parsed is None or parsed < 0:
            raise CertbenchError(f"{key} is {value!r}", where=where, remedy="give a number")
        return parsed

    return Partition(
        name,
        number("max_runtime"),
        number("max_mem_mb"),
        number("max_threads"),
        int(number("max_gpu") or 0),
        tuple(str(model) for model in limits.get("available_gpu_models") or ()),
    )


def minutes(value: Any) -> float | None:
    """Minutes of a time limit: a number of minutes, ``48h``, ``2d``, ``2-00:00:00``, ``48:00:00``.

    Returns None for anything else.
    """
    number = _number(value)
    if number is not None:
        return number
    text = str(value).strip()
    if text[-1:] in "dhms" and _number(text[:-1]) is not None:
        return float(text[:-1]) * {"d": 1440, "h": 60, "m": 1, "s": 1 / 60}[text[-1]]
    days, _, clock = text.rpartition("-")
    fields = [_number(field) for field in clock.split(":")]
    if any(field is None for field in fields) or len(fields) > 3 or (days and not days.isdigit()):
        return None
    weights = (60.0, 1.0, 1 / 60) if days or len(fields) == 3 else (60.0, 1.0)
    clocked = sum((f or 0.0) * w for f, w in zip(fields, weights, strict=False))
    return clocked + 1440 * float(days or 0)


def score(partition: Partition, request: Request) -> float | None:
    """How tightly a request fills a partition, or None where it does not fit.

    The rule of the executor plugin: the sum of what is asked over what is there; a partition with
    GPUs loses one point for a job without.
    """
    total = 0.0
    for asked, limit in (
        (request.mem_mb, partition.max_mem_mb),
        (request.runtime, partition.max_runtime),
        # The plugin counts cores twice, as threads and as cores per task.
        (request.threads, partition.max_threads),
        (request.threads, partition.max_threads),
    ):
        if asked and limit is not None:
            if asked > limit:
                return None
            total += asked / limit
    if request.gpu == 0:
        return total - 1 if partition.max_gpu else total
    if request.gpu > partition.max_gpu:
        return None
    if request.gpu_model and partition.gpu_models and request.gpu_model not in partition.gpu_models:
        return None
    return total + request.gpu / partition.max_gpu


def choose(partitions: Iterable[Partition], request: Request, where: str = "partitions") -> str:
    """The partition a class of jobs will go to.

    Args:
        partitions: The listed partitions.
        request: What the jobs ask for.
        where: The partition file, for the message.

    Raises:
        CertbenchError: None fits; the message names the limit in the way and the remedy.
    """
    partitions = list(partitions)
    names = [partition.name for partition in partitions]
    spot = f"rule {request.rule} ({request.words()})"
    if request.partition is not None:
        if request.partition not in names:
            raise CertbenchError(
                f"partition '{request.partition}' is not in {where}",
                where=spot,
                remedy=did_you_mean(request.partition, names),
            )
        partitions = [p for p in partitions if p.name == request.partition]
    fits = [(score(p, request), p) for p in partitions]
    best = [(s, p) for s, p in fits if s is not None]
    if best:
        _, chosen = max(best, key=lambda entry: entry[0])
        if not request.gpu and chosen.max_gpu:
            raise CertbenchError(
                f"no CPU partition fits, so it would occupy '{chosen.name}'",
                where=spot,
                remedy=f"ask for less, or list a larger CPU partition in {where}",
            )
        return chosen.name
    raise _no_fit(partitions, request, where, spot)


def _no_fit(partitions: list[Partition], request: Request, where: str, spot: str) -> CertbenchError:
    with_gpu = [p for p in partitions if p.max_gpu >= request.gpu] if request.gpu else partitions
    if not with_gpu:
        most = max((p.max_gpu for p in partitions), default=0)
        return CertbenchError(
            f"asks for {request.gpu} GPUs; no partition in {where} has more than {most}",
            where=spot,
            remedy="ask for fewer, or list a GPU partition",
        )
    if request.gpu_model:
        models = sorted({m for p in with_gpu for m in p.gpu_models})
        with_gpu = [p for p in with_gpu if not p.gpu_models or request.gpu_model in p.gpu_models]
        if not with_gpu:
            return CertbenchError(
                f"no partition in {where} has the GPU model '{request.gpu_model}'",
                where=spot,
                remedy=f"set gpu_model in the profile: {did_you_mean(request.gpu_model, models)}",
            )
    for asked, key, unit, name in (
        (request.runtime, "max_runtime", "minutes", "runtime"),
        (request.mem_mb, "max_mem_mb", "MB", "mem_mb"),
        (request.threads, "max_threads", "CPU cores", "threads"),
    ):
        limits = [getattr(p, key) for p in with_gpu]
        if asked and all(limit is not None and asked > limit for limit in limits):
            smaller = " or make shards smaller (shards.items, shards.samples)"
            return CertbenchError(
                f"{asked:,.0f} {unit} is above the limit of every partition in {where} "
                f"(largest: {max(limits):,.0f})",
                where=spot,
                remedy=f"lower {name}{smaller if name == 'runtime' else ''}",
            )
    return CertbenchError(
        f"no partition in {where} fits all that is asked for at once",
        where=spot,
        remedy="ask for less, or list another partition",
    )
