from __future__ import annotations

import json
import os
import signal

import pytest

from certbench import job as jobs


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return jobs.Job("collect", {"n": 1}, {}, {"rows": tmp_path / "results" / "rows.parquet"})


def status_of(job):
    return jobs.PROGRESS_FOLDER / f"collect-{job.work_hash}.json"


def test_a_running_job_tells_onlookers_how_far_it_is(job, monkeypatch):
    clock = iter(float(second) for second in range(0, 1000, 10))
    monkeypatch.setattr(jobs.time, "monotonic", lambda: next(clock))
    with job.bar(100, "noise on resnet", "passes") as bar:
        assert json.loads(status_of(job).read_text())["done"] == 0
        bar.update(40)
        told = json.loads(status_of(job).read_text())
    assert told["done"] == 40 and told["total"] == 100 and told["rate"] > 0
    assert told["rule"] == "collect" and told["output"].endswith("rows.parquet")
    assert told["pid"] == os.getpid()


def test_the_status_file_is_gone_when_the_job_ends_or_fails(job):
    with job.bar(1, "a", "b"):
        pass
    assert not status_of(job).exists()
    with pytest.raises(RuntimeError), job.bar(1, "a", "b"):
        raise RuntimeError
    assert not status_of(job).exists()


def test_a_status_file_that_cannot_be_written_does_not_end_the_job(job):
    jobs.PROGRESS_FOLDER.parent.mkdir(parents=True)
    jobs.PROGRESS_FOLDER.write_text("a file where the folder should be")
    with job.bar(1, "a", "b") as bar:
        bar.update(1)


def test_threads_are_capped_by_the_environment(monkeypatch):
    monkeypatch.delenv("CERTBENCH_MAX_THREADS", raising=False)
    assert jobs.granted(16) == 16
    monkeypatch.setenv("CERTBENCH_MAX_THREADS", "2")
    assert jobs.granted(16) == 2 and jobs.granted(1) == 1


def test_a_job_knows_its_slurm_id_in_an_array_and_alone(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    assert jobs.slurm_job() is None
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert jobs.slurm_job() == "17"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "15")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert jobs.slurm_job() == "15_3"


def test_a_second_sigterm_does_not_interrupt_the_flush_of_the_first():
    flushed = False
    with pytest.raises(jobs.Terminated), jobs._sigterm_raises():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except jobs.Terminated:
            os.kill(os.getpid(), signal.SIGTERM)
            flushed = True
            raise
    assert flushed
