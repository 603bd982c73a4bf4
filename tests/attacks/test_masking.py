"""One trained network behind five masks: what single attacks miss and the suite finds."""

import numpy as np
import pytest

from certbench.attacks import apgd, autoattack, checks

VARIANTS = ("plain", "times 1000", "softmax", "log-softmax", "by 1000", "8 levels")


def accuracy(columns):
    return 100 * np.mean(columns["status"] == "survived")


@pytest.mark.slow
def test_the_suite_sees_through_every_mask(digits, make_work):
    params = autoattack.Params(
        epsilon=digits.epsilon,
        suite="custom",
        attacks=autoattack.SUITES["standard"],
        targets=3,
        queries=300,
    )
    found, alarms = {}, {}
    for name in VARIANTS:
        model = digits.variant(name)
        columns = autoattack.attack(make_work(params, model, digits.x, digits.y))
        found[name] = accuracy(columns)
        alarms[name] = checks.square_lowers(columns)
        if name == "8 levels":
            quantised = columns
    assert found["plain"] <= 58
    for name in VARIANTS[:5]:
        # One image of 100: the masks change rounding, not the boundary.
        assert abs(found[name] - found["plain"]) <= 1, found
        assert not alarms[name].alarm, (name, alarms[name])
    # Gradients vanish behind 8 grey levels; only Square makes progress, and that is the alarm.
    assert alarms["8 levels"].alarm and found["8 levels"] < 90
    late = np.isin(quantised["first_breaking_attack"], ["", "square"])
    late &= quantised["status"] != "clean_error"
    assert all("zero_gradient" in flags for flags in quantised["check_flags"][late])


@pytest.mark.slow
def test_cross_entropy_attacks_are_blind_behind_large_logits_and_checks_say_so(digits, make_work):
    reached = {}
    for loss in ("ce", "dlr"):
        params = apgd.Params(epsilon=digits.epsilon, loss=loss)
        for name in ("plain", "times 1000", "8 levels"):
            work = make_work(params, digits.variant(name), digits.x, digits.y)
            reached[loss, name] = accuracy(apgd.attack(work))
    clean = 100 * float((digits.model(digits.x).argmax(1) == digits.y).double().mean())
    assert reached["ce", "times 1000"] > clean - 5
    assert reached["ce", "plain"] < clean - 25
    assert abs(reached["dlr", "times 1000"] - reached["dlr", "plain"]) <= 1
    assert reached["ce", "8 levels"] > clean - 5 and reached["dlr", "8 levels"] > clean - 5
    found = {}
    for name in ("plain", "softmax", "8 levels"):
        work = make_work(
            autoattack.Params(epsilon=digits.epsilon), digits.variant(name), digits.x, digits.y
        )
        found[name] = checks.alarms(checks.examine(work, limit=50))
    # Scaling by 1000 blinds cross-entropy on every network, which is what C11 is there to say.
    assert set(found["plain"]) <= {"C8", "C11"}
    assert "C2" in found["softmax"]
    assert {"C3", "C7", "C12"} <= set(found["8 levels"])
