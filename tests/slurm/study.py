"""A study in a folder of its own, run through ``profiles/slurm`` on the test cluster."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import cluster

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "tests" / "slurm" / "config.yaml"
CERTIFICATES = "results/certificates/digits/digits-test-squash32/noisy/smoothing.parquet"
REPORT = "results/report.html"
COSTS = ("device_time_s",)


@dataclass(frozen=True)
class Task:
    """One job as the accounting knows it, repeats after a requeue included."""

    id: str
    rule: str
    name: str
    partition: str
    state: str
    resources: dict[str, str]
    node: str


def tasks(since: str) -> list[Task]:
    """All jobs that the accounting has from ``since`` on."""
    text = cluster.run(
        [
            *("sacct", "-X", "-n", "-P", "-D", "-S", since),
            *("-o", "JobID,Comment,JobName,Partition,State,AllocTRES,NodeList"),
        ]
    )
    found = []
    for line in text.splitlines():
        job, comment, name, partition, state, allocated, node = line.split("|")
        rule = comment.removeprefix("rule_").split("_wildcards_")[0]
        pairs = dict(pair.split("=", 1) for pair in allocated.split(",") if "=" in pair)
        found.append(Task(job, rule, name, partition, state.split()[0], pairs, node))
    return found


def now() -> str:
    """The present, as ``sacct -S`` takes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S")


#: Every Snakemake that was started, so that none outlives the test.
STARTED: list[subprocess.Popen] = []


def stop_all() -> None:
    """End what still runs, whatever the reason the test ends early."""
    for process in STARTED:
        if process.poll() is None:
            process.kill()
            process.wait()


class Study:
    """A project folder with a run of Snakemake in it.

    Args:
        folder: The folder; made new, or copied from another study.
        copy_of: A finished study to start from.
    """

    def __init__(self, folder: Path, copy_of: Study | None = None):
        self.folder = folder
        self.process: subprocess.Popen | None = None
        self.runs = 0
        self.since = now()
        if copy_of is None:
            folder.mkdir(parents=True)
            for name in ("Snakefile", "environment.yml"):
                shutil.copy2(ROOT / name, folder / name)
            for name in ("workflow", "config", "profiles"):
                shutil.copytree(ROOT / name, folder / name)
        else:
            shutil.copytree(copy_of.folder, folder, symlinks=True)
            for log in folder.glob("run-*.log"):
                log.unlink()

    @classmethod
    def kept_at(cls, folder: Path) -> Study:
        """A study that an earlier test left."""
        made = cls.__new__(cls)
        made.folder, made.process, made.runs, made.since = folder, None, 0, now()
        return made

    def start(
        self,
        target: str = REPORT,
        *options: str,
        overlay: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Start Snakemake; its output goes to a log of its own for each run."""
        self.runs += 1
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "snakemake", "--profile", "profiles/slurm"),
                    *("--configfile", str(CONFIG), *([str(overlay)] if overlay else [])),
                    # The profile's pauses suit a busy cluster, not a test.
                    *("--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "20"),
                    *options,
                    *("--", target),
                ],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        STARTED.append(self.process)

    @property
    def log(self) -> Path:
        """Output of the newest run."""
        return self.folder / f"run-{self.runs}.log"

    @property
    def said(self) -> str:
        """What the newest run said so far."""
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = 900) -> int:
        """Exit code of the run."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"no end after {seconds:.0f} s\n{self.said[-3000:]}") from None

    def run(self, target: str = REPORT, *options: str, **more) -> int:
        """Start Snakemake and wait for its end."""
        self.start(target, *options, **more)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL Snakemake; its SLURM jobs run on."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()

    def tasks(self, first_run: int = 1) -> list[Task]:
        """The study's own jobs in the accounting: those of its runs from ``first_run`` on."""
        names = set()
        for run in range(first_run, self.runs + 1):
            text = (self.folder / f"run-{run}.log").read_text(errors="replace")
            names |= set(re.findall(r"SLURM run ID: (\S+)", text))
        return [task for task in tasks(self.since) if task.name in names]

    def unlock(self) -> None:
        """Remove the lock that a killed run left."""
        command = [sys.executable, "-m", "snakemake", "--profile", "profiles/slurm", "--unlock"]
        done = subprocess.run(
            [*command, "--configfile", str(CONFIG)],
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    def forget(self, shards: int) -> list[Path]:
        """Delete the certificates and some of their shards, so that these run again."""
        found = self.shards()[:shards]
        for path in (*found, self.folder / CERTIFICATES):
            path.unlink()
        return found

    def shards(self) -> list[Path]:
        """The certification shards, in order."""
        return sorted((self.folder / "results" / "stats").rglob("*.parquet"))

    def statuses(self) -> dict[str, dict]:
        """What the running jobs tell onlookers, by the stem of their progress files."""
        told = {}
        for path in (self.folder / "results" / ".progress").glob("*.json"):
            with contextlib.suppress(OSError, ValueError):
                told[path.stem] = json.loads(path.read_text())
        return told

    def kept(self) -> dict[str, int]:
        """Passes held by each progress file."""
        import numpy as np

        found = {}
        for path in (self.folder / "results" / ".progress").glob("collect-*.npz"):
            with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as archive:
                values = json.loads(str(archive["__meta__"]))["values"]
                found[path.stem] = sum(v for k, v in values.items() if k.endswith(".done"))
        return found

    def columns(self) -> dict[str, list]:
        """Every result column that is no cost, of all shards and of the certificates."""
        import pyarrow.parquet as pq

        made = {}
        for path in (*self.shards(), self.folder / CERTIFICATES):
            table = pq.read_table(path)
            for name in table.column_names:
                if name not in COSTS:
                    made[f"{path.relative_to(self.folder)}:{name}"] = table[name].to_pylist()
        return made
