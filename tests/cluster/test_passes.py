from __future__ import annotations

import copy
from pathlib import Path

import pytest

from certbench import config, plan
from certbench.cluster import cost, passes
from study import TINY as DIGITS

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "slurm" / "config.yaml"


@pytest.fixture(scope="module")
def tiny():
    return plan.make(config.load([TINY]))


def test_passes_are_those_counted_by_hand(tiny):
    stages = cost.estimate(tiny).stages
    # 20 images, 32000 + 50 noisy copies each.
    assert stages["collect"].forward == 20 * 32050
    assert stages["predict"].forward == 20
    # 2 steps on 2 noise draws, one look and two confirmations of 50 copies.
    assert stages["attack"].forward == 20 * (2 * 2 + 3 * 50)
    assert stages["attack"].backward == 20 * 2 * 2
    # One epoch over the 1097 training images, forward and back.
    assert (stages["train"].forward, stages["train"].backward) == (1097, 1097)


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
    stages = cost.estimate(made).stages
    items = experiment["datasets"][0]["limit"] * len(experiment["models"])
    assert stages["collect"].forward == items * certificate
    assert stages["attack"].backward == items * passes.SURROGATES * 7 * 2 * step


@pytest.mark.parametrize(
    ("files", "totals"),
    [
        # (defence, attack): forward and backward passes of all shards, before attacks said
        # themselves what they cost.
        (
            [],
            {
                ("none", "pgd-l2"): (4_600, 4_000),
                ("none", "apgd-l2"): (20_600, 20_000),
                ("none", "pgd-linf"): (4_600, 4_000),
                ("smoothing", "pgd-l2"): (182_000, 32_000),
            },
        ),
        (
            [ROOT / "config" / "cluster.yaml"],
            {
                ("none", "pgd-l2-05"): (1_218_000, 1_200_000),
                ("none", "pgd-linf-8"): (1_218_000, 1_200_000),
                ("none", "autoattack-l2-05"): (46_818_000, 16_800_000),
                ("none", "autoattack-linf-8"): (46_818_000, 16_800_000),
                ("fixed-025", "inside-l2"): (4_980_000, 480_000),
                ("fixed-050", "inside-l2"): (4_980_000, 480_000),
                ("fixed-100", "inside-l2"): (4_980_000, 480_000),
            },
        ),
    ],
)
def test_the_attacks_of_the_studies_cost_what_they_always_did(files, totals):
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for (rule, key), job in plan.make(config.load(files)).jobs.items():
        if rule == "attack":
            before = found.get(key[3:5], (0, 0))
            made = passes.passes(job)
            found[key[3:5]] = (before[0] + made[0], before[1] + made[1])
    assert found == totals


OUTSIDE = """
from dataclasses import dataclass
from certbench.attacks.protocol import Passes
from certbench.params import param
from certbench.threat import Threat

kind = "attack"
version = 1
columns = {}


@dataclass(frozen=True)
class Params:
    epsilon: float = param(help="l2 radius", above=0)
    steps: int = param(7, help="steps")
    restarts: int = param(2, help="runs")


def threat(params):
    return Threat("lp", "l2", params.epsilon)


def attack(work):
    raise NotImplementedError
"""

SAYS = """

def passes(params, surrogates):
    return Passes.climb(params.steps, 3) + Passes.search(100 * surrogates)
"""


@pytest.mark.parametrize(
    ("defense", "says", "each"),
    [
        ("none", SAYS, (7 * 3 + passes.BESIDE, 7 * 3)),
        # 5 surrogates at most; 7 + 500 steps, a look after each, and two more, of 50 copies.
        ("smoothing", SAYS, ((7 * 3 + 500) * 16 + (507 + 2) * 50, 7 * 3 * 16)),
        # One that does not say: steps times restarts.
        ("none", "", (14 + passes.BESIDE, 14)),
    ],
)
def test_an_attack_from_outside_is_counted_as_it_says(tmp_path, defense, says, each):
    path = tmp_path / "outside_attack.py"
    path.write_text(OUTSIDE + says)
    entry = copy.deepcopy(DIGITS)
    entry["plugins"] = [str(path)]
    entry["attacks"] = {"new": {"type": "outside_attack", "epsilon": 0.5}}
    entry["experiments"][0] |= {"attacks": ["new"], "defenses": [defense]}
    (job,) = (job for (rule, _), job in plan.make(entry).jobs.items() if rule == "attack")
    items = job.work["items"][1] - job.work["items"][0]
    assert passes.passes(job) == (items * each[0], items * each[1])
