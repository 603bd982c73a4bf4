"""Metrics of certificates against counting by hand, identities and a published table."""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import certbench.metrics
from certbench.errors import CertbenchError
from certbench.metrics.certification import (
    abstain_rate,
    average_certified_radius,
    cap_share,
    certified_accuracy,
    certified_accuracy_interval,
    high_probability_certified_accuracy,
    p_a_quantiles,
    radius_grid,
)


def frame(label, predict, radius, **more):
    return pd.DataFrame({"label": label, "predict": predict, "radius": radius, **more})


HAND = frame(
    label=[0, 1, 2, 3, 4],
    predict=[0, 1, 0, -1, 4],
    radius=[0.5, 0.25, 0.9, 0.0, 0.0],
)


def as_table(rows):
    return pa.Table.from_pandas(rows, preserve_index=False)


@pytest.mark.parametrize("form", [lambda rows: rows, as_table])
def test_every_row_is_in_the_denominator(form):
    rows = form(HAND)
    assert certified_accuracy(rows, 0.0) == 3 / 5
    assert certified_accuracy(rows, [0.25, 0.25000001, 0.5, 0.9]).tolist() == [0.4, 0.2, 0.2, 0.0]
    assert average_certified_radius(rows) == pytest.approx(0.75 / 5)
    assert abstain_rate(rows) == 1 / 5


def test_one_radius_gives_a_float_and_an_array_an_array():
    assert isinstance(certified_accuracy(HAND, 0.25), float)
    assert certified_accuracy(HAND, np.zeros((2, 3))).shape == (2, 3)


def test_an_abstention_is_never_right_even_where_the_label_is_unknown():
    rows = frame([-1, 2], [-1, 2], [0.0, 1.0])
    assert certified_accuracy(rows, 0.0) == 0.5


def test_a_wrong_correct_column_is_not_believed():
    rows = HAND.assign(correct=[1, 2, 2, 2, 3])
    assert certified_accuracy(rows, 0.0) == 3 / 5


def test_no_rows_give_nan_and_no_crash():
    empty = HAND.iloc[:0]
    for rows in (empty, as_table(empty)):
        assert math.isnan(certified_accuracy(rows, 0.5))
        assert np.isnan(certified_accuracy(rows, [0.0, 0.5])).all()
        assert math.isnan(average_certified_radius(rows)) and math.isnan(abstain_rate(rows))
        assert all(np.isnan(end).all() for end in certified_accuracy_interval(rows, [0.0, 1.0]))
        assert math.isnan(high_probability_certified_accuracy(rows, 0.0, 0.001, 0.001))
        assert math.isnan(cap_share(rows)) and np.isnan(p_a_quantiles(rows, [0.5])).all()


def test_all_rows_abstaining_give_zero():
    rows = frame([1, 2], [-1, -1], [np.nan, 0.0])
    assert certified_accuracy(rows, 0.0) == 0.0 and average_certified_radius(rows) == 0.0


def test_the_dataset_statement_subtracts_the_exact_slack():
    ok = np.arange(500) < 229  # certified accuracy 0.458
    rows = frame(np.zeros(500, int), np.where(ok, 0, 1), np.full(500, 0.6))
    value = high_probability_certified_accuracy(rows, [0.5, 0.7], alpha=0.001, rho=0.001)
    assert value.tolist() == [0.45, 0.0]


def test_intervals_contain_the_estimate_and_widen_with_confidence():
    rows = frame([0] * 40, [0] * 30 + [1] * 10, np.linspace(0, 1, 40))
    radii = radius_grid(0.1, 11)
    accuracy = certified_accuracy(rows, radii)
    for method in ("cp", "wilson"):
        low, high = certified_accuracy_interval(rows, radii, 0.95, method)
        wide_low, wide_high = certified_accuracy_interval(rows, radii, 0.999, method)
        assert np.all((wide_low <= low) & (low <= accuracy))
        assert np.all((accuracy <= high) & (high <= wide_high))


def test_cap_share_and_quantiles_use_the_rows_that_tell():
    rows = HAND.assign(
        radius_capped=pd.array([True, False, None, False, True], dtype="boolean"),
        p_lower=[0.9, 0.6, 0.99, np.nan, 0.5],
    )
    for form in (rows, as_table(rows)):
        assert cap_share(form) == 0.5
        assert p_a_quantiles(form, [0.0, 0.5, 1.0]).tolist() == [0.5, 0.75, 0.99]
    assert math.isnan(cap_share(HAND)) and math.isnan(p_a_quantiles(HAND, 0.5))
    unknown = as_table(HAND).append_column("radius_capped", pa.nulls(5, pa.bool_()))
    assert math.isnan(cap_share(unknown))
    with pytest.raises(CertbenchError, match=r"\[0, 1\]"):
        p_a_quantiles(rows, 1.5)


def test_the_grid_is_integers_times_the_step():
    grid = radius_grid(0.1, 31)
    assert grid[3] == 3 * 0.1 and grid[30] == 3.0
    assert certified_accuracy(frame([1], [1], [0.75]), radius_grid(0.25, 5)).tolist() == [
        1, 1, 1, 1, 0,
    ]  # fmt: skip
    with pytest.raises(CertbenchError, match="positive"):
        radius_grid(0.0, 3)


def certificate_rows(draw):
    size = draw(st.integers(1, 40))
    label = draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    predict = draw(st.lists(st.integers(-1, 3), min_size=size, max_size=size))
    radius = draw(st.lists(st.floats(0, 4), min_size=size, max_size=size))
    radius = [0.0 if p == -1 else r for p, r in zip(predict, radius, strict=True)]
    return frame(label, predict, radius)


rows_strategy = st.composite(certificate_rows)()


@settings(max_examples=100, deadline=None)
@given(rows_strategy)
def test_acr_is_the_integral_of_certified_accuracy(rows):
    steps = np.unique(np.append(rows["radius"], 0.0))
    # Certified accuracy is constant on each (r_k, r_k+1], where it equals its right end.
    integral = np.sum(np.diff(steps) * certified_accuracy(rows, steps)[1:])
    assert average_certified_radius(rows) == pytest.approx(integral, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(rows_strategy, st.randoms(use_true_random=False))
def test_accuracy_falls_with_the_radius_and_ignores_the_order_of_rows(rows, random):
    grid = radius_grid(0.25, 20)
    accuracy = certified_accuracy(rows, grid)
    assert np.all(np.diff(accuracy) <= 0)
    by_hand = [
        sum(
            p == y and p != -1 and r >= g
            for y, p, r in zip(rows["label"], rows["predict"], rows["radius"], strict=True)
        )
        / len(rows)
        for g in grid
    ]
    assert accuracy.tolist() == by_hand
    order = list(range(len(rows)))
    random.shuffle(order)
    assert certified_accuracy(rows.iloc[order], grid).tolist() == by_hand
    more = pd.concat([rows, frame([0], [-1], [0.0])])
    scaled = accuracy * len(rows) / (len(rows) + 1)
    assert certified_accuracy(more, grid) == pytest.approx(scaled, abs=1e-15)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (HAND.drop(columns="radius"), "no column 'radius'"),
        (HAND.assign(predict=[0.5, 1, 2, 3, 4]), "integers"),
        (HAND.assign(predict=[0.0, np.nan, 2, 3, 4]), "integers"),
        (HAND.assign(radius=np.nan), "nulls"),
    ],
)
def test_bad_rows_are_refused(rows, message):
    for form in (rows, as_table(rows)):
        with pytest.raises(CertbenchError, match=message):
            certified_accuracy(form, 0.5)


def test_a_nan_radius_is_refused():
    with pytest.raises(CertbenchError, match="NaN"):
        certified_accuracy(HAND, [0.5, float("nan")])


def test_the_package_exports_the_two_functions_without_loading_numpy_before():
    assert certbench.metrics.certified_accuracy is certified_accuracy
    assert certbench.metrics.average_certified_radius is average_certified_radius
    code = "import sys, certbench.metrics; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
