"""A certificate and an attack on the same smoothed classifier: no image may be both."""

import numpy as np
import pytest
from scipy import stats

from certbench.attacks import apgd, pgd
from certbench.attacks.smoothed import SmoothedLogits
from certbench.threat import Threat, contains

SIGMA, EPSILON, ALPHA, SAMPLES = 0.08, 0.06, 0.001, 2000
SHAPE = (1, 5, 4)


def certified_radii(model, x, y, items):
    """L2 radius from a Clopper-Pearson bound on the share of votes for the true class."""
    votes = SmoothedLogits(model, SIGMA, SAMPLES, seed64=1)
    drawn = votes._draws_of(x, items)
    wins = (votes.noisy_logits(x, drawn).argmax(2) == y).sum(0).numpy()
    lower = stats.beta.ppf(ALPHA, wins, SAMPLES - wins + 1)
    return np.where(lower > 0.5, SIGMA * stats.norm.ppf(lower), 0.0)


def violations(radii, columns, dimension):
    attack = Threat(**pgd.threat(pgd.Params(epsilon=EPSILON, norm="l2")))
    promise = Threat("lp", "l2", guarantee="probabilistic", alpha=ALPHA)
    inside = [contains(promise.sized(float(r)), attack, dimension) for r in radii]
    return int((np.array(inside) & (columns["status"] == "broken")).sum())


@pytest.mark.parametrize("method", [pgd, apgd])
def test_no_certified_image_is_broken_and_inflated_radii_are_caught(
    linear, middle, make_work, method
):
    model = linear(2, SHAPE, 0)
    x = middle(120, SHAPE, 4)
    y = model(x).argmax(1)
    items = np.arange(120)
    votes = SmoothedLogits(model, SIGMA, 4000, seed64=2)

    def judge(points, items):
        drawn = votes._draws_of(points, items)
        labels = votes.noisy_logits(points, drawn).argmax(2)
        return labels.mode(0).values

    judge.needs_items, judge.passes = True, 4000
    radii = certified_radii(model, x, y, items)
    common = {"epsilon": EPSILON, "norm": "l2", "random_start": False, "judge_every": 50}
    if method is pgd:
        params = pgd.Params(steps=20, step_size=0.1, restarts=1, **common)
    else:
        params = apgd.Params(steps=50, **common)
    objective = SmoothedLogits(model, SIGMA, 32, seed64=3)
    work = make_work(params, objective, x, y, judge=judge, num_classes=2)
    columns = method.attack(work)
    assert 20 < (radii > EPSILON).sum() < 110
    assert (columns["status"] == "broken").sum() > 20
    assert violations(radii, columns, 20) == 0
    assert violations(1.5 * radii, columns, 20) >= 5
    # The attack on a linear classifier is exact: it breaks what lies closer than the radius.
    slope = (model.weight[0] - model.weight[1]).norm()
    distance = ((model(x)[:, 0] - model(x)[:, 1]).abs() / slope).numpy()
    close = (distance < 0.9 * EPSILON) & (columns["status"] != "clean_error")
    assert (columns["status"][close] == "broken").all()
