"""What attacks say they cost, against what they take from a network that never errs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from certbench import plugins
from certbench.attacks import adaptive, apgd, autoattack, fab, patch_pgd, pgd, square
from certbench.attacks.protocol import Passes

SHORT = {"epsilon": 0.1, "norm": "l2"}
FEW = {"allow_short": True}
CUSTOM = {"suite": "custom", "steps": 10, "queries": 30, "targets": 5, **FEW, **SHORT}


class Steadfast(torch.nn.Module):
    """Prefers the first of six classes everywhere, and has gradients that promise otherwise."""

    def __init__(self):
        super().__init__()
        self.eval()

    def forward(self, x):
        slopes = torch.linspace(-1, 1, 6).outer(torch.linspace(1, 2, x[0].numel()))
        return x.flatten(1) @ slopes.T + torch.tensor([1000.0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("module", "params", "runs"),
    [
        (pgd, pgd.Params(steps=7, restarts=3, **SHORT), 3),
        (apgd, apgd.Params(steps=60, restarts=2, **SHORT), 2),
        (apgd, apgd.Params(steps=10, loss="dlr-targeted", targets=4, **SHORT, **FEW), 4),
        # Each pass of a start is averaged over three.
        (apgd, apgd.Params(steps=10, eot=3, **SHORT, **FEW), 3),
        (fab, fab.Params(steps=10, targets=3, restarts=2, **SHORT), 6),
        (square, square.Params(queries=40, restarts=2, **SHORT), 2),
        (patch_pgd, patch_pgd.Params(patch_size=2, steps=5, positions=2, random_positions=1), 14),
        (adaptive, adaptive.Params(steps=6, restarts=2, **SHORT), 2),
        (autoattack, autoattack.Params(attacks=("apgd-ce", "apgd-t", "square"), **CUSTOM), 11),
        (autoattack, autoattack.Params(attacks=("fab-t", "apgd-dlr"), restarts=2, **CUSTOM), 11),
    ],
    ids=lambda value: value.__name__.rpartition(".")[2] if hasattr(value, "__name__") else "",
)
def test_an_attack_that_never_succeeds_takes_what_it_says(module, params, runs, make_work):
    """Beside the starts of its runs, and the clean look at the image."""
    images = torch.from_numpy(np.random.default_rng(0).uniform(0.3, 0.7, (3, 1, 6, 6))).float()
    work = make_work(params, Steadfast(), images, torch.zeros(3, dtype=torch.int64), num_classes=6)
    made = module.attack(work)
    assert set(made["status"]) == {"survived"}
    said = module.passes(params, 0)
    assert said.forward / 2 <= made["n_forward"].max() <= said.forward + 2 * runs + 2
    assert said.backward / 2 <= made["n_backward"].max() <= said.backward + runs + 1


def test_every_attack_of_the_package_says_what_it_costs():
    for name in plugins.available("attack"):
        assert hasattr(plugins.load("attack", name), "passes"), name


def test_the_suites_cost_what_their_attacks_cost():
    standard = autoattack.passes(autoattack.Params(**SHORT), 0)
    # 100 steps of APGD, 900 targeted, 900 of FAB with two passes, 5000 queries.
    assert standard == Passes(100 + 900 + 1800 + 5000, 100 + 900 + 1800, 100 + 900 + 900 + 5000)
    rand = autoattack.passes(autoattack.Params(suite="rand", **SHORT), 0)
    assert rand == Passes(2 * 100 * 20, 2 * 100 * 20, 2 * 100)
    plus = autoattack.passes(autoattack.Params(suite="plus", **SHORT), 0)
    untargeted = 3 * 5 * 100
    assert plus.steps == standard.steps - 100 + untargeted


def test_the_attack_on_every_surrogate_costs_each_of_them_and_a_search():
    params = adaptive.Params(steps=6, restarts=2, queries=50, **SHORT)
    assert adaptive.passes(params, 0) == Passes(12, 12, 12)
    assert adaptive.passes(params, 5) == Passes(60 + 50, 60, 60 + 50)
    named = adaptive.Params(objectives=("base", "votes"), steps=6, queries=50, **SHORT)
    assert adaptive.passes(named, 5) == Passes(24 + 50, 24, 24 + 50)
