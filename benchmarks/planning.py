"""Time and memory to plan a large study, against a bare Snakemake DAG of as many jobs.

    .venv/bin/python benchmarks/planning.py                       # config/cluster.yaml
    .venv/bin/python benchmarks/planning.py --shards items=20     # more, smaller jobs
    .venv/bin/python benchmarks/planning.py --check               # exit 1 beyond the bounds

All are dry runs in fresh folders, repeats interleaved. The bare DAG has as many jobs as the study,
each with what a job of this workflow has (four inputs, log, benchmark, environment, resources, a
parameter of 1.5 KB, a script) but nothing of this project; the minimal DAG's jobs have one output
and nothing else. Reported are the smallest processor time of the repeats (the machine may be busy)
and the peak resident memory. Bounds: twice the bare DAG's time, 1 GB.
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

MINIMAL = """
N = {count}

rule gather:
    input: expand("out/{{i}}.txt", i=range(N))
    output: "gathered.txt"
    shell: "true"

rule leaf:
    output: "out/{{i}}.txt"
    shell: "true"
"""

BARE = """
N = {count}

rule gather:
    input: expand("out/{{i}}.txt", i=range(N))
    output: "gathered.txt"
    shell: "true"

rule shared:
    output: "a", "b", "c", "d"
    shell: "true"

rule leaf:
    input: unpack(lambda wildcards: dict(a=["a"], b=["b"], c=["c"], d=["d"]))
    output: "out/{{i}}.txt"
    log: "log/{{i}}.log"
    benchmark: "benchmark/{{i}}.tsv"
    conda: "environment.yml"
    threads: 1
    resources: mem_mb=3000, runtime=60, gpu=0, batch_size=400
    params: work=lambda wildcards: "x" * 1500
    message: "leaf {{wildcards.i}}"
    script: "leaf.py"
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
    found: dict[str, list[tuple[float, float, float]]] = {"study": [], "bare": [], "minimal": []}
    with tempfile.TemporaryDirectory() as scratch:
        study = Path(scratch, "study")
        for name, text, others in (("bare", BARE, 2), ("minimal", MINIMAL, 1)):
            Path(scratch, name).mkdir()
            Path(scratch, name, "Snakefile").write_text(text.format(count=count - others))
            Path(scratch, name, "leaf.py").write_text("pass\n")
            shutil.copy2(ROOT / "environment.yml", Path(scratch, name))
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
            for name in ("bare", "minimal"):
                found[name].append(dry_run(Path(scratch, name), "--", "gathered.txt"))
    best = {
        name: [min(column) for column in zip(*runs, strict=True)] for name, runs in found.items()
    }
    print(f"{count:,} jobs         wall s   processor s   memory MB")
    for name, (wall, processor, memory) in best.items():
        print(f"{name:12} {wall:>12.1f} {processor:>13.1f} {memory:>11.0f}")
    times = best["study"][1] / best["bare"][1]
    print(f"dry run of the study / bare DAG: {times:.2f} (bound {MOST_TIMES:g})")
    print(f"dry run of the study / minimal DAG: {best['study'][1] / best['minimal'][1]:.2f}")
    good = times <= MOST_TIMES and best["study"][2] <= MOST_MB
    return 0 if good or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
