from __future__ import annotations

from pathlib import Path

import pytest

from certbench import config, plan
from certbench.cluster import limits, preflight
from certbench.plan import GPU_RULES

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ("slurm", "slurm-dev")


def read(name: str) -> dict:
    return config.load_yaml(ROOT / "profiles" / name / "config.yaml")


@pytest.mark.parametrize("name", PROFILES)
def test_every_rule_that_runs_models_gets_one_gpu_and_its_share_of_the_node(name):
    profile = read(name)
    assert set(profile["set-threads"]) == set(profile["set-resources"]) == set(GPU_RULES)
    assert set(profile["set-threads"].values()) == {16}
    for asked in profile["set-resources"].values():
        assert (asked["gpu"], asked["mem_mb"]) == (1, 127500)


@pytest.mark.parametrize("name", PROFILES)
def test_arrays_cannot_wait_for_ever_nor_outgrow_an_argument(name):
    profile = read(name)
    assert profile["jobs"] >= 20_000
    assert int(profile["max-jobs-per-timespan"].split("/")[0]) >= 20_000
    # 128 KiB for one argument, and up to 3 KB for each task.
    assert profile["slurm-array-limit"] * 3000 < 128 * 1024
    assert profile["slurm-disable-memory-fudge"] is True
    assert not profile.get("slurm-pass-command-as-script")


def test_both_profiles_rerun_for_the_same_reasons_as_the_local_one():
    keys = ("rerun-triggers", "rerun-incomplete", "scheduler", "keep-going")
    for name in PROFILES:
        assert {k: read(name)[k] for k in keys} == {k: read("local")[k] for k in keys}


def test_the_development_profile_differs_in_the_partition_file_and_the_time_alone():
    full, short = read("slurm"), read("slurm-dev")
    assert short.pop("slurm-partition-config") == "profiles/slurm-dev/partitions.yaml"
    assert full.pop("slurm-partition-config") == "profiles/slurm/partitions.yaml"
    for asked in short["set-resources"].values():
        assert asked.pop("runtime", 25) == 25
    assert short == full


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("file", ["config.yaml", "cluster.yaml"])
def test_every_planned_job_has_a_partition(name, file, monkeypatch):
    monkeypatch.chdir(ROOT)
    planned = plan.make(config.load([ROOT / "config" / file]))
    profile = read(name)
    requests = limits.requests(planned, profile)
    if name == "slurm-dev":
        assert requests["collect"].runtime == 25
    chosen = preflight.fitting(requests.values(), profile["slurm-partition-config"])
    wanted = "dev_gpu_4_a100" if name == "slurm-dev" else "gpu_4_a100"
    for request, partition in chosen.items():
        assert partition == (wanted if request.rule in GPU_RULES else "single")


def test_no_profile_sets_a_configuration():
    for name in (*PROFILES, "local"):
        assert not {"config", "configfile", "configfiles"} & set(read(name))
