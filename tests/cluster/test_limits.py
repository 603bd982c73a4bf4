from __future__ import annotations

from pathlib import Path

import pytest

from certbench import config, plan
from certbench.cluster import cost, estimate, limits, throughput

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "config" / "cluster.yaml"


@pytest.fixture(scope="module")
def study():
    return plan.make(config.load([STUDY]))


@pytest.fixture(scope="module")
def profile():
    return config.load_yaml(ROOT / "profiles" / "slurm" / "config.yaml") | {
        "slurm-partition-config": str(ROOT / "profiles" / "slurm" / "partitions.yaml")
    }


def test_a_job_that_outruns_its_limit_is_warned_of_with_a_size_that_mends_it(study, profile):
    slow = {name: throughput.Rate(300.0, "slow") for name in cost.rates_of(study, "a100", {})}
    made = cost.estimate(study, "a100", slow)
    found = [text for text in limits.warnings(made, study, profile) if "collect" in text]
    assert "outruns its limit" in found[0]
    key, size = found[0].split("set ")[1].split(", or")[0].split(": ")
    smaller = plan.make(
        config.merge(
            config.load([STUDY]),
            {"shards": {key.removeprefix("shards."): int(size.replace("_", ""))}},
        )
    )
    again = cost.estimate(smaller, "a100", slow)
    assert again.longest["collect"][0] / 60 <= limits.TARGET_MIN


def test_the_full_study_is_planned_within_its_bounds(study, profile):
    made = cost.estimate(study)
    assert made.total.jobs <= 20_000
    assert made.gpu_hours < estimate.LONG_GPU_HOURS
    assert limits.warnings(made, study, profile) == []


def test_training_may_ask_for_more_time_than_the_shards(study):
    shards, training = study.resources("collect"), study.resources("train")
    assert shards["runtime"] == 240 and training["runtime"] == 2400
    assert {**training, "runtime": 240} == shards
