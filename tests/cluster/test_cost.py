from __future__ import annotations

import copy
from pathlib import Path

import pytest

from certbench import config, plan
from certbench.cluster import cost, estimate, throughput
from study import TINY as DIGITS

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "slurm" / "config.yaml"


@pytest.fixture(scope="module")
def tiny():
    return plan.make(config.load([TINY]))


def test_jobs_are_those_of_the_plan(tiny):
    made = cost.estimate(tiny)
    assert {rule: cost.jobs for rule, cost in made.stages.items()} == dict(tiny.counts())
    assert made.total.jobs == sum(tiny.counts().values())


def test_the_longest_chain_is_a_chain_of_the_plan_and_no_other_is_longer(tiny):
    made = cost.estimate(tiny)
    producers = {path: job for job in tiny.jobs.values() for path in job.outputs.values()}

    def every_chain(job):
        before = [producers[p] for files in job.inputs.values() for p in files if p in producers]
        if not before:
            yield [job]
        for one in {id(b): b for b in before}.values():
            for chain in every_chain(one):
                yield [*chain, job]

    rates = cost.rates_of(tiny, "a100", {})
    longest = max(
        sum(cost._cost(job, tiny, rates).gpu_s for job in chain)
        for chain in every_chain(tiny.jobs["report", ()])
    )
    assert made.chain[0] == pytest.approx(longest)
    assert made.chain[1][0] == "prepare" and made.chain[1][-1] == "report"


def test_gpu_hours_are_passes_over_the_rate_plus_the_starts(tiny):
    slow = throughput.Rate(10.0, "measured")
    made = cost.estimate(tiny, "a100", {"noisy": slow})
    collect = made.stages["collect"]
    assert collect.gpu_s == pytest.approx(20 * 32050 / 10 + 4 * cost.START_S)
    attack = made.stages["attack"]
    passes = attack.forward + 2 * attack.backward
    assert attack.gpu_s == pytest.approx(passes / 10 + 4 * cost.START_S)


def test_a_model_without_a_rate_is_counted_as_unknown_not_as_free(tiny, monkeypatch):
    monkeypatch.delitem(throughput.MACS, "small_cnn")
    made = cost.estimate(tiny)
    assert made.stages["collect"].unknown == 4 and "?" in "\n".join(estimate.lines(made))
    assert "--probe" in made.sources["noisy"]


def test_what_was_to_be_expected_is_told_for_each_experiment_on_the_hardware_it_ran_on(tiny):
    found = cost.by_experiment(tiny.config, ["NVIDIA A100-SXM4-80GB"])
    stages = cost.estimate(tiny, "a100").stages
    assert found["digits"]["collect"] == pytest.approx(stages["collect"].gpu_s)
    assert found["digits"]["train"] == pytest.approx(stages["train"].gpu_s)
    slow = cost.by_experiment(tiny.config, ["cpu"])
    assert slow["digits"]["collect"] > found["digits"]["collect"]
    assert cost.by_experiment({"experiments": 3}, ["cpu"]) == {}


def test_stored_variants_count_on_the_disk():
    """Against 96 kB (clean) to 147 kB (noise) measured on photographs of 224 pixels."""
    sizes, digits = [], copy.deepcopy(DIGITS)
    for encoding in ("png", "jpeg85"):
        digits["variants"]["dark"].update(materialise=True, encoding=encoding)
        jobs = plan.make(digits).jobs
        (job,) = (job for (rule, _), job in jobs.items() if rule == "materialise")
        sizes.append(cost.disk(job, 224) / 20)
    assert 96_000 < sizes[0] < 147_000
    assert 8_000 < sizes[1] < 31_000
