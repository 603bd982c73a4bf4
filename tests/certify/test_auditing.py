"""The audit: what is proven, refuted, unknown, and what must never be."""

import numpy as np
import pandas as pd
import pytest

from certbench.certify import auditing
from certbench.metrics import gap
from certbench.threat import Threat

KEYS = {
    "dataset": "d",
    "split": "test",
    "view": "native",
    "variant_id": "clean",
    "model": "m",
    "defense": "rs",
}
SHAPES = {("d", "native", "m"): [3, 32, 32]}


def certificates(radius, predict=None, label=None, alpha=0.001):
    n = len(radius)
    threat = Threat("lp", "l2", None, guarantee="probabilistic", alpha=alpha)
    label = np.zeros(n, int) if label is None else np.asarray(label)
    return pd.DataFrame(
        {
            **{k: [v] * n for k, v in KEYS.items()},
            "item_id": [f"test/{i}" for i in range(n)],
            "item_index": np.arange(n),
            "label": label,
            "predict": label if predict is None else predict,
            "radius": radius,
            **{k: [v] * n for k, v in threat.row().items()},
        }
    )


def attacks(status, pert, epsilon=0.5, norm="l2", adv_pred=None, label=None):
    n = len(status)
    threat = Threat("lp", norm, epsilon)
    label = np.zeros(n, int) if label is None else np.asarray(label)
    broken = np.array(status) == "broken"
    return pd.DataFrame(
        {
            **{k: [v] * n for k, v in KEYS.items()},
            "attack": ["pgd"] * n,
            "seed": [0] * n,
            "item_id": [f"test/{i}" for i in range(n)],
            "item_index": np.arange(n),
            "label": label,
            "status": status,
            "adv_pred": np.where(broken, 1, label) if adv_pred is None else adv_pred,
            "pert_l2": pert if norm == "l2" else np.full(n, 99.0),
            "pert_linf": pert if norm == "linf" else np.full(n, 99.0),
            **{k: [v] * n for k, v in threat.row().items()},
        }
    )


def verdicts(certified, attacked):
    return auditing.audit(certified, attacked, SHAPES)["verdict"].tolist()


def test_each_cell_of_the_table_has_its_verdict():
    certified = certificates([0.7, 0.7, 0.2, 0.2, 0.0])
    attacked = attacks(
        ["survived", "broken", "broken", "survived", "clean_error"], [0.0, 0.5, 0.5, 0.0, 0.0]
    )
    assert verdicts(certified, attacked) == [
        "proven",
        "violation",
        "refuted",
        "unknown",
        "clean_error",
    ]


def test_a_success_beyond_the_radius_refutes_and_one_at_it_is_no_violation():
    certified = certificates([0.4, 0.4, 0.4])
    attacked = attacks(["broken"] * 3, [0.41, 0.4, 0.39])
    assert verdicts(certified, attacked) == ["refuted", "refuted", "violation"]


def test_an_abstention_inside_the_region_breaks_no_promise():
    certified = certificates([0.7])
    assert verdicts(certified, attacks(["broken"], [0.5], adv_pred=[-1])) == ["refuted"]


def test_a_certificate_of_a_wrong_class_proves_nothing():
    certified = certificates([0.7], predict=[3])
    assert verdicts(certified, attacks(["survived"], [0.0])) == ["unknown"]
    assert verdicts(certified, attacks(["broken"], [0.1], adv_pred=[3])) == ["refuted"]


def test_norms_are_converted_by_the_dimension():
    root = np.sqrt(3 * 32 * 32)
    certified = certificates([1.01 * root * 8 / 255, 0.99 * root * 8 / 255])
    attacked = attacks(["survived"] * 2, [0.0, 0.0], epsilon=8 / 255, norm="linf")
    audited = auditing.audit(certified, attacked, SHAPES)
    assert audited["verdict"].tolist() == ["proven", "unknown"]
    assert np.allclose(
        audited["certified_in_attack_norm"].astype(float), [1.01 * 8 / 255, 0.99 * 8 / 255]
    )
    inside = attacks(["broken"], [7.9 / 255], epsilon=8 / 255, norm="linf")
    assert verdicts(certified[:1], inside) == ["violation"]


def test_only_the_same_item_of_the_same_defended_model_is_compared():
    certified = certificates([0.7, 0.7])
    attacked = attacks(["broken", "broken"], [0.1, 0.1])
    assert auditing.audit(certified, attacked.assign(defense="none"), SHAPES).empty
    assert auditing.audit(certified, attacked.assign(model="other"), SHAPES).empty
    shifted = attacked.assign(item_index=attacked["item_index"] + 1)
    assert len(auditing.audit(certified, shifted, SHAPES)) == 1


def test_violations_are_listed_with_what_reproduces_them():
    audited = auditing.audit(certificates([0.7]), attacks(["broken"], [0.3]), SHAPES)
    made = auditing.verdict(audited)
    (violation,) = made["violations"]
    assert violation["item_id"] == "test/0" and violation["attack"] == "pgd"
    assert violation["certified_size"] == 0.7 and violation["attack_size"] == 0.3
    assert violation["seed"] == 0 and violation["adv_pred"] == 1


@pytest.mark.parametrize(
    ("broken", "alpha", "sound"),
    # P[Bin(1000, 0.001) >= 1] = 0.632, >= 6 with 6e-4, >= 10 with 1e-7.
    [(1, 0.001, True), (6, 0.001, False), (10, 0.001, False), (10, 0.01, True)],
)
def test_alpha_explains_a_few_violations_and_not_many(broken, alpha, sound):
    n = 1000
    status = ["broken"] * broken + ["survived"] * (n - broken)
    attacked = attacks(status, [0.1] * broken + [0.0] * (n - broken), epsilon=0.2)
    made = auditing.verdict(auditing.audit(certificates([0.5] * n, alpha=alpha), attacked, SHAPES))
    assert len(made["violations"]) == broken
    assert made["sound"] is sound


def test_no_certificates_or_no_attacks_is_an_empty_audit():
    empty = auditing.audit(certificates([]), attacks([], []), SHAPES)
    assert empty.empty
    assert auditing.verdict(empty) == {"violations": [], "groups": [], "sound": True}


def linear_study(factor):
    """Certificates and exact minimal attacks of a linear classifier, radii times ``factor``."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=50)
    points = rng.normal(size=(400, 50))
    distance = np.abs(points @ normal) / np.linalg.norm(normal)
    broken = distance < 1.0
    status = np.where(broken, "broken", "survived")
    # A little beyond the boundary, as any attack goes.
    pert = np.where(broken, distance * 1.01, 0.0)
    certified = certificates(distance * factor)
    return auditing.verdict(auditing.audit(certified, attacks(status, pert, epsilon=1.0), SHAPES))


def test_a_sound_certifier_on_a_linear_model_is_not_accused():
    made = linear_study(1.0)
    assert made["violations"] == [] and made["sound"]
    assert made["groups"][0]["proven"] > 50 and made["groups"][0]["refuted"] > 200


def test_a_certifier_with_radii_half_too_large_is_caught():
    made = linear_study(1.5)
    assert len(made["violations"]) > 200 and not made["sound"]


def patch_certificates(radius):
    threat = Threat("patch", "square", None, space="pixels", guarantee="deterministic")
    row = {**threat.row(), "threat_alpha": None}
    return certificates(radius).assign(**row)


def test_a_ball_is_outside_the_threat_model_of_a_patch_whatever_the_attack_found():
    attacked = attacks(["broken", "survived", "clean_error"], [0.1, 0.0, 0.0])
    certified = patch_certificates([5.0, 5.0, 5.0])
    audited = auditing.audit(certified, attacked, SHAPES)
    assert audited["verdict"].tolist() == ["outside", "outside", "clean_error"]
    assert (audited["certified_in_attack_norm"].astype(float) == 0).all()
    made = auditing.verdict(audited)
    (group,) = made["groups"]
    assert group["outside"] == 2 and group["violation"] == 0 and made["sound"]
    # Only certificates of comparable kind count as put to the test; the clean error is left.
    tested = int((audited["verdict"] != "outside").sum())
    assert group["certified"] == tested == 1
    (row,) = gap.compute(audited, gap.Params(), None)
    assert row["metric"] == "outside_threat_model" and row["value"] == 2 / 3


@pytest.mark.parametrize(
    ("side", "verdict"), [(4.0, "violation"), (5.0, "violation"), (6.0, "refuted")]
)
def test_a_patch_inside_the_certified_size_is_a_violation(side, verdict):
    row = Threat("patch", "square", side, space="pixels").row()
    attacked = attacks(["broken"], [3.0]).assign(**row)
    made = auditing.audit(patch_certificates([5.0]), attacked, SHAPES)
    assert made["verdict"].tolist() == [verdict]
    assert made["attack_size"].tolist() == [side]
    survived = attacks(["survived"], [0.0]).assign(**row)
    inside = "proven" if side <= 5 else "unknown"
    assert auditing.audit(patch_certificates([5.0]), survived, SHAPES)["verdict"].tolist() == [
        inside
    ]
