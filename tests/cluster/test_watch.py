from __future__ import annotations

import json
from pathlib import Path

import pytest

from certbench import config, job, plan
from certbench.cluster import watch

TINY = Path(__file__).resolve().parents[2] / "tests" / "slurm" / "config.yaml"
NOW = 1_000_000.0


@pytest.fixture
def planned(tmp_path, monkeypatch):
    made = plan.make(config.load([TINY]))
    monkeypatch.chdir(tmp_path)
    return made


def finish(planned, rule: str, count: int, seconds: float) -> None:
    """Make the outputs and benchmark files of some jobs of a rule."""
    jobs = [j for (r, _), j in planned.jobs.items() if r == rule][:count]
    for number, one in enumerate(jobs):
        for path in one.outputs.values():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text("")
        measured = Path("results/benchmarks") / rule / f"{number}.tsv"
        measured.parent.mkdir(parents=True, exist_ok=True)
        measured.write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:10\t100\n")


def at_work(rule: str, done: int, rate: float, age: float = 1.0, name: str = "a") -> None:
    """The status file of a running job."""
    watch.PROGRESS.mkdir(parents=True, exist_ok=True)
    told = {
        "rule": rule, "output": "x", "label": "noise on noisy", "unit": "passes", "done": done,
        "total": 1000, "rate": rate, "updated": NOW - age, "host": "node1", "pid": 1,
        "slurm_job": "7_2",
    }  # fmt: skip
    (watch.PROGRESS / f"{rule}-{name}.json").write_text(json.dumps(told))


def test_finished_jobs_are_those_whose_outputs_all_exist(planned):
    finish(planned, "collect", 3, 10)
    state = watch.read(planned, NOW)
    assert state.done == {"collect": 3} and state.planned["collect"] == 4
    half = next(j for (r, _), j in planned.jobs.items() if r == "attack")
    Path(half.outputs["rows"]).parent.mkdir(parents=True)
    Path(half.outputs["rows"]).write_text("")
    assert "attack" not in watch.read(planned, NOW).done


def test_the_end_is_forecast_from_finished_and_running_jobs(planned):
    for rule, count in planned.counts().items():
        if rule not in ("collect", "report"):
            finish(planned, rule, count, 10)
    finish(planned, "collect", 1, 50)
    at_work("collect", 600, 20)
    state = watch.read(planned, NOW)
    # The running shard has 400 / 20 = 20 s left; two more of 50 s follow on its place.
    assert state.left_s == pytest.approx(20 + 2 * 50)
    assert state.unknown == ["report"]
    text = "\n".join(watch.lines(state, NOW))
    assert "noise on noisy: 600 / 1,000 passes, 20/s, 20 s left  [node1, SLURM 7_2]" in text
    assert "in 2 min, without report" in text


def test_running_jobs_share_the_work_that_is_left(planned):
    finish(planned, "collect", 1, 50)
    at_work("collect", 500, 10, name="a")
    at_work("collect", 500, 10, name="b")
    collect = [j for (r, _), j in planned.jobs.items() if r == "collect"][1:]
    state = watch.State(running=watch.statuses(NOW))
    watch._forecast(state, {"collect": collect})
    assert state.left_s == pytest.approx(50 + 50)


def test_a_silent_job_is_called_dead_and_not_counted_as_running(planned):
    at_work("collect", 10, 1, age=watch.STALE_S + 60)
    text = "\n".join(watch.lines(watch.read(planned, NOW), NOW))
    assert "silent for 3 min: collect" in text and "a re-run goes on there" in text
    assert "at work" not in text


def test_kept_progress_of_interrupted_jobs_is_told(planned):
    at_work("collect", 10, 1, name="alive")
    for name in ("alive", "dead"):
        (watch.PROGRESS / f"collect-{name}.npz").write_bytes(b"")
    assert watch.read(planned, NOW).kept == 1


def test_nothing_is_forecast_from_nothing(planned):
    state = watch.read(planned, NOW)
    assert state.left_s is None
    assert "not known before" in "\n".join(watch.lines(state, NOW))


def test_a_finished_study_is_done(planned):
    for rule, count in planned.counts().items():
        finish(planned, rule, count, 1)
    assert list(watch.lines(watch.read(planned, NOW), NOW))[-1] == "done"


def test_a_broken_status_file_is_passed_over(planned):
    watch.PROGRESS.mkdir(parents=True)
    (watch.PROGRESS / "collect-x.json").write_text('{"rule": "coll')
    assert watch.read(planned, NOW).running == []


def test_watch_reads_what_jobs_write(planned):
    one = job.Job("collect", {}, {}, {"rows": Path("results/x")})
    with one.bar(10, "noise", "passes") as bar:
        bar.update(0)
        (found,) = watch.statuses(NOW)
    assert (found.rule, found.total, found.unit) == ("collect", 10, "passes")
    assert watch.PROGRESS == job.PROGRESS_FOLDER
