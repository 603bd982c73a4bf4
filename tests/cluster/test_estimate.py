from __future__ import annotations

import argparse
import copy
from pathlib import Path

import pytest

from certbench import config, plan
from certbench.cluster import estimate, throughput
from certbench.errors import CertbenchError
from study import TINY as DIGITS

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "slurm" / "config.yaml"
STUDY = ROOT / "config" / "cluster.yaml"


@pytest.fixture(scope="module")
def tiny():
    return plan.make(config.load([TINY]))


@pytest.fixture(scope="module")
def study():
    return plan.make(config.load([STUDY]))


@pytest.fixture(scope="module")
def profile():
    return config.load_yaml(ROOT / "profiles" / "slurm" / "config.yaml") | {
        "slurm-partition-config": str(ROOT / "profiles" / "slurm" / "partitions.yaml")
    }


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    estimate.add_parser(parser.add_subparsers())
    options = parser.parse_args(["estimate", "--profile", str(ROOT / "profiles/slurm"), *arguments])
    return options.command(options)


def test_passes_are_those_counted_by_hand(tiny):
    stages = estimate.estimate(tiny).stages
    # 20 images, 8000 + 50 noisy copies each.
    assert stages["collect"].forward == 20 * 8050
    assert stages["predict"].forward == 20
    # 2 steps on 2 noise draws, one look and two confirmations of 50 copies.
    assert stages["attack"].forward == 20 * (2 * 2 + 3 * 50)
    assert stages["attack"].backward == 20 * 2 * 2
    # One epoch over the 1097 training images, forward and back.
    assert (stages["train"].forward, stages["train"].backward) == (1097, 1097)


def test_jobs_are_those_of_the_plan(tiny):
    made = estimate.estimate(tiny)
    assert {rule: cost.jobs for rule, cost in made.stages.items()} == dict(tiny.counts())
    assert made.total.jobs == sum(tiny.counts().values())


def test_the_longest_chain_is_a_chain_of_the_plan_and_no_other_is_longer(tiny):
    made = estimate.estimate(tiny)
    producers = {path: job for job in tiny.jobs.values() for path in job.outputs.values()}

    def every_chain(job):
        before = [producers[p] for files in job.inputs.values() for p in files if p in producers]
        if not before:
            yield [job]
        for one in {id(b): b for b in before}.values():
            for chain in every_chain(one):
                yield [*chain, job]

    rates = estimate.rates_of(tiny, "a100", {})
    longest = max(
        sum(estimate._cost(job, tiny, rates).gpu_s for job in chain)
        for chain in every_chain(tiny.jobs["report", ()])
    )
    assert made.chain[0] == pytest.approx(longest)
    assert made.chain[1][0] == "prepare" and made.chain[1][-1] == "report"


def test_gpu_hours_are_passes_over_the_rate_plus_the_starts(tiny):
    slow = throughput.Rate(10.0, "measured")
    made = estimate.estimate(tiny, "a100", {"noisy": slow})
    cost = made.stages["collect"]
    assert cost.gpu_s == pytest.approx(20 * 8050 / 10 + 4 * estimate.START_S)
    attack = made.stages["attack"]
    passes = attack.forward + 2 * attack.backward
    assert attack.gpu_s == pytest.approx(passes / 10 + 4 * estimate.START_S)


def test_the_published_rates_come_back_from_the_table():
    # Cohen et al. (2019): 110 s and 15 s for 100,000 samples.
    assert throughput.rate("rtx2080ti", "resnet50", 224).images_per_s == pytest.approx(909.09, 1e-4)
    small = throughput.rate("rtx2080ti", "cifar_resnet110", 32)
    assert small.images_per_s == pytest.approx(6666.7, 1e-4)


def test_rates_scale_with_work_area_and_hardware():
    base = throughput.rate("a100", "resnet50", 224).images_per_s
    assert throughput.rate("a100", "resnet50", 448).images_per_s == pytest.approx(base / 4)
    assert throughput.rate("a100", "resnet101", 224).images_per_s == pytest.approx(
        base * 4.11 / 7.83
    )
    assert throughput.rate("a100", "resnet50", 224, "fast").images_per_s > base
    assert throughput.rate("a100", "a_network_of_mine", 224) is None
    with pytest.raises(CertbenchError, match="a100"):
        throughput.rate("a10", "resnet50", 224)


def test_a_model_without_a_rate_is_counted_as_unknown_not_as_free(tiny, monkeypatch):
    monkeypatch.delitem(throughput.MACS, "small_cnn")
    made = estimate.estimate(tiny)
    assert made.stages["collect"].unknown == 4 and "?" in "\n".join(estimate.lines(made))
    assert "--probe" in made.sources["noisy"]


def test_a_job_that_outruns_its_limit_is_warned_of_with_a_size_that_mends_it(study, profile):
    slow = {name: throughput.Rate(300.0, "slow") for name in estimate.rates_of(study, "a100", {})}
    made = estimate.estimate(study, "a100", slow)
    found = [text for text in estimate.warnings(made, study, profile) if "collect" in text]
    assert "outruns its limit" in found[0]
    key, size = found[0].split("set ")[1].split(", or")[0].split(": ")
    smaller = plan.make(
        config.merge(
            config.load([STUDY]),
            {"shards": {key.removeprefix("shards."): int(size.replace("_", ""))}},
        )
    )
    again = estimate.estimate(smaller, "a100", slow)
    assert again.longest["collect"][0] / 60 <= estimate.TARGET_MIN


def test_the_full_study_is_planned_within_its_bounds(study, profile):
    made = estimate.estimate(study)
    assert made.total.jobs <= 20_000
    assert made.gpu_hours < estimate.LONG_GPU_HOURS
    assert estimate.warnings(made, study, profile) == []


def test_a_study_beyond_the_long_limit_asks_for_the_flag(monkeypatch, capsys):
    monkeypatch.setattr(estimate, "LONG_GPU_HOURS", 0.001)
    monkeypatch.chdir(ROOT)
    assert run("--configfile", str(TINY)) == 3
    assert "say --long" in capsys.readouterr().out
    assert run("--configfile", str(TINY), "--long") == 0


@pytest.mark.slow
def test_the_probe_measures_a_rate_and_proposes_shards(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert run("--configfile", str(TINY), "--probe", "0.5") == 0
    said = capsys.readouterr().out
    assert "measured here: CPU" in said and "shards.items: " in said


@pytest.mark.parametrize(
    ("seconds", "words"), [(5, "5 s"), (600, "10 min"), (3700, "1 h 2 min"), (90000, "1 d 1 h")]
)
def test_durations_are_told_in_words(seconds, words):
    assert estimate.duration(seconds) == words


def test_training_may_ask_for_more_time_than_the_shards(study):
    shards, training = study.resources("collect"), study.resources("train")
    assert shards["runtime"] == 240 and training["runtime"] == 2400
    assert {**training, "runtime": 240} == shards


def test_what_was_to_be_expected_is_told_for_each_experiment_on_the_hardware_it_ran_on(tiny):
    found = estimate.by_experiment(tiny.config, ["NVIDIA A100-SXM4-80GB"])
    stages = estimate.estimate(tiny, "a100").stages
    assert found["digits"]["collect"] == pytest.approx(stages["collect"].gpu_s)
    assert found["digits"]["train"] == pytest.approx(stages["train"].gpu_s)
    slow = estimate.by_experiment(tiny.config, ["cpu"])
    assert slow["digits"]["collect"] > found["digits"]["collect"]
    assert estimate.by_experiment({"experiments": 3}, ["cpu"]) == {}


@pytest.mark.parametrize(
    ("device", "key"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA GeForce RTX 2080 Ti", "rtx2080ti"),
        ("cpu", "cpu"),
    ],
)
def test_devices_are_known_by_the_names_that_torch_gives_them(device, key):
    assert throughput.hardware_of([device]) == key


def test_stored_variants_count_on_the_disk():
    """Against 96 kB (clean) to 147 kB (noise) measured on photographs of 224 pixels."""
    sizes, digits = [], copy.deepcopy(DIGITS)
    for encoding in ("png", "jpeg85"):
        digits["variants"]["dark"].update(materialise=True, encoding=encoding)
        jobs = plan.make(digits).jobs
        (job,) = (job for (rule, _), job in jobs.items() if rule == "materialise")
        sizes.append(estimate.disk(job, 224) / 20)
    assert 96_000 < sizes[0] < 147_000
    assert 8_000 < sizes[1] < 31_000


@pytest.mark.parametrize(
    ("defense", "certificate", "step"),
    [
        # 25 begins in strides of ceil(25 / 6) = 5: five masks a side, 25 * 26 / 2 pairs, the image.
        ({"type": "double_masking", "patch_size": 8}, 326, 8 + 4),
        ({"type": "derandomized_smoothing", "band": 4}, 32 + 1, 8),
        ({"type": "derandomized_smoothing", "band": 4, "ablation": "block"}, 32**2 + 1, 8),
        ({"type": "splitting", "half_width": 0.1}, 51, 16),
    ],
)
def test_defences_without_samples_say_what_a_certificate_costs(defense, certificate, step):
    entry = copy.deepcopy(DIGITS)
    entry["defenses"] = {"shield": defense}
    entry["attacks"] = {
        "every": {"type": "adaptive", "norm": "l2", "epsilon": 0.5, "steps": 7, "restarts": 2}
    }
    experiment = entry["experiments"][0]
    experiment |= {"defenses": ["shield"], "attacks": ["every"], "variants": ["clean"]}
    experiment["exclude"] = []
    made = plan.make(entry)
    stages = estimate.estimate(made).stages
    items = experiment["datasets"][0]["limit"] * len(experiment["models"])
    assert stages["collect"].forward == items * certificate
    assert stages["attack"].backward == items * estimate.SURROGATES * 7 * 2 * step
