from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

import pytest

from certbench import config, plan
from certbench.cluster import doctor, preflight

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "profiles" / "slurm" / "config.yaml"


@pytest.fixture(scope="module")
def planned():
    return plan.make(config.load([ROOT / "tests" / "slurm" / "config.yaml"]))


@pytest.fixture
def profile():
    file = ROOT / "profiles" / "slurm" / "partitions.yaml"
    return {**config.load_yaml(PROFILE), "slurm-partition-config": str(file)}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """SLURM commands that answer as a healthy cluster; returns a function that changes one."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def put(name: str, body: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)

    for name in preflight.COMMANDS:
        put(name, "true")
    put("sinfo", "echo gpu_4_a100; echo single; echo other")
    put("sacctmgr", "echo study")
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    return put


def by_topic(findings) -> dict[str, doctor.Finding]:
    return {finding.topic: finding for finding in findings}


def test_a_healthy_cluster_has_no_failure_and_names_every_partition(planned, profile, slurm):
    found = by_topic(doctor.cluster(planned, profile))
    assert {f.level for f in found.values()} == {"fine"}, found
    assert found["rule collect"].text.endswith("-> gpu_4_a100")
    assert found["rule decide"].text.endswith("-> single")
    assert {topic for topic in found if topic.startswith("rule ")} == {
        f"rule {rule}" for rule in planned.counts()
    }


def test_a_machine_without_slurm_is_told_what_to_do(planned, profile, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = by_topic(doctor.cluster(planned, profile))["SLURM"]
    assert finding.level == "failure" and "profiles/local" in finding.remedy


def test_a_partition_that_the_cluster_lacks_is_found(planned, profile, slurm):
    slurm("sinfo", "echo gpu_h100; echo cpu")
    finding = by_topic(doctor.cluster(planned, profile))["partitions"]
    assert finding.level == "failure" and "gpu_4_a100, single" in finding.text
    assert "cpu, gpu_h100" in finding.remedy


def test_a_gpu_model_that_no_partition_has_fails_for_each_rule_that_asks(planned, profile, slurm):
    profile["set-resources"]["collect"] = {"gpu": 1, "gpu_model": "v100", "mem_mb": 127500}
    found = by_topic(doctor.cluster(planned, profile))
    assert found["rule collect"].level == "failure" and "'v100'" in found["rule collect"].text
    assert found["rule train"].level == "fine"


def test_a_runtime_above_every_limit_fails(planned, profile, slurm):
    profile["set-resources"]["collect"] = {"gpu": 1, "runtime": 9000}
    finding = by_topic(doctor.cluster(planned, profile))["rule collect"]
    assert finding.level == "failure" and "above the limit" in finding.text


def test_an_account_that_is_not_ours_fails_with_those_that_are(planned, profile, slurm):
    profile["default-resources"] = {"slurm_account": "theirs"}
    finding = by_topic(doctor.cluster(planned, profile))["account"]
    assert finding.level == "failure" and "to study" in finding.remedy


def test_limits_under_which_arrays_hang_fail(planned, profile, slurm):
    profile["jobs"] = 3
    assert by_topic(doctor.cluster(planned, profile))["job arrays"].level == "failure"
    profile["jobs"], profile["max-jobs-per-timespan"] = 20000, "3/1s"
    assert by_topic(doctor.cluster(planned, profile))["job arrays"].level == "failure"


def planned_with(rule: str, name: str, **work):
    outputs = {"weights": "nowhere/model.safetensors"}
    return SimpleNamespace(
        jobs={(rule, (name,)): SimpleNamespace(work=work, outputs=outputs)},
        config={"device": "auto"},
    )


def test_missing_datasets_and_weights_are_failures_with_their_key(tmp_path):
    gone = planned_with("prepare", "photos", params={"root": str(tmp_path / "gone")})
    (finding,) = doctor.datasets(gone)
    assert finding.level == "failure" and "datasets.photos.root" in finding.remedy
    source = {"name": "file", "params": {"path": str(tmp_path / "x.pt"), "sha256": None}}
    (finding,) = doctor.checkpoints(planned_with("fetch", "resnet", source=source))
    assert finding.level == "failure" and "models.resnet.source.path" in finding.remedy


def test_published_sets_that_are_missing_are_failures_told_once(tmp_path):
    (tmp_path / "there").mkdir()
    steps = [
        {"name": "imagenet_c", "params": {"root": str(tmp_path / "gone"), "severity": 1}},
        {"name": "imagenet_c", "params": {"root": str(tmp_path / "gone"), "severity": 2}},
        {"name": "corruption_3d", "params": {"depth_root": str(tmp_path / "there")}},
        {"name": "corruption_3d", "params": {"depth_root": None, "depth_model": None}},
    ]
    found = list(doctor.variants(planned_with("predict", "m", variant={"steps": steps})))
    assert [finding.level for finding in found] == ["failure", "fine"]
    assert "correct root of the variants of type imagenet_c" in found[0].remedy


def test_weights_from_the_network_without_a_digest_are_a_warning():
    source = {"name": "url", "params": {"url": "https://example.org/x", "sha256": None}}
    (finding,) = doctor.checkpoints(planned_with("fetch", "resnet", source=source))
    assert finding.level == "warning" and "login node" in finding.remedy


def test_too_little_space_is_a_failure(planned, tmp_path, monkeypatch):
    usage = SimpleNamespace(total=1, used=1, free=10**6)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)
    found = by_topic(doctor.space(planned, tmp_path))
    assert found["disk"].level == "failure" and "ws_allocate" in found["disk"].remedy
    assert list(tmp_path.iterdir()) == []


def test_a_used_up_quota_is_a_failure(planned, tmp_path, monkeypatch):
    def refuse(path, data):
        raise OSError(doctor.errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert by_topic(doctor.space(planned, tmp_path))["quota"].level == "failure"


@pytest.mark.slow
def test_the_command_ends_with_one_if_something_fails(tmp_path, monkeypatch, capsys):
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    monkeypatch.chdir(tmp_path)
    options = parser.parse_args(["doctor", "--profile", str(ROOT / "profiles" / "local")])
    assert options.command(options) == 0
    assert "ready to run" in capsys.readouterr().out
    overlay = tmp_path / "cuda.yaml"
    overlay.write_text("device: cuda\n")
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options.configfile = [str(overlay)]
    assert options.command(options) == 1
    assert "no usable GPU" in capsys.readouterr().out
