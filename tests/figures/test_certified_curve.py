import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certbench.certify.attainable import radius_cap
from certbench.certify.intervals import binomial_interval
from certbench.figures import certified_curve, style
from certbench.metrics import certified_accuracy


def _frame(radius, predict, label):
    return pd.DataFrame({"radius": radius, "predict": predict, "label": label})


rows = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.25, 0.7, 1.3]), st.sampled_from([-1, 0, 1])),
    min_size=1,
    max_size=30,
)


@given(rows, st.floats(0, 1.5))
@settings(max_examples=60, deadline=None)
def test_the_curve_is_certified_accuracy_at_every_radius(found, at):
    radius = [0.0 if predict < 0 else r for r, predict in found]
    frame = _frame(radius, [p for _, p in found], [0] * len(found))
    radii, counts = certified_curve.steps(frame)
    # Between two vertices the curve has the value of the right one; beyond the last it is zero.
    place = np.searchsorted(radii, at, side="left")
    drawn = counts[place] / len(frame) if place < len(radii) else 0.0
    assert drawn == certified_accuracy(frame, at)


def test_a_thinned_curve_never_lies_above_the_exact_one():
    radius = np.random.default_rng(0).uniform(0, 2, 5000)
    frame = _frame(radius, np.zeros(5000, int), np.zeros(5000, int))
    radii, counts = certified_curve.steps(frame)
    assert len(radii) <= 600
    for at in np.linspace(0, 2.1, 400):
        place = np.searchsorted(radii, at, side="left")
        drawn = counts[place] / 5000 if place < len(radii) else 0.0
        exact = certified_accuracy(frame, at)
        assert exact - 3 / 600 <= drawn <= exact


def test_an_abstention_with_an_unknown_label_is_not_right():
    radii, counts = certified_curve.steps(_frame([0.0, 0.5], [-1, 1], [-1, 1]))
    assert counts[0] == 1 and radii[0] == 0.0


def test_the_cap_is_the_radius_of_unanimous_votes_or_follows_from_the_budget():
    columns = {"n": 1000, "alpha": 0.001, "sigma": 0.5, "bound": "one"}
    frame = pd.DataFrame({"radius": [0.2, 0.9], "radius_capped": [False, False], **columns})
    expected = float(radius_cap(1000, 0.001, 0.5))
    assert certified_curve.cap(frame) == (pytest.approx(expected), 1000)
    frame.loc[1, "radius_capped"] = True
    assert certified_curve.cap(frame) == (0.9, 1000)


def test_the_cap_of_an_imported_log_is_unknown():
    frame = pd.DataFrame({"radius": [0.2], "n": [None], "radius_capped": [None]})
    assert certified_curve.cap(frame) == (None, None)


def test_the_figure_shows_curve_band_bare_models_and_attacks(data):
    params = certified_curve.Params()
    with style.applied():
        figure = certified_curve.draw(data, params)
    (axes,) = figure.axes
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:2] == ["plain + smoothing, certified", "noisy + smoothing, certified"]
    assert "noisy, bare, without attack" in labels
    assert any(label.replace("\n", " ").startswith("not broken by pgd-l2") for label in labels)
    assert not any("linf" in label for label in labels), "another norm has no place on this axis"
    curve = next(line for line in axes.lines if line.get_drawstyle() == "steps-pre")
    frame = data.certificates
    plain = frame[frame["model"].eq("plain") & frame["variant_id"].eq("clean")]
    assert curve.get_ydata()[0] == certified_accuracy(plain, 0.0)
    assert len(axes.collections) == 2, "one band for each curve"


def test_bands_are_exact_binomial_intervals(data):
    with style.applied():
        figure = certified_curve.draw(data, certified_curve.Params(confidence=0.9))
    frame = data.certificates
    plain = frame[frame["model"].eq("plain") & frame["variant_id"].eq("clean")]
    hits = round(certified_accuracy(plain, 0.0) * len(plain))
    low, high = binomial_interval(hits, len(plain), 0.9)
    y = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert y.max() == pytest.approx(high)
    assert np.isclose(y, low).any()
