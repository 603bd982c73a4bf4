"""What the workflow costs beside the work: start-up, overhead, a run with nothing to do.

    .venv/bin/python benchmarks/workflow.py startup    # a minute
    .venv/bin/python benchmarks/workflow.py report     # runs the embedded study in a scratch folder

Ratios are to a named baseline measured in the same run, interleaved; medians over repeats.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

BASELINE = "import torch"

# What a collect job imports before its first forward pass.
JOB = (
    "import torch, certbench.job, certbench.certify.collecting, certbench.models.network, "
    "certbench.variants.applying, certbench.datasets.access, certbench.datasets.digits, "
    "certbench.models.small_cnn, certbench.certify.randomized_smoothing"
)


def startup(repeats: int) -> None:
    """Time of a job's imports against ``import torch`` alone."""
    times: dict[str, list[float]] = {BASELINE: [], JOB: []}
    for _ in range(repeats + 1):
        for code, taken in times.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
            taken.append(time.perf_counter() - began)
    base, job = (statistics.median(taken[1:]) for taken in times.values())
    print(f"import torch alone        {base:6.2f} s (median of {repeats})")
    print(f"imports of a collect job  {job:6.2f} s")
    print(f"ratio                     {job / base:6.2f}   target <= 1.3")


def report(cores: int) -> None:
    """The embedded study from nothing, then again with nothing to do."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "study"
        folder.mkdir()
        for name in ("Snakefile", "environment.yml"):
            shutil.copy(ROOT / name, folder / name)
        for name in ("workflow", "profiles", "config"):
            shutil.copytree(ROOT / name, folder / name)
        command = [
            *(sys.executable, "-m", "snakemake", "--profile", "profiles/local"),
            *("--cores", str(cores), "results/report.html"),
        ]
        began, started = time.perf_counter(), time.time()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        wall = time.perf_counter() - began
        if done.returncode:
            sys.exit(done.stdout[-3000:] + done.stderr[-3000:])
        spans = sorted(_spans(folder))
        busy, reached = 0.0, started
        for start, stop in spans:
            busy += max(0.0, stop - max(start, reached))
            reached = max(reached, stop)
        own = sum(stop - start for start, stop in spans)
        began = time.perf_counter()
        subprocess.run(command, cwd=folder, capture_output=True, check=True)
        again = time.perf_counter() - began
    print(f"jobs                                   {len(spans):6d}")
    print(f"wall time                              {wall:6.1f} s   target <= 300")
    print(f"seconds of all jobs together           {own:6.1f} s on {cores} cores")
    print(f"time in which no job runs              {wall - busy:6.1f} s")
    print(f"overhead, share of the wall time       {(wall - busy) / wall:6.1%}   target <= 15%")
    print(f"with nothing to do                     {again:6.1f} s   target <= 15")


def _spans(folder: Path) -> list[tuple[float, float]]:
    """Start and end of every job, from its benchmark file."""
    spans = []
    for path in folder.glob("results/benchmarks/**/*.tsv"):
        with open(path, newline="") as handle:
            row = next(csv.DictReader(handle, delimiter="\t"))
        stop = path.stat().st_mtime
        spans.append((stop - float(row["s"]), stop))
    return spans


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("startup", "report"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cores", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.what == "startup":
        startup(arguments.repeats)
    else:
        report(arguments.cores)


if __name__ == "__main__":
    main()
