"""Time and memory to plan a large study, against a bare Snakemake DAG of as many jobs.

    .venv/bin/python benchmarks/planning.py                       # config/cluster.yaml
    .venv/bin/python benchmarks/planning.py --shards items=20     # more, smaller jobs
    .venv/bin/python benchmarks/planning.py --check               # exit 1 beyond the bounds

Both are dry runs in fresh folders, one after the other, repeats interleaved. The bare DAG has one
rule whose jobs have one output each, and one job that gathers them. The figures reported are the
smallest processor time of the repeats (the machine may be busy) and the peak resident memory.
Bounds: twice the bare time, 1 GB.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_TIMES = 2.0
MOST_MB = 1000.0

BARE = """
N = {count}

rule gather:
    input: expand("out/{{i}}.txt", i=range(N))
    output: "gathered.txt"
    shell: "true"

rule leaf:
    output: "out/{{i}}.txt"
    shell: "true"
"""


def dry_run(folder: Path, *arguments: str) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak memory in MB of one dry run."""
    command = [
        *(sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", "--scheduler", "greedy"),
        *arguments,
    ]
    began = time.perf_counter()
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{said[-3000:]}")
    spent = time.perf_counter() - began
    return spent, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> int:
    """Measure, print, and say whether the bounds hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configfile", default=str(ROOT / "config" / "cluster.yaml"))
    parser.add_argument("--shards", nargs="*", default=[], metavar="KEY=N")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()

    from certbench import config, plan

    overlay = {"shards": {k: int(v) for k, v in (pair.split("=") for pair in options.shards)}}
    files = [Path(options.configfile).resolve()]
    made = plan.make(config.merge(config.load(files), overlay))
    count = sum(made.counts().values())
    found: dict[str, list[tuple[float, float, float]]] = {"study": [], "bare": []}
    with tempfile.TemporaryDirectory() as scratch:
        study, bare = Path(scratch, "study"), Path(scratch, "bare")
        bare.mkdir()
        bare.joinpath("Snakefile").write_text(BARE.format(count=count - 1))
        study.mkdir()
        for name in ("Snakefile", "environment.yml"):
            shutil.copy2(ROOT / name, study)
        for name in ("workflow", "config", "profiles"):
            shutil.copytree(ROOT / name, study / name)
        more = study / "more.yaml"
        more.write_text(f"shards: {overlay['shards']}\n")
        for _ in range(options.repeats):
            arguments = ("--configfile", *map(str, files), str(more), "--", "results/report.html")
            found["study"].append(dry_run(study, *arguments))
            found["bare"].append(dry_run(bare, "--", "gathered.txt"))
    best = {
        name: [min(column) for column in zip(*runs, strict=True)] for name, runs in found.items()
    }
    print(f"{count:,} jobs         wall s   processor s   memory MB")
    for name, (wall, processor, memory) in best.items():
        print(f"{name:12} {wall:>12.1f} {processor:>13.1f} {memory:>11.0f}")
    times = best["study"][1] / best["bare"][1]
    print(f"dry run of the study / bare DAG: {times:.2f} (bound {MOST_TIMES:g})")
    good = times <= MOST_TIMES and best["study"][2] <= MOST_MB
    return 0 if good or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
