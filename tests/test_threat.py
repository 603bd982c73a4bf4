"""Threat models as values, and the only place that converts norms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certbench.errors import CertbenchError
from certbench.threat import Threat, contains, convert_size

NORMS = {"l1": 1, "l2": 2, "linf": np.inf}


def certificate(norm, size):
    return Threat("lp", norm, size, guarantee="probabilistic", alpha=0.001)


def test_equal_threats_have_equal_readable_names():
    assert Threat("lp", "l2", 0.5).id == "lp-l2-0.5"
    assert Threat("lp", "linf", 8 / 255).id == "lp-linf-8of255"
    assert Threat("lp", "linf", 8 / 255, "pixel01", "pixel").id == "lp-linf-8of255-pixel"
    assert certificate("l2", None).id == "lp-l2"


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(list(NORMS)),
    st.sampled_from(list(NORMS)),
    # Squares of numbers below 1e-160 underflow in numpy's norm, which is the oracle here.
    st.lists(st.floats(-1, 1).map(lambda v: round(v, 12)), min_size=1, max_size=20),
)
def test_the_converted_ball_holds_every_point_of_the_other(inner, outer, values):
    vector = np.array(values)
    size = np.linalg.norm(vector, NORMS[inner])
    reach = convert_size(size, inner, outer, len(vector))
    assert np.linalg.norm(vector, NORMS[outer]) <= reach * (1 + 1e-12) + 1e-300


@pytest.mark.parametrize("inner", NORMS)
@pytest.mark.parametrize("outer", NORMS)
def test_the_conversion_is_tight(inner, outer):
    d = 7
    spread, single = np.ones(d), np.eye(d)[0]
    reached = max(
        np.linalg.norm(v / np.linalg.norm(v, NORMS[inner]), NORMS[outer]) for v in (spread, single)
    )
    assert math.isclose(convert_size(1.0, inner, outer, d), reached, rel_tol=1e-12)


def test_an_l2_radius_covers_linf_attacks_up_to_radius_over_root_d():
    radius = certificate("l2", 0.4348)
    d = 3072
    assert contains(radius, Threat("lp", "linf", 2 / 255), d)
    assert not contains(radius, Threat("lp", "linf", 2.01 / 255), d)
    assert contains(radius, Threat("lp", "l1", 0.43), d)


def test_a_certificate_does_not_cover_its_own_boundary():
    assert not contains(certificate("l2", 0.5), Threat("lp", "l2", 0.5))
    assert contains(certificate("l2", 0.5), Threat("lp", "l2", 0.5 - 1e-9))


def test_unlike_kinds_spaces_and_units_are_never_compared():
    radius = certificate("l2", 10.0)
    assert not contains(radius, Threat("patch", "square", 0.01, "fraction"))
    assert not contains(radius, Threat("lp", "l2", 0.1, "pixel255"))
    assert not contains(radius, Threat("lp", "l2", 0.1, unit="pixel"))


def test_patches_compare_by_shape_and_size():
    held = Threat("patch", "square", 0.03, "fraction", guarantee="deterministic")
    assert contains(held, Threat("patch", "square", 0.03, "fraction"))
    assert not contains(held, Threat("patch", "square", 0.031, "fraction"))
    assert not contains(held, Threat("patch", "rectangle", 0.01, "fraction"))


def test_differing_norms_need_the_dimension():
    with pytest.raises(CertbenchError, match="dimension"):
        contains(certificate("l2", 1.0), Threat("lp", "linf", 0.1))


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "lq", "norm": "l2"},
        {"kind": "lp", "norm": "l3"},
        {"kind": "lp", "norm": "l2", "size": -1.0},
        {"kind": "lp", "norm": "l2", "size": math.nan},
        {"kind": "lp", "norm": "l2", "guarantee": "probabilistic"},
        {"kind": "lp", "norm": "l2", "alpha": 0.1},
        {"kind": "lp", "norm": "l2", "unit": "image"},
    ],
)
def test_a_threat_that_says_nothing_definite_is_refused(fields):
    with pytest.raises(CertbenchError):
        Threat(**fields)
