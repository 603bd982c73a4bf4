from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from certbench.cluster import preflight
from certbench.cluster.partitions import Request
from certbench.errors import CertbenchError

FILE = Path(__file__).resolve().parents[2] / "profiles" / "slurm" / "partitions.yaml"
SHARD = Request("collect", 16, 127500.0, 240.0, 1)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder that is the whole PATH; returns a function that puts a shell script into it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(name: str, body: str) -> None:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    return put


def test_a_results_link_into_an_expired_workspace_is_refused(tmp_path):
    link = tmp_path / "results"
    link.symlink_to(tmp_path / "workspace" / "results")
    with pytest.raises(CertbenchError, match="ws_restore") as error:
        preflight.results_folder(link)
    assert "workspace/results" in str(error.value)


def test_a_results_folder_that_cannot_be_written_is_refused(tmp_path):
    blocked = tmp_path / "results"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(CertbenchError, match="cannot be written"):
        preflight.results_folder(blocked)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_results_folder_is_refused(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir(mode=0o500)
    with pytest.raises(CertbenchError, match="cannot be written"):
        preflight.results_folder(folder)


def test_a_writable_results_folder_is_left_empty(tmp_path):
    folder = tmp_path / "results"
    preflight.results_folder(folder)
    assert list(folder.iterdir()) == []


def test_a_full_file_system_is_refused_and_named_after_a_failure(tmp_path, monkeypatch, capsys):
    preflight.free_space(tmp_path)
    preflight.explain_failure(tmp_path)
    assert capsys.readouterr().err == ""
    usage = SimpleNamespace(total=2**30, used=2**30, free=2**20)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(CertbenchError, match=r"1\.0 MB are left"):
        preflight.free_space(tmp_path)
    preflight.explain_failure(tmp_path)
    assert "file system is full" in capsys.readouterr().err


def plan_with(root: str | None, device: str = "auto"):
    job = SimpleNamespace(work={"params": {} if root is None else {"root": root}})
    return SimpleNamespace(jobs={("prepare", ("photos", "test")): job}, config={"device": device})


def test_a_dataset_folder_that_is_gone_is_named_with_its_first_missing_part(tmp_path):
    root = tmp_path / "workspace" / "data" / "photos"
    with pytest.raises(CertbenchError) as error:
        preflight.dataset_folders(plan_with(str(root)))
    assert "datasets.photos.root" in str(error.value)
    assert f"{tmp_path / 'workspace'} is missing" in str(error.value)


def test_dataset_folders_do_not_matter_to_a_run_that_reads_no_data(tmp_path):
    preflight.dataset_folders(plan_with("/nowhere/at/all"), {"table", "report"})
    preflight.dataset_folders(plan_with(None))
    preflight.dataset_folders(plan_with(str(tmp_path)))


def test_a_machine_without_slurm_is_refused(programs):
    with pytest.raises(CertbenchError, match="has no SLURM") as error:
        preflight.commands()
    assert "profiles/local" in str(error.value)


def test_a_controller_that_does_not_answer_is_refused(programs):
    for name in preflight.COMMANDS:
        programs(name, "echo 'error: Unable to contact slurm controller (connect failure)' >&2")
    with pytest.raises(CertbenchError, match="does not answer"):
        preflight.commands()


def test_jobs_of_an_earlier_run_of_this_folder_are_refused_with_the_scancel(programs, tmp_path):
    programs(
        "squeue",
        f"""echo '11|run-a|RUNNING|{tmp_path}|rule_collect_wildcards_x'
echo '12|run-a|PENDING|{tmp_path}|rule_attack'
echo '13|other|RUNNING|{tmp_path}/elsewhere|rule_collect'
echo '14|bash|RUNNING|{tmp_path}|(null)'""",
    )
    with pytest.raises(CertbenchError) as error:
        preflight.earlier_jobs(tmp_path)
    assert "2 SLURM job(s)" in str(error.value)
    assert "scancel --name=run-a`" in str(error.value)
    preflight.earlier_jobs(tmp_path / "third")


def test_each_class_of_jobs_gets_its_partition():
    decide = Request("decide", 1, 4000.0, 60.0)
    assert preflight.fitting([SHARD, SHARD, decide], FILE) == {
        SHARD: "gpu_4_a100",
        decide: "single",
    }


@pytest.mark.parametrize(
    ("jobs", "rate", "option"), [(3, None, "jobs is 3"), (20, 9, "max-jobs-per-timespan is 9")]
)
def test_a_limit_below_the_number_of_shards_is_refused(jobs, rate, option):
    with pytest.raises(CertbenchError, match=option) as error:
        preflight.arrays([SHARD] * 10, "predict, collect", jobs, rate)
    assert "to 10 or more" in str(error.value)


def test_no_limit_is_too_small_without_arrays():
    preflight.arrays([SHARD] * 10, "", 3, 1)
    preflight.arrays([SHARD] * 10, "predict", 3, 1)
    preflight.arrays([SHARD] * 10, "all", 10, 10)


def test_an_array_whose_tasks_ask_for_different_things_is_refused():
    with pytest.raises(CertbenchError, match="differ in runtime"):
        preflight.arrays([SHARD, replace(SHARD, runtime=600.0)], "collect", 10, None)


def test_jobs_that_lost_their_gpu_are_refused_unless_the_cpu_is_meant():
    plan = plan_with(None, "cuda")
    preflight.devices(plan, [SHARD, Request("decide")])
    for device in ("cuda", "auto"):
        with pytest.raises(CertbenchError, match="rule attack ask for no GPU"):
            preflight.devices(plan_with(None, device), [Request("attack")])
    preflight.devices(plan_with(None, "cpu"), [Request("attack")])


def test_cuda_on_a_machine_without_a_gpu_is_refused(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CertbenchError, match="no usable CUDA device"):
        preflight.local_gpu()


def test_starting_a_run_imports_no_torch():
    code = "import sys, certbench.cluster.preflight; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
