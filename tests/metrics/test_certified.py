"""Certified accuracy and what stands beside it, from certificate rows."""

import math

import pandas as pd
import pytest

from certbench.metrics import certified
from certbench.metrics.tabulating import Context
from certbench.threat import Threat

DIMENSION = 3 * 32 * 32


def certificates(norm="l2"):
    return pd.DataFrame(
        {
            "label": [0, 1, 2, 3],
            "predict": [0, 1, 5, -1],
            "radius": [0.6, 0.2, 0.9, 0.0],
            "abstain": [False, False, False, True],
            "threat_kind": "lp",
            "threat_norm": norm,
            "threat_alpha": 0.001,
            "n_forward": [1100, 1100, 1100, 100],
            "device_time_s": [2.0, 2.0, 2.0, 1.0],
        }
    )


def numbers(frame, threats=(), dimension=DIMENSION):
    params = certified.Params(radii=(0.0, 0.25, 0.5))
    made = certified.compute(frame, params, Context(tuple(threats), dimension))
    return {(row["metric"], row["parameter"]): row for row in made}


def test_every_image_counts_and_a_wrong_certificate_counts_for_nothing():
    found = numbers(certificates())
    shares = [found["certified_accuracy", r]["value"] for r in (0.0, 0.25, 0.5)]
    assert shares == [0.5, 0.25, 0.25]
    assert found["abstain_rate", None]["value"] == 0.25


def test_an_unknown_label_does_not_agree_with_an_abstention():
    frame = certificates().assign(label=[0, 1, 2, -1])
    assert numbers(frame)["certified_accuracy", 0.0]["value"] == 0.5
    assert numbers(frame)["acr", None]["value"] == pytest.approx(0.2)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_linf_equivalent_is_the_largest_cube_inside_the_certified_ball(norm):
    found = numbers(certificates(norm))
    side = found["linf_equivalent", 0.5]["value"]
    corner = [side] * DIMENSION
    length = sum(corner) if norm == "l1" else math.dist(corner, [0.0] * DIMENSION)
    assert length == pytest.approx(0.5, rel=1e-9)
    assert ("linf_equivalent", 0.0) not in found


def test_without_the_shape_of_the_items_nothing_is_converted():
    found = numbers(certificates(), [Threat("lp", "linf", 0.01)], dimension=None)
    assert not any(name.startswith(("linf_", "certified_at")) for name, _ in found)


def test_a_threat_of_another_norm_asks_for_the_radius_that_covers_it():
    # An l-infinity ball of 0.005 needs an l2 radius of 0.277: one of the right answers has it.
    (name,) = [k for k in numbers(certificates(), [Threat("lp", "linf", 0.005)]) if "at:" in k[0]]
    assert name[1] == pytest.approx(0.005 * math.sqrt(DIMENSION))
    assert numbers(certificates(), [Threat("lp", "linf", 0.005)])[name]["value"] == 0.25


def test_the_information_gain_of_flat_classes_is_certified_accuracy():
    frame = certificates().assign(
        label=[0, 0, 0, 1], predict=[0, 0, 5, 1], radius=[0.6, 0.2, 1, 0.5]
    )
    found = numbers(frame)
    # Classes 0 and 1: one of three and one of one hold at 0.5.
    assert found["cig", 0.5]["value"] == found["certified_accuracy", 0.5]["value"] == 0.5
    assert found["cig_class_mean", 0.5]["value"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["cig_class_mean", 0.0]["value"] == pytest.approx((2 / 3 + 1) / 2)


def test_the_cost_of_a_certificate_is_a_mean_over_all_images():
    found = numbers(certificates())
    assert found["forward_per_certificate", None]["value"] == 850.0
    assert found["seconds_per_certificate", None]["value"] == 1.75


def test_patches_are_certified_up_to_their_size_and_only_against_patches():
    rows = certificates("square").assign(
        radius=[5.0, 3.0, 5.0, 0.0],
        threat_kind="patch",
        threat_space="pixels",
        threat_unit="item",
        threat_alpha=None,
    )
    threats = (
        Threat("patch", "square", 5.0, space="pixels"),
        Threat("patch", "square", 5.1, space="pixels"),
        Threat("lp", "l2", 0.1),
        Threat("patch", "square", 5.0, space="fraction"),
    )
    made = certified.compute(rows, certified.Params(radii=(5.0,)), Context(threats, DIMENSION))
    held = {row["metric"]: row["value"] for row in made if row["metric"].startswith("certified_at")}
    assert held == {
        "certified_at:patch-square-5-pixels": 0.25,
        "certified_at:patch-square-5.1-pixels": 0.0,
    }
