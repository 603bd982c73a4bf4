import math

import pytest

from certbench.figures import wording


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.00042, "0.42 ms"),
        (0.4, "0.40 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (48 * 3600, "2.0 days"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_durations_are_read_in_their_natural_unit(seconds, text):
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("threat", "text"),
    [
        ("lp-l2-0.5", "ℓ₂ ≤ 0.5"),
        ("lp-linf-8of255", "ℓ∞ ≤ 8/255"),
        ("lp-l2", "ℓ₂"),
        ("patch-square-0.1-fraction", "patch square 0.1 fraction"),
        (None, ""),
        (math.nan, ""),
    ],
)
def test_a_threat_id_reads_as_norm_and_budget(threat, text):
    assert wording.threat(threat).replace("\u00a0", " ") == text


def test_every_threat_that_can_be_named_is_readable():
    from certbench.threat import Threat

    for size in (0.5, 1 / 255, 0.031372549, 4.0):
        said = wording.threat(Threat("lp", "linf", size).id)
        assert said.startswith("ℓ∞") and "of" not in said


def test_variants_lose_their_hash_and_what_all_of_them_share():
    ids = ["clean", "fog-3-cifar32-d0ab02", "gaussian_noise-3-cifar32-5e4552"]
    names, common = wording.variants(ids)
    assert list(names.values()) == ["clean", "fog", "gaussian noise"]
    assert common == "3 cifar32"


def test_variants_of_different_severity_keep_it():
    names, common = wording.variants(["fog-1-cifar32-d0ab02", "fog-5-cifar32-5e4552"])
    assert list(names.values()) == ["fog 1", "fog 5"]
    assert common == "cifar32"


def test_variants_that_would_read_alike_stay_apart():
    names, _ = wording.variants(["fog-3-cifar32-aaaaaa", "fog-3-cifar32-bbbbbb"])
    assert len(set(names.values())) == 2


@pytest.mark.parametrize(
    ("value", "text"), [(1100, "1,100"), (0.3421567, "0.3422"), (3, "3"), (None, "–")]
)
def test_numbers_have_four_significant_digits(value, text):
    assert wording.number(value) == text


def test_a_missing_share_is_a_dash_not_a_number():
    assert wording.percent(None) == wording.percent(math.nan) == "–"
    assert wording.interval(None, 0.5) == ""


def test_one_point_is_singular():
    assert wording.points(-0.01) == "1.0 percentage point"
    assert wording.points(0.055) == "5.5 percentage points"


def test_many_variants_are_families_over_their_severities():
    ids = ["clean", *(f"{c}-{s}-cifar32-{s:06d}" for c in ("fog", "snow") for s in range(1, 6))]
    families, common = wording.families(ids, most=10)
    assert [(name, len(found)) for name, found in families] == [
        ("clean", 1),
        ("fog", 5),
        ("snow", 5),
    ]
    assert common == "cifar32"
    assert families[1][1] == ids[1:6]
    assert len(wording.families(ids, most=11)[0]) == 11
