"""What runs again, and what does not: one small study, changed step by step.

The tests of this module share one folder and build on one another, in the order written.
"""

import copy

import pytest

from study import TINY, Project

pytestmark = [pytest.mark.workflow, pytest.mark.slow]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Project(tmp_path_factory.mktemp("partial") / "study", copy.deepcopy(TINY))


def test_one_table_builds_only_what_it_needs(study):
    assert study.planned("results/tables/shifted.parquet") == {
        "prepare": 2,
        "train": 1,
        "predict": 1,
        "audit": 1,
        "table": 1,
    }
    study.run("results/tables/shifted.parquet")
    assert not study.stamps("results/stats/**/*.parquet")
    assert not study.stamps("results/attacks/**/*.parquet")


def test_the_report_builds_the_rest_and_reuses_what_is_there(study):
    before = study.stamps("results/models/**/*")
    study.run("results/report.html")
    assert study.stamps("results/models/**/*") == before
    assert (study.folder / "results" / "report.html").stat().st_size > 10_000


def test_a_second_run_does_nothing(study):
    assert "Nothing to be done" in study.run("results/report.html").stdout


def test_a_deleted_figure_is_redrawn_alone(study):
    (study.folder / "results" / "figures" / "curves.svg").unlink()
    assert study.planned("results/figures/curves.svg") == {"figure": 1}
    assert study.planned() == {"figure": 1, "report": 1}
    stamps = study.stamps("results/tables/*")
    study.run()
    assert study.stamps("results/tables/*") == stamps
    assert "Nothing to be done" in study.run().stdout


def test_another_alpha_runs_no_forward_pass(study):
    config = copy.deepcopy(TINY)
    config["defenses"]["smoothing"]["alpha"] = 0.05
    study.configure(config)
    assert study.planned("results/report.html") == {
        "decide": 1,
        "audit": 1,
        "table": 1,
        "figure": 1,
        "report": 1,
    }
    patterns = ("stats", "attacks", "predictions", "models")
    before = [study.stamps(f"results/{name}/**/*.parquet") for name in patterns]
    study.run("results/report.html")
    assert [study.stamps(f"results/{name}/**/*.parquet") for name in patterns] == before


def test_more_samples_run_the_new_range_only(study):
    config = copy.deepcopy(TINY)
    config["defenses"]["smoothing"].update(alpha=0.05, n=300)
    study.configure(config)
    before = study.stamps("results/stats/**/*.parquet")
    assert study.planned("results/report.html")["collect"] == 1
    study.run("results/report.html")
    after = study.stamps("results/stats/**/*.parquet")
    new = set(after) - set(before)
    assert len(new) == 1 and new.pop().endswith("_s000000200-000000300.parquet")
    assert {name: after[name] for name in before} == before


def test_another_sigma_runs_the_shards_of_that_defence_only(study):
    config = copy.deepcopy(TINY)
    config["defenses"]["smoothing"].update(alpha=0.05, n=300)
    config["defenses"]["wide"] = {**config["defenses"]["smoothing"], "sigma": 0.5}
    config["experiments"][0]["defenses"] = ["none", "smoothing", "wide"]
    config["experiments"][0]["attacks"] = []
    study.configure(config)
    study.run("results/report.html")
    before = study.stamps("results/stats/**/*.parquet")
    config["defenses"]["wide"]["sigma"] = 0.75
    study.configure(config)
    assert study.planned("results/report.html")["collect"] == 3
    study.run("results/report.html")
    after = study.stamps("results/stats/**/*.parquet")
    changed = {name for name in before if before[name] != after[name]}
    assert changed and all("/wide/" in name for name in changed)


def test_a_larger_batch_runs_no_model_again(study):
    config = copy.deepcopy(TINY)
    config["defenses"]["smoothing"].update(alpha=0.05, n=300)
    config["defenses"]["wide"] = {**config["defenses"]["smoothing"], "sigma": 0.75}
    config["experiments"][0]["defenses"] = ["none", "smoothing", "wide"]
    config["experiments"][0]["attacks"] = []
    config["batch_size"] = 33
    study.configure(config)
    planned = study.planned("results/report.html")
    assert set(planned) <= {"report"}
