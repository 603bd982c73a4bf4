"""The workflow on a real SLURM, undisturbed and through every fault (``make slurm-test``).

Starts the cluster of ``cluster.py``, runs a small study once through ``profiles/slurm``, checks in
the accounting where every job ran, then injects faults into copies of the finished study. A fault
counts as survived if the study finishes and every result column is that of the undisturbed run.

While the test itself is worked on, ``CERTBENCH_KEEP_SLURM_TEST=1`` keeps its folder, and
``CERTBENCH_SLURM_REFERENCE=<folder>/reference`` starts from a kept undisturbed run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import cluster
from study import CERTIFICATES, ROOT, Study, stop_all

GPU_RULES = {"train", "predict", "collect", "fit", "attack"}
ARRAYS = {"predict", "collect", "attack"}
SHARDS = 4
BEGAN = time.monotonic()


def say(text: str) -> None:
    """A line with the time since the start."""
    print(f"[{time.monotonic() - BEGAN:5.0f} s] {text}", flush=True)


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: It did not come true in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"no {what} after {seconds:.0f} s")
        time.sleep(0.3)


@contextlib.contextmanager
def executor_plugin(folder: Path) -> Iterator[None]:
    """The executor plugin on the path, outside of the project's environment.

    With a cluster configuration whose daemons are down, the plugin slows every call of Snakemake
    that finds it, so a test leaves it out of the environment that everything else uses.
    """
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        command = [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
            *("--target", str(folder), "-r", str(ROOT / "requirements-slurm.lock")),
        ]
        subprocess.run(command, check=True)
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), before)))
    yield


def running(study: Study) -> list[str]:
    """SLURM ids (array tasks as ``job_task``) of the study's running jobs."""
    text = cluster.run(["squeue", "-h", "-r", "-t", "R", "-o", "%i|%Z"])
    found = [line.split("|") for line in text.splitlines()]
    return [job for job, folder in found if Path(folder) == study.folder]


def certifying(study: Study, count: int) -> dict[str, int]:
    """Wait for ``count`` shards at work, holding each as soon as its progress is on the disk.

    They are held (SIGSTOP) so that a fault strikes in mid-certification however fast the machine.

    Returns:
        Process ids by SLURM id.
    """
    held: dict[str, int] = {}

    def all_held() -> bool:
        kept = study.kept()
        for name, status in study.statuses().items():
            if name in kept and status["slurm_job"] not in held:
                os.kill(status["pid"], signal.SIGSTOP)
                held[status["slurm_job"]] = status["pid"]
        return len(held) >= count or study.process.poll() is not None

    until(all_held, 600, f"{count} shards with progress\n{study.said[-2000:]}")
    assert len(held) == count, f"{held}\n{study.said[-2000:]}"
    return held


def asked_to_end(pid: int) -> bool:
    """Whether a SIGTERM waits for a held process (or it has ended)."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    waiting = [line.split()[1] for line in text.splitlines() if line[:6] in ("ShdPnd", "SigPnd")]
    return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in waiting)


def release(held: dict[str, int]) -> None:
    """Let held shards go on."""
    for pid in held.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


# -- the undisturbed run ---------------------------------------------------------------------------


def undisturbed(folder: Path) -> Study:
    """The whole study once; every job must have been where the profile says."""
    study = Study(folder)
    code = study.run()
    assert code == 0, f"exit code {code}\n{study.said[-4000:]}"
    done = study.tasks()
    assert {task.state for task in done} == {"COMPLETED"}, done
    for task in done:
        if task.rule in GPU_RULES:
            assert task.partition == "gpu_4_a100", task
            assert task.resources["gres/gpu"] == "1", task
            assert task.resources["gres/gpu:a100"] == "1", task
            assert task.resources["cpu"] == "16", task
            assert task.resources["mem"] == "127500M", task
            assert task.node in ("gpu1", "gpu2"), task
        else:
            assert task.partition == "single" and task.node == "cpu1", task
            assert "gres/gpu" not in task.resources, task
    rules = {task.rule for task in done}
    expected = {"prepare", "train", *ARRAYS, "decide", "audit", "table", "report"}
    assert rules >= expected, rules
    for rule in ARRAYS:
        ids = [task.id for task in done if task.rule == rule]
        assert len(ids) == SHARDS and all("_" in i for i in ids), (rule, ids)
        assert len({i.split("_")[0] for i in ids}) == 1, f"{rule} went out as {ids}"
    say(
        f"undisturbed: {len(done)} jobs, GPU rules in gpu_4_a100 with one A100, 16 CPUs and "
        f"127500 MB, CPU rules in single, {', '.join(sorted(ARRAYS))} as arrays of {SHARDS}"
    )
    return study


def refusals(reference: Study, folder: Path) -> None:
    """What would hang or land in the wrong place is refused before anything is submitted."""
    study = Study(folder, reference)
    study.forget(SHARDS)
    # On the command line --set-resources replaces all that the profile sets.
    whole = ("--set-resources", "collect:gpu=1", "collect:mem_mb=127500")
    ten = study.folder / "ten.yaml"
    ten.write_text("shards: {items: 2}\n")
    for options, overlay, words in (
        (("--jobs", "3"), ten, "jobs is 3"),
        (("--set-resources", "collect:runtime=90"), None, "collect ask for no GPU"),
        ((*whole, "collect:gpu_model=v100"), None, "GPU model 'v100'"),
        ((*whole, "collect:runtime=9000"), None, "9,000 minutes is above the limit"),
        ((*whole, "decide:slurm_partition=singel"), None, "did you mean 'single'?"),
    ):
        code = study.run(CERTIFICATES, *options, overlay=overlay)
        assert code != 0 and words in study.said, f"{options}: {study.said[-2000:]}"
        assert "Traceback" not in study.said, study.said
    assert study.tasks() == [], "something was submitted"
    say(
        "refused before anything was submitted: jobs below ten shards, no GPU, GPU model, "
        "runtime, partition"
    )
    shutil.rmtree(study.folder)


# -- faults ----------------------------------------------------------------------------------------


def same(study: Study, reference: Study) -> None:
    """Assert that every result column is that of the undisturbed run."""
    ours, theirs = study.columns(), reference.columns()
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if ours[name] != theirs[name]]
    assert not different, f"columns differ: {different[:5]}"


def finish(study: Study, reference: Study) -> str:
    """Let the run end, run again if it failed, and compare; says how many runs it took."""
    code, again = study.wait(), 0
    while code != 0 and again < 2:
        again += 1
        code = study.run(CERTIFICATES)
    assert code == 0, study.said[-4000:]
    same(study, reference)
    return "by itself" if not again else f"re-run finished ({again})"


def of_one_run(reference: Study, folder: Path) -> dict[str, str]:
    """Five faults in one run: on the controller, a node, and a shard each."""
    study = Study(folder, reference)
    study.forget(SHARDS)
    study.start(CERTIFICATES)
    held = certifying(study, SHARDS)
    shards = sorted(held)
    text = cluster.run(["squeue", "-h", "-r", "-o", "%i %N"])
    nodes = dict(line.split() for line in text.splitlines() if line.split()[0] in shards)
    lost = nodes[shards[-1]]
    there = [job for job in shards if nodes[job] == lost]
    here = [job for job in shards if nodes[job] != lost]
    assert len(here) >= 2, f"the shards did not spread over the nodes: {nodes}"

    say(f"controller restart; then scancel, kill -9, node {lost} down")
    cluster.stop_process("slurmctld")
    time.sleep(3)
    cluster.start_controller()
    cluster.run(["scancel", here[0]])
    os.kill(held[here[1]], signal.SIGKILL)
    cluster.power_off(lost)
    cluster.run(["scontrol", "update", f"nodename={lost}", "state=down", "reason=test"])
    time.sleep(5)
    cluster.start_node(lost)
    cluster.run(["scontrol", "update", f"nodename={lost}", "state=resume"])
    release(held)

    # SLURM itself has queued the lost node's jobs again.
    until(lambda: there[0] in running(study), 180, f"job {there[0]} after its node failed")
    say("requeue")
    cluster.run(["scontrol", "requeue", there[0]])
    outcome = finish(study, reference)
    states = [task.state for task in study.tasks() if task.rule == "collect"]
    seen = ", ".join(sorted({state for state in states if state != "COMPLETED"}))
    # A task is its own job: it does not fail because the array's first task was ended.
    last = {task.id: task.state for task in study.tasks() if task.state != "REQUEUED"}
    assert {last[job] for job in there} == {"COMPLETED"}, last
    assert {"CANCELLED", "FAILED", "NODE_FAIL"} <= set(states), states
    return dict.fromkeys(
        (
            "scancel of a running job",
            "kill -9 of its process",
            "node down and back",
            "requeue",
            "controller restart",
        ),
        f"{outcome}; {seen}",
    )


def time_limit(reference: Study, folder: Path) -> dict[str, str]:
    """The time limit strikes in mid-certification; the retry goes on from the flushed progress."""
    study = Study(folder, reference)
    study.forget(1)
    study.start(CERTIFICATES)
    held = certifying(study, 1)
    ((job, pid),) = held.items()
    # A little more work than is on the disk: it is written every 5 s, and on SIGTERM.
    release(held)
    time.sleep(2)
    os.kill(pid, signal.SIGSTOP)
    before = sum(study.kept().values())
    # SLURM's shortest limit is a minute; the shard is held until its SIGTERM has come.
    cluster.run(["scontrol", "update", f"jobid={job}", "timelimit=1"])
    until(lambda: asked_to_end(pid), 180, "SIGTERM at the limit")
    release(held)
    until(lambda: not Path(f"/proc/{pid}").exists(), 60, "end at the limit")
    kept = sum(study.kept().values())
    assert kept > before > 0, (before, kept)

    def goes_on() -> bool:
        resumed = [s["done"] for s in study.statuses().values() if s["pid"] != pid]
        return any(done >= kept for done in resumed) or study.process.poll() is not None

    until(goes_on, 600, "retry")
    outcome = finish(study, reference)
    states = {task.state for task in study.tasks() if task.rule == "collect"}
    assert "TIMEOUT" in states, states
    return {
        "time limit in a certification": f"{outcome}; TIMEOUT, {kept:,} passes kept, "
        f"{kept - before:,} of them on SIGTERM"
    }


def file_system_full(reference: Study, folder: Path) -> dict[str, str]:
    """The results' file system fills up in mid-run; after more space a re-run finishes."""
    study = Study(folder, reference)
    study.forget(2)
    results = study.folder / "results"
    aside = study.folder / "aside"
    results.rename(aside)
    results.mkdir()
    cluster.run(["mount", "-t", "tmpfs", "-o", "size=64M", "none", str(results)])
    try:
        shutil.copytree(aside, results, symlinks=True, dirs_exist_ok=True)
        study.start(CERTIFICATES, "--retries", "0")
        held = certifying(study, 2)
        filler = results / "filler"
        for size in (65536, 512):
            with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as file:
                while True:
                    file.write(b"\0" * size)
        release(held)
        code = study.wait()
        assert code != 0, "a run on a full file system ended well"
        assert "file system is full" in study.said, study.said[-3000:]
        filler.unlink()
        outcome = finish_again(study, reference)
    finally:
        subprocess.run(["umount", "-l", str(results)], capture_output=True)
    return {"results file system full": f"said so; {outcome}"}


def finish_again(study: Study, reference: Study) -> str:
    """Run again and compare."""
    code = study.run(CERTIFICATES)
    assert code == 0, study.said[-4000:]
    same(study, reference)
    return "re-run finished (1)"


def two_instances_and_a_killed_one(reference: Study, folder: Path) -> dict[str, str]:
    """A second Snakemake on the folder is refused; so is a new one while a dead one's jobs run."""
    study = Study(folder, reference)
    study.forget(2)
    study.start(CERTIFICATES)
    certifying(study, 2)
    first, log = study.process, study.log
    code = study.run(CERTIFICATES)
    assert code != 0 and "cannot be locked" in study.said, study.said[-2000:]
    study.process = first
    study.kill()
    assert running(study), f"the jobs ended with their Snakemake\n{log.read_text()[-2000:]}"
    code = study.run(CERTIFICATES)
    assert code != 0 and "cannot be locked" in study.said, study.said[-2000:]
    study.unlock()
    code = study.run(CERTIFICATES)
    assert code != 0 and "scancel --name=" in study.said, study.said[-2000:]
    assert study.tasks(first_run=2) == [], "a second writer was submitted"
    remedy = study.said.split("`")[1]
    assert remedy.startswith("scancel --name="), remedy
    cluster.run(remedy.split())
    until(lambda: not running(study), 60, "end of the cancelled jobs")
    kept = sum(study.kept().values())
    outcome = finish_again(study, reference)
    return {
        "two instances on one folder": "second refused",
        "Snakemake killed, its jobs run on": f"refused until cancelled ({kept:,} passes kept); "
        f"{outcome}",
    }


FAULTS = (time_limit, file_system_full, two_instances_and_a_killed_one)
EXPECTED = 9


def main() -> int:
    """Run everything; exit code 0 if all was as it should be."""
    folder = Path(tempfile.mkdtemp(prefix="certbench-slurm-"))
    os.environ["CERTBENCH_MAX_THREADS"] = "1"
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    table: dict[str, str] = {}
    failed: dict[str, str] = {}

    def attempt(fault: Callable[[Study, Path], dict[str, str]]) -> None:
        try:
            table.update(fault(reference, folder / fault.__name__))
        except BaseException:
            failed[fault.__name__] = traceback.format_exc()
        say(f"{fault.__name__}: {'FAILED' if fault.__name__ in failed else 'survived'}")

    try:
        with executor_plugin(folder / "plugin"):
            cluster.start()
            say(f"cluster: {cluster.node_states()}")
            if kept := os.environ.get("CERTBENCH_SLURM_REFERENCE"):
                reference = Study(folder / "reference", Study.kept_at(Path(kept)))
            else:
                reference = undisturbed(folder / "reference")
            refusals(reference, folder / "refusals")
            attempt(of_one_run)
            # The other faults hurt only their own jobs, so they run side by side.
            threads = [threading.Thread(target=attempt, args=(fault,)) for fault in FAULTS]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        stop_all()
        for name in tuple(cluster.running_jobs()):
            subprocess.run(["scancel", name], capture_output=True, timeout=30)
        cluster.stop()
        if os.environ.get("CERTBENCH_KEEP_SLURM_TEST"):
            say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    for name, trace in failed.items():
        print(f"\n-- {name}\n{trace}")
    width = max(map(len, table), default=0)
    print("\n" + "\n".join(f"{name:<{width}}  {outcome}" for name, outcome in table.items()))
    print(f"faults survived: {len(table)} of {EXPECTED}")
    return 0 if len(table) == EXPECTED and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
